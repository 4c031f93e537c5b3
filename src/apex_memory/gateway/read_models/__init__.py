"""Queries behind the routes: where each event is, and how the installation does."""
