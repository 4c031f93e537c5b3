"""Simulator of QuickBooks Online, the books."""
