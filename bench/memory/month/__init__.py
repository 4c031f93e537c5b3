"""A busy month of the simulated world: documents of all sources, long conversations, and questions about them."""

from bench.memory.month.questions import month_set
from bench.memory.month.vendors import vendors

__all__ = ["month_set", "vendors"]
