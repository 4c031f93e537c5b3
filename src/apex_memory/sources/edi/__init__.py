"""Carriers' EDI."""
