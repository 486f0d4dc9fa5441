"""FNet: encoders that mix tokens by a Fourier transform, raced with BERT and trained beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.progress import Progress
from trimtab.reproduce.experiment import Experiment, Figure, Result, Row, compared
from trimtab.reproduce.fnet_training import FULL, QUICK, Size, quality_rows
from trimtab.reproduce.plot import Series, line_chart
from trimtab.reproduce.race import Outcome, Race

_COMMAND = "trimtab reproduce fnet"
_VOCABULARY = 32_000


def run(progress: Progress, seed: int, full: bool = False) -> Result:
    """Measure the experiment; see :class:`trimtab.reproduce.experiment.Run`."""
    size = FULL if full else QUICK
    command = _COMMAND + (" --full" if full else "")
    races = []
    for length in size.lengths:
        for kind in ("inference", "training step"):
            progress(f"{kind}, length {length}")
            races.append((length, kind, race(length, size, training=kind == "training step")))
    rows = []
    for length, kind, outcome in races:
        rows += speed_rows(outcome, length, kind, size, command)
    rows += [memory_row(length, size, command) for length in size.memory_lengths]
    figures = [speed_figure(races)] if len(size.lengths) > 2 else []
    quality, curves = quality_rows(progress, seed, size, command)
    return Result(tuple(rows + quality), (*figures, *curves))


# Speed


def race(length: int, size: Size, *, training: bool) -> Outcome:
    """Time one batch of one text through encoders of equal shape, in one process.

    Args:
        length: tokens of the text.
        size: gives the depth and the time to spend.
        training: forward and backward pass instead of the forward pass alone.
    """
    kind = "forward and backward" if training else "forward"
    contest = Race(f"{kind}, {length} tokens", unit="ms", values={"tokens": length})
    note = f"{_layers(size.depth)} of width 768, batch 1, float32"
    contest.enter("FNet", encoder_call("fourier", length, size.depth, training), note)
    peers = torch_calls(length, size.depth, training)
    for name, call in peers.items():
        contest.enter(name, call, note)
    if length <= 512 or not peers:
        bert = encoder_call("attention", length, size.depth, training)
        contest.enter("BERT in JAX", bert, note)
    return contest.run(rounds=41, seconds=size.seconds)


def encoder_call(
    mixer: str, length: int, depth: int, training: bool, dtype: str = "float32"
) -> Callable[[], Any]:
    """Return a compiled pass of one of our encoders, of published width."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from trimtab.models import Encoder, bert_base, cast, fnet_base

    sizes = {"depth": depth, "max_tokens": length}
    config = fnet_base(**sizes) if mixer == "fourier" else bert_base(**sizes)
    encoder = cast(Encoder(config, key=jax.random.key(0)), dtype)
    arrays, rest = eqx.partition(encoder, eqx.is_array)
    ids = jax.random.randint(jax.random.key(1), (1, length), 5, 30_000)

    def hidden(arrays, ids):
        return jax.vmap(eqx.combine(arrays, rest))(ids).hidden

    def loss(arrays, ids):
        return jnp.square(hidden(arrays, ids)).mean()

    compiled = jax.jit(jax.grad(loss) if training else hidden)
    return lambda: compiled(arrays, ids)


def torch_calls(
    length: int, depth: int, training: bool, dtype: str = "float32"
) -> dict[str, Callable[[], Any]]:
    """Return the same passes of `transformers`' encoders, or none where it is not installed.

    Its FNet cannot compute in 16 bits, so other types give BERT alone.
    """
    try:
        import torch
        from transformers import BertConfig, BertModel, FNetConfig, FNetModel
    except ImportError:
        return {}
    sizes: dict[str, Any] = {"num_hidden_layers": depth, "max_position_embeddings": length}
    fused: dict[str, Any] = {"attn_implementation": "sdpa"}
    ids = torch.randint(5, 30_000, (1, length), generator=torch.Generator().manual_seed(1))

    def call(model: Any) -> Callable[[], Any]:
        def forward():
            with torch.no_grad():
                return model(ids).last_hidden_state

        def both():
            model.zero_grad(set_to_none=True)
            model(ids).last_hidden_state.square().mean().backward()

        return both if training else forward

    bert = BertModel(BertConfig(**fused, **sizes)).eval().to(getattr(torch, dtype))
    calls = {"BERT in PyTorch": call(bert)}
    if dtype == "float32":
        calls["FNet in PyTorch"] = call(FNetModel(FNetConfig(**sizes)).eval())
    return calls


# The only speeds that can be checked against the paper's abstract.
_PAPER = {("training step", 512): "1.8x on GPU, 1.7x on TPU"}


def speed_rows(outcome: Outcome, length: int, kind: str, size: Size, command: str) -> list[Row]:
    """Turn a race into rows: against BERT, and against the same model in PyTorch."""
    ours = outcome["FNet"].median
    names = [c.name for c in outcome.contestants[1:]]
    rows = []
    for name in names:
        claim = 1.0 if name == "FNet in PyTorch" else None
        if (kind, length) in _PAPER and name.startswith("BERT in PyTorch"):
            claim = 1.7
        rows.append(
            compared(
                f"{kind}, length {length}, against {name}",
                "ms",
                baseline=outcome[name].median,
                ours=ours,
                better="lower",
                at_least=claim,
                paper=_PAPER.get((kind, length)) if name.startswith("BERT") else None,
                command=command,
                note=f"{outcome[name].note}; PyTorch's BERT uses fused attention; median of "
                f"{outcome[name].samples} interleaved rounds",
            )
        )
    return rows


def speed_figure(races: Sequence[tuple[int, str, Outcome]]) -> Figure:
    """Draw how many times faster than PyTorch's BERT the Fourier encoder is, by length."""
    series = []
    for kind in ("inference", "training step"):
        chosen = [(length, outcome) for length, k, outcome in races if k == kind]
        for name in ("BERT in PyTorch", "FNet in PyTorch"):
            if all(any(c.name == name for c in outcome.contestants) for _, outcome in chosen):
                series.append(
                    Series(
                        f"{kind}, {name}",
                        [length for length, _ in chosen],
                        [outcome.ratio(name) for _, outcome in chosen],
                        dashed=name.startswith("FNet"),
                    )
                )
    if not series:
        name = "BERT in JAX"
        chosen = [(length, outcome) for length, k, outcome in races if k == "training step"]
        series = [Series(name, [n for n, _ in chosen], [o.ratio(name) for _, o in chosen])]
    return line_chart(
        "How many times faster than the compared encoder", "tokens", "times", series, log_x=True
    )


# Memory


def memory_row(length: int, size: Size, command: str) -> Row:
    """Compare the buffers that XLA needs for a training step, parameters apart."""
    return compared(
        f"training memory, length {length}",
        "MiB",
        baseline=training_mebibytes("attention", length, size.depth),
        ours=training_mebibytes("fourier", length, size.depth),
        better="lower",
        command=command,
        note=f"temporary buffers of the compiled step, {_layers(size.depth)} of width 768, batch "
        "1; baseline: BERT in JAX. The paper's memory table is for GPUs and not checked here",
    )


def _layers(depth: int) -> str:
    return "1 layer" if depth == 1 else f"{depth} layers"


def training_mebibytes(mixer: str, length: int, depth: int) -> float:
    """Return the temporary memory of a compiled forward and backward pass."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from trimtab.models import Encoder, bert_base, fnet_base

    sizes = {"depth": depth, "max_tokens": length}
    config = fnet_base(**sizes) if mixer == "fourier" else bert_base(**sizes)
    shapes = eqx.filter_eval_shape(Encoder, config, key=jax.random.key(0))
    arrays, rest = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def loss(arrays, ids):
        return jnp.square(jax.vmap(eqx.combine(arrays, rest))(ids).hidden).mean()

    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(arrays, ids).compile()
    analysis = compiled.memory_analysis()
    return 0.0 if analysis is None else analysis.temp_size_in_bytes / 2**20


EXPERIMENT = Experiment(
    system="fnet",
    title="Fourier mixing in place of attention",
    source="Lee-Thorp, Ainslie, Eckstein, Ontañón: FNet: Mixing Tokens with Fourier Transforms, "
    "NAACL 2022",
    claim="92 to 97 % of BERT's accuracy on GLUE, while training 80 % (GPU) or 70 % (TPU) faster "
    "at length 512",
    baseline="BERT of equal shape: transformers' in PyTorch with fused attention, and ours in JAX; "
    "every contestant compiled or warmed up, interleaved in one process",
    quick="one layer of the published width at lengths 512 and 2048; small encoders trained for "
    "150 steps on real text, one seed",
    full="12 layers at lengths 128 to 4096; six mixers, three seeds, on labelled text and on "
    "masked words",
    run=run,
)
