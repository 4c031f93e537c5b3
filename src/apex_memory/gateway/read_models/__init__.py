"""Queries behind the routes: the state of each event, and the health of the installation."""
