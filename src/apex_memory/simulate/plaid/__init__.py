"""Simulator: Plaid, the bank."""
