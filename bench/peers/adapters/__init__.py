"""One module a peer. They run in the peers' own virtual environment and import nothing of Apex."""
