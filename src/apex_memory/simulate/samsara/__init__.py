"""Simulator: Samsara, the trucks."""
