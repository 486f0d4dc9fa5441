"""The published experiments, at a size that fits the machine, each beside its baseline."""
