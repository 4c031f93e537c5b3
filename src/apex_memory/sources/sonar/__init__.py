"""SONAR, market data."""
