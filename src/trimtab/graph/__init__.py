"""Capture a model as a program graph, find its parts, and price it."""
