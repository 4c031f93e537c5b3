"""The four stores: `base` says what Apex asks of a graph and of a vector store, and each adapter is a module."""
