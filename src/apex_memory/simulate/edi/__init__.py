"""Simulator of carriers' EDI."""
