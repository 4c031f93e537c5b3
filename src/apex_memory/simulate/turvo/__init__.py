"""Simulator of Turvo, the transport system."""
