"""From inbox to memory: the workflow that drains a source, its activities, its messages, and how others wake and pause it."""
