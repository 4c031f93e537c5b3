"""Simulator: SONAR, market data."""
