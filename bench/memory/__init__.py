"""The memory bench: a small world of freight, questions with evidence, and the recall of search."""

from bench.memory.measure import measure

__all__ = ["measure"]
