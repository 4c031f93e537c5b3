"""From inbox to memory: the workflow that drains a source, its activities, its messages, and the client that wakes and pauses it."""
