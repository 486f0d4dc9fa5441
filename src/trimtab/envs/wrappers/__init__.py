"""Changes of an environment's interface: batching, automatic resets, other libraries' forms."""
