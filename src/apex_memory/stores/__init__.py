"""The four stores: `base` holds the protocols of a graph and of a vector store; each adapter is a module."""
