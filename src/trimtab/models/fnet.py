"""FNet's published sizes ("FNet: Mixing Tokens with Fourier Transforms", 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.models.encoder import EncoderConfig
from trimtab.models.mixing import hybrid


def fnet_base(**changes: object) -> EncoderConfig:
    """Return FNet-Base: 12 layers of width 768; keyword arguments change fields."""
    return EncoderConfig().replace(**changes)


def fnet_large(**changes: object) -> EncoderConfig:
    """Return FNet-Large: 24 layers of width 1024; keyword arguments change fields."""
    return EncoderConfig(width=1024, feed_forward=4096, depth=24, heads=16).replace(**changes)


def with_attention(
    config: EncoderConfig, attention: int | Sequence[int] = 2, layout: str = "top"
) -> EncoderConfig:
    """Return the FNet-Hybrid of a configuration: attention in some layers.

    Args:
        config: the configuration; its mixer stays in all other layers.
        attention: how many layers attend, or exactly which.
        layout: ``"top"``, ``"bottom"``, ``"middle"`` or ``"mixed"``.
    """
    base = next((name for name in config.layer_mixers if name != "attention"), "fourier")
    return config.replace(mixers=hybrid(config.depth, attention, layout, base=base))
