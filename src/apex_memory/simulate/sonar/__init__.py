"""Simulator of SONAR, the market data."""
