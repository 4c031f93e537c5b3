"""Simulator of Plaid, the bank connections."""
