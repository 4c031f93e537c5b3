"""Turvo, the transport system."""
