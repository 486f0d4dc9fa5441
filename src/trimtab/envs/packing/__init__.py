"""Packing and scheduling."""
