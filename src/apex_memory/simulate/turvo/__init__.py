"""Simulator: Turvo, the transport system."""
