"""Documents and files."""
