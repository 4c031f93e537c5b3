"""Simulator of Samsara, the vehicles."""
