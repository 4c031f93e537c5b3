"""Simulator: Carriers' EDI."""
