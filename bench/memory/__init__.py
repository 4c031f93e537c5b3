"""Does the memory find what was asked for? A small world of freight, questions with evidence, and recall."""

from bench.memory.measure import measure

__all__ = ["measure"]
