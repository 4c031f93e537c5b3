"""Samsara, the trucks."""
