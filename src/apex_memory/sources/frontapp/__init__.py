"""Front, the shared inbox."""
