"""Native CPU kernels and the plain JAX references they are tested against."""
