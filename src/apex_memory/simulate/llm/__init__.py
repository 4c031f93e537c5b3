"""Simulator of agents and chat products."""
