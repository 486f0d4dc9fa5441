"""Equinox modules of the models that the systems are about."""
