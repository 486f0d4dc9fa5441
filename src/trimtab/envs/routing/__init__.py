"""Routing and moving on grids and graphs."""
