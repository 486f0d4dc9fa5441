"""Rewrites that make a program cheaper: sparsity, quantization, delta attention, backprop."""
