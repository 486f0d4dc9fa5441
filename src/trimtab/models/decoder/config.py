"""What distinguishes one decoder-only model from another, as data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from trimtab.errors import InputError

Activation = Literal["silu", "gelu_tanh", "relu2"]
RotaryLayout = Literal["adjacent", "half"]


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: which angle each pair of coordinates turns by per position.

    Attributes:
        base: pair m turns by ``base ** (-2 m / head_dim)`` radians a position (RoFormer, eq. 15).
        linear_factor: positions are divided by it (linear scaling); 1 leaves them alone.
        llama3: ``(factor, low, high, original_context)`` of Llama 3.1's frequency bands, or None.
        factors: a divisor for each frequency as stored in GGUF's ``rope_freqs.weight``, or None.
    """

    base: float = 10_000.0
    linear_factor: float = 1.0
    llama3: tuple[float, float, float, float] | None = None
    factors: tuple[float, ...] | None = None

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Return float32 ``[head_dim / 2]`` radians per position, scaling applied."""
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        inverse = (1.0 / np.float32(self.base) ** exponent).astype(np.float32)
        if self.llama3 is not None:
            inverse = _llama3_bands(inverse, *self.llama3)
        if self.factors is not None:
            inverse = inverse / np.asarray(self.factors, np.float32)
        return (inverse / np.float32(self.linear_factor)).astype(np.float32)


def _llama3_bands(
    inverse: np.ndarray, factor: float, low: float, high: float, original: float
) -> np.ndarray:
    """Slow down long wavelengths, keep short ones, blend between (Llama 3.1's scaling)."""
    wavelength = 2 * math.pi / inverse
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * inverse / factor + blend * inverse).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of one decoder.

    Attributes:
        architecture: family name, such as ``"llama"`` or ``"gemma3"``; only for people and files.
        vocabulary: number of tokens.
        hidden: width of the residual stream.
        feed_forward: width inside the gated feed-forward layer.
        layers: number of blocks.
        heads: query heads.
        kv_heads: key and value heads; each serves ``heads / kv_heads`` query heads.
        head_dim: width of a head; ``heads * head_dim`` need not equal ``hidden``.
        context: longest sequence that the model was trained for, in tokens.
        norm_epsilon: added to the mean square inside RMSNorm.
        activation: of the gate: ``silu``, ``gelu_tanh`` or ``relu2`` (squared ReLU).
        rotary: rotation of global layers.
        local_rotary: rotation of windowed layers; None means the same as ``rotary``.
        rotary_layout: ``adjacent`` rotates coordinates (2m, 2m+1), ``half`` (m, m + head_dim/2).
        layer_windows: per layer, how many positions back a query sees; 0 means all.
        embedding_scale: multiplies token embeddings (Gemma: sqrt(hidden)).
        score_scale: multiplies query-key products; None means 1/sqrt(head_dim).
        logit_scale: multiplies logits.
        attention_bias: biases on query, key and value (Qwen2).
        query_key_norm: RMSNorm on each query and key head before rotation (Qwen3, Gemma 3).
        sandwich_norms: RMSNorm after attention and after the feed-forward layer too (Gemma 3).
        sub_norms: RMSNorm before the output and down projections (BitNet b1.58).
        quantize_activations: int8 activations before ternary layers (BitNet b1.58).
        tied: the output head is the embedding matrix.
    """

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int = 2048
    architecture: str = "llama"
    norm_epsilon: float = 1e-5
    activation: Activation = "silu"
    rotary: Rotary = Rotary()
    local_rotary: Rotary | None = None
    rotary_layout: RotaryLayout = "half"
    layer_windows: tuple[int, ...] = ()
    embedding_scale: float = 1.0
    score_scale: float | None = None
    logit_scale: float = 1.0
    attention_bias: bool = False
    query_key_norm: bool = False
    sandwich_norms: bool = False
    sub_norms: bool = False
    quantize_activations: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocabulary", "hidden", "feed_forward", "layers", "heads", "kv_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.head_dim < 2 or self.head_dim % 2:
            raise InputError(f"head_dim must be even and positive, not {self.head_dim}.")
        if self.heads % self.kv_heads:
            raise InputError(
                f"{self.heads} query heads cannot share {self.kv_heads} key-value heads evenly. "
                "heads must be a multiple of kv_heads."
            )
        if not self.layer_windows:
            object.__setattr__(self, "layer_windows", (0,) * self.layers)
        if len(self.layer_windows) != self.layers:
            raise InputError(
                f"layer_windows has {len(self.layer_windows)} entries for {self.layers} layers."
            )
        if self.score_scale is None:
            object.__setattr__(self, "score_scale", self.head_dim**-0.5)

    def rotary_frequencies(self, layer: int) -> np.ndarray:
        """Return float32 ``[head_dim / 2]`` radians per position for one layer."""
        return self.window_frequencies(self.layer_windows[layer])

    def window_frequencies(self, window: int) -> np.ndarray:
        """Return the same for a layer known by its window."""
        rotary = self.local_rotary if window and self.local_rotary else self.rotary
        return rotary.frequencies(self.head_dim)

    @property
    def parameters(self) -> int:
        """Number of weights, embedding included."""
        attention = self.hidden * self.head_dim * (self.heads * 2 + self.kv_heads * 2)
        block = attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        heads = 1 if self.tied else 2
        return self.layers * block + heads * self.vocabulary * self.hidden + self.hidden

    def replace(self, **changes: Any) -> DecoderConfig:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @staticmethod
    def smollm2_135m() -> DecoderConfig:
        """SmolLM2-135M: 30 layers of width 576 (Allal et al., 2025)."""
        return DecoderConfig(
            vocabulary=49_152, hidden=576, feed_forward=1536, layers=30, heads=9, kv_heads=3,
            head_dim=64, context=8192, rotary=Rotary(base=100_000.0),
        )  # fmt: skip

    @staticmethod
    def gemma3_270m() -> DecoderConfig:
        """Gemma 3 270M: five windowed layers to each global one (Gemma Team, 2025)."""
        return DecoderConfig(
            architecture="gemma3", vocabulary=262_144, hidden=640, feed_forward=2048, layers=18,
            heads=4, kv_heads=1, head_dim=256, context=32_768, norm_epsilon=1e-6,
            activation="gelu_tanh", rotary=Rotary(base=1e6), local_rotary=Rotary(base=1e4),
            layer_windows=every_sixth_global(18, 512), embedding_scale=math.sqrt(640),
            query_key_norm=True, sandwich_norms=True,
        )  # fmt: skip

    @staticmethod
    def bitnet_2b() -> DecoderConfig:
        """BitNet b1.58 2B4T: ternary weights, int8 activations (Ma et al., 2025)."""
        return DecoderConfig(
            architecture="bitnet", vocabulary=128_256, hidden=2560, feed_forward=6912, layers=30,
            heads=20, kv_heads=5, head_dim=128, context=4096, activation="relu2",
            rotary=Rotary(base=500_000.0), sub_norms=True, quantize_activations=True,
        )  # fmt: skip


def every_sixth_global(layers: int, window: int, period: int = 6) -> tuple[int, ...]:
    """Return Gemma 3's window pattern: every ``period``-th layer sees everything."""
    return tuple(window if (layer + 1) % period else 0 for layer in range(layers))
