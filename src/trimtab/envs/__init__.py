"""Reinforcement-learning environments as JAX programs."""
