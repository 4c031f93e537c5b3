"""Plaid, the bank."""
