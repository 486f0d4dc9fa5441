"""Puzzles and games of logic."""
