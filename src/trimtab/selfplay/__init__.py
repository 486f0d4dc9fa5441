"""The game of Go: rules, search, self-play and training."""
