"""Apex beside other memories that install from PyPI: the same documents, the same questions, the same models.

`make peers` makes a virtual environment for the peers, measures all of them in turn and writes `latest.json`.
`docs/benchmarks.md` explains the method and shows the figures.
"""
