"""Settings that every test shares: fake devices, a compilation cache, offline hubs."""

import os
from pathlib import Path

# Read by JAX when its backend starts, hence before the first import of jax.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

_CACHE = Path(__file__).parent.parent / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key; split it, never reuse it."""
    return jax.random.key(0)
