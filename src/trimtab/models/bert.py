"""BERT's published sizes, and the BERT of equal shape that FNet is compared with.

Two details differ between the two uses. `transformers`' BERT has exact GELU, dropout after the
attention's projection and no layer after the embeddings; the FNet paper's BERT is FNet with
attention in every layer.
"""

from __future__ import annotations

from trimtab.models.encoder import EncoderConfig


def bert_base(**changes: object) -> EncoderConfig:
    """Return BERT-Base as in `transformers`; keyword arguments change fields."""
    return EncoderConfig(
        vocabulary=30_522,
        segments=2,
        mixers="attention",
        projection=False,
        activation="gelu",
        attention_output_dropout=0.1,
        padding_id=0,
    ).replace(**changes)


def bert_large(**changes: object) -> EncoderConfig:
    """Return BERT-Large as in `transformers`; keyword arguments change fields."""
    return bert_base(width=1024, feed_forward=4096, depth=24, heads=16, **changes)


def bert_like(config: EncoderConfig) -> EncoderConfig:
    """Return the attention encoder of a configuration's shape, with all else equal."""
    return config.replace(mixers="attention")
