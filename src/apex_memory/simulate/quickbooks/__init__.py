"""Simulator: QuickBooks Online, the books."""
