"""Swarms of continuous agents."""
