"""Whole encoders of published width: ours against transformers' FNet and BERT in PyTorch.

One text a batch, float32, both frameworks on all cores. Depth is cut with length so that a run
stays under four minutes: 12 layers up to 512 tokens, 2 at 2,048, 1 at 4,096 (1 with --quick).
PyTorch's BERT uses fused (sdpa) attention. In bfloat16, which transformers' FNet cannot compute in,
ours is raced with its BERT in both types.
"""

from __future__ import annotations

from collections.abc import Iterator

from race import Outcome, Race, command
from trimtab.reproduce.fnet import encoder_call, torch_calls

DEPTHS = {128: 12, 512: 12, 2048: 2, 4096: 1}


def race(quick: bool) -> Iterator[Outcome]:
    """Yield forward and training races at every length."""
    for length, depth in DEPTHS.items():
        depth = 1 if quick else depth
        for training in (False, True):
            kind = "forward and backward" if training else "forward"
            contest = Race(
                f"{kind}, {length} tokens, {depth} layers",
                unit="ms",
                values={"tokens": length, "layers": depth, "dtype": "float32", "batch": 1},
            )
            contest.enter("FNet", encoder_call("fourier", length, depth, training))
            for name, call in torch_calls(length, depth, training).items():
                contest.enter(name, call, "fused attention" if "BERT" in name else "")
            yield contest.run(rounds=5, warmup=1, quick=quick)
    yield bfloat16_race(512, 1 if quick else 12).run(rounds=5, warmup=1, quick=quick)


def bfloat16_race(length: int, depth: int) -> Race:
    """Enter our bfloat16 encoder, and PyTorch's BERT in bfloat16 and float32."""
    contest = Race(
        f"forward in bfloat16, {length} tokens, {depth} layers",
        unit="ms",
        values={"tokens": length, "layers": depth, "dtype": "bfloat16", "batch": 1},
    )
    contest.enter("FNet", encoder_call("fourier", length, depth, False, "bfloat16"))
    for dtype in ("bfloat16", "float32"):
        call = torch_calls(length, depth, False, dtype)["BERT in PyTorch"]
        contest.enter(f"BERT in PyTorch, {dtype}", call, "fused attention")
    return contest


if __name__ == "__main__":
    command(__doc__, "fnet", race)
