"""Subjects of rollouts, by which the tables `rollouts`, `rollout_runs` and `shadows` name what is rolled out."""

from __future__ import annotations

BUILD = "build"
"""The subject of the rollout of a build: the row of `rollouts` names the candidate."""


def source_subject(source: str) -> str:
    """Return the subject of the rollout of a source's traffic."""
    return f"source:{source}"
