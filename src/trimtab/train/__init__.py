"""Training: step builder, pipelines, optimizers with gradient statistics, checkpoints, metrics."""
