"""QuickBooks Online, the books."""
