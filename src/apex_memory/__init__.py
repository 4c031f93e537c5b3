"""Apex Memory: every event of a company's tools, in one memory that agents can ask."""

from importlib.metadata import version

__version__ = version("apex-memory")
