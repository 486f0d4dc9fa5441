"""FNet: encoders that mix tokens by a Fourier transform, raced with BERT and trained beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import FileFormatError
from trimtab.progress import Progress
from trimtab.reproduce.experiment import Experiment, Figure, Result, Row, compared
from trimtab.reproduce.plot import Series, line_chart
from trimtab.reproduce.race import Outcome, Race

_COMMAND = "trimtab reproduce fnet"
_VOCABULARY = 32_000


@dataclass(frozen=True)
class Size:
    """What one size of the experiment runs.

    Args:
        depth: layers of the raced encoders, which have the published width of 768.
        lengths: input lengths of the races.
        seconds: of timing for each race, compilation apart.
        memory_lengths: input lengths at which training memory is compared.
        mixers: the encoders that are trained, by name.
        seeds: training runs of each.
        train: training texts.
        test: held-out texts.
        steps: optimizer steps.
        batch: texts a step.
        pretraining_steps: optimizer steps of masked-word training; 0 leaves it out.
    """

    depth: int
    lengths: tuple[int, ...]
    seconds: float
    memory_lengths: tuple[int, ...]
    mixers: tuple[str, ...]
    seeds: int
    train: int
    test: int
    steps: int
    batch: int
    pretraining_steps: int


QUICK = Size(
    depth=2,
    lengths=(512, 2048),
    seconds=4.0,
    memory_lengths=(512, 2048),
    mixers=("attention", "fourier", "identity"),
    seeds=1,
    train=9_600,
    test=2_000,
    steps=150,
    batch=64,
    pretraining_steps=0,
)
FULL = Size(
    depth=12,
    lengths=(128, 256, 512, 1024, 2048, 4096),
    seconds=60.0,
    memory_lengths=(512, 2048),
    mixers=("attention", "hybrid", "fourier", "linear", "random", "identity"),
    seeds=3,
    train=40_000,
    test=5_000,
    steps=312,
    batch=128,
    pretraining_steps=1_000,
)


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
    return Result(tuple(rows + quality), (*figures, curves))


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
    note = f"{size.depth} layers of width 768, batch 1, float32"
    contest.enter("FNet", encoder_call("fourier", length, size.depth, training), note)
    peers = torch_calls(length, size.depth, training)
    for name, call in peers.items():
        contest.enter(name, call, note)
    if length <= 512 or not peers:
        bert = encoder_call("attention", length, size.depth, training)
        contest.enter("BERT in JAX", bert, note)
    return contest.run(rounds=41, seconds=size.seconds)


def encoder_call(mixer: str, length: int, depth: int, training: bool) -> Callable[[], Any]:
    """Return a compiled pass of one of our encoders, of published width."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from trimtab.models import Encoder, bert_base, fnet_base

    sizes = {"depth": depth, "max_tokens": length}
    config = fnet_base(**sizes) if mixer == "fourier" else bert_base(**sizes)
    arrays, rest = eqx.partition(Encoder(config, key=jax.random.key(0)), eqx.is_array)
    ids = jax.random.randint(jax.random.key(1), (1, length), 5, 30_000)

    def hidden(arrays, ids):
        return jax.vmap(eqx.combine(arrays, rest))(ids).hidden

    def loss(arrays, ids):
        return jnp.square(hidden(arrays, ids)).mean()

    compiled = jax.jit(jax.grad(loss) if training else hidden)
    return lambda: compiled(arrays, ids)


def torch_calls(length: int, depth: int, training: bool) -> dict[str, Callable[[], Any]]:
    """Return the same passes of `transformers`' encoders, or none where it is not installed."""
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

    return {
        "BERT in PyTorch": call(BertModel(BertConfig(**fused, **sizes)).eval()),
        "FNet in PyTorch": call(FNetModel(FNetConfig(**sizes)).eval()),
    }


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
        note=f"temporary buffers of the compiled step, {size.depth} layers of width 768, batch 1; "
        "baseline: BERT in JAX. The paper's memory table is for GPUs and not checked here",
    )


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


# Quality


_NAMES = {
    "attention": "BERT",
    "hybrid": "FNet-Hybrid (attention in the last 2 layers)",
    "fourier": "FNet",
    "linear": "Linear mixing",
    "random": "Random mixing",
    "identity": "no mixing (feed-forward only)",
}


def labelled_corpus() -> Any:
    """Return WordNet's glosses, or the docstrings of installed packages where it is absent."""
    from trimtab.train.language import package_docstrings, wordnet_glosses

    try:
        return wordnet_glosses()
    except FileFormatError:
        return package_docstrings()


def quality_rows(
    progress: Progress, seed: int, size: Size, command: str
) -> tuple[list[Row], Figure]:
    """Train encoders of equal shape for equal steps on real text and compare their accuracy."""
    from trimtab.train.language import TextClassification

    corpus = labelled_corpus()
    test = min(size.test, len(corpus) // 5)
    train = min(size.train, len(corpus) - test)
    data = TextClassification.split(
        corpus, train=train, test=test, tokens=32, words=8192, seed=seed
    )
    seeds = tuple(range(seed, seed + size.seeds))
    reached: dict[str, list[float]] = {}
    curves: dict[str, list[float]] = {}
    for mixer in size.mixers:
        for run_seed in seeds:
            progress(f"training {_NAMES[mixer]} on {data.name}, seed {run_seed}")
            score, losses = train_classifier(mixer, data, size, run_seed)
            reached.setdefault(mixer, []).append(score)
            curves.setdefault(mixer, losses)
    rows = accuracy_rows(reached, data, seeds, size, command)
    if size.pretraining_steps:
        rows += pretraining_rows(progress, corpus, size, seeds, command)
    return rows, loss_figure(curves, data.name)


def small_encoder(mixer: str, words: int, tokens: int, *, width: int, depth: int) -> Any:
    """Return the configuration of a small encoder with some mixer in all layers but a hybrid's."""
    from trimtab.models import EncoderConfig, hybrid

    return EncoderConfig(
        vocabulary=words,
        width=width,
        feed_forward=4 * width,
        depth=depth,
        heads=4,
        max_tokens=tokens,
        dropout=0.0,
        mixers=hybrid(depth, max(1, depth // 2)) if mixer == "hybrid" else mixer,
    )


def train_classifier(mixer: str, data: Any, size: Size, seed: int) -> tuple[float, list[float]]:
    """Train one encoder from scratch to classify texts.

    Returns:
        its accuracy on held-out texts, and the training loss of every tenth step.
    """
    import jax
    import optax

    from trimtab.models import Classifier, Encoder, trainable
    from trimtab.train import training_batches, training_step
    from trimtab.train.language import accuracy, classification_loss

    encoder_key, head_key, run_key = jax.random.split(jax.random.key(seed), 3)
    config = small_encoder(mixer, len(data.vocabulary), 32, width=128, depth=2)
    model = Classifier(Encoder(config, key=encoder_key), len(data.classes), key=head_key)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, size.steps // 10, size.steps)
    step = training_step(
        classification_loss, optax.adamw(schedule, weight_decay=0.01), trainable=trainable(model)
    )
    state = step.initial_state(model, run_key)
    arrays = {name: data.train[name] for name in ("ids", "segments", "labels")}
    batches = training_batches(arrays, size.batch, seed=seed)
    losses = []
    for number in range(size.steps):
        state, metrics = step(state, next(batches))
        if number % 10 == 0:
            losses.append(float(metrics["loss"]))
    return accuracy(state.model, data.test), losses


def accuracy_rows(
    reached: dict[str, list[float]], data: Any, seeds: tuple[int, ...], size: Size, command: str
) -> list[Row]:
    """Compare every trained encoder with BERT."""
    mean = {mixer: 100.0 * sum(scores) / len(scores) for mixer, scores in reached.items()}
    asked = {"fourier": (0.92, "92 to 97 % of BERT on GLUE"), "hybrid": (0.97, "97 % (GLUE)")}
    majority = 100.0 * float((data.test["labels"] == _mode(data.train["labels"])).mean())
    rows = []
    for mixer, score in mean.items():
        if mixer == "attention":
            continue
        claim, paper = asked.get(mixer, (None, None))
        spread = ", ".join(f"{100 * s:.1f}" for s in reached[mixer])
        rows.append(
            compared(
                f"{data.name}, accuracy of {_NAMES[mixer]}",
                "%",
                baseline=mean["attention"],
                ours=score,
                better="higher",
                at_least=claim,
                paper=paper,
                seeds=seeds,
                command=command,
                note=f"{len(data.classes)} classes (always the largest: {majority:.1f} %), from "
                f"scratch, {size.steps} steps of {size.batch} texts, width 128, 2 layers, no "
                f"pre-training; by seed: {spread}; baseline: BERT of equal shape",
            )
        )
    return rows


def _mode(labels: Any) -> int:
    import numpy as np

    return int(np.bincount(labels).argmax())


def loss_figure(curves: dict[str, list[float]], corpus: str) -> Figure:
    """Draw the training losses of the first seed."""
    series = [
        Series(
            _NAMES[mixer],
            [10.0 * i for i in range(len(losses))],
            losses,
            dashed=mixer == "attention",
        )
        for mixer, losses in curves.items()
    ]
    return line_chart(f"Training loss on {corpus}", "step", "cross-entropy", series)


def pretraining_rows(
    progress: Progress, corpus: Any, size: Size, seeds: tuple[int, ...], command: str
) -> list[Row]:
    """Train on masked words and compare the encoders' accuracy on held-out text."""
    reached: dict[str, list[float]] = {}
    for mixer in size.mixers:
        for seed in seeds:
            progress(f"masked words, {_NAMES[mixer]}, seed {seed}")
            reached.setdefault(mixer, []).append(
                pretrain(mixer, corpus, size.pretraining_steps, seed)
            )
    mean = {mixer: 100.0 * sum(scores) / len(scores) for mixer, scores in reached.items()}
    return [
        compared(
            f"masked words of {corpus.name}, accuracy of {_NAMES[mixer]}",
            "%",
            baseline=mean["attention"],
            ours=score,
            better="higher",
            seeds=seeds,
            command=command,
            note=f"{size.pretraining_steps} steps of 16 windows of 128 tokens, width 128, 4 "
            "layers; baseline: BERT of equal shape",
        )
        for mixer, score in mean.items()
        if mixer != "attention"
    ]


def pretrain(mixer: str, corpus: Any, steps: int, seed: int) -> float:
    """Pre-train one encoder on a corpus's texts; return its masked-word accuracy on others."""
    import equinox as eqx
    import jax

    from trimtab.models import PretrainingModel, trainable
    from trimtab.train import training_step
    from trimtab.train.language import (
        pretraining_batches,
        pretraining_loss,
        pretraining_optimizer,
        train_vocabulary,
    )

    lines = list(corpus.texts)
    held_out, lines = lines[::20], [line for i, line in enumerate(lines) if i % 20]
    vocabulary = train_vocabulary(lines[:40_000], 4096, kind="wordpiece")
    sizes: dict[str, Any] = {"tokens": 128, "batch_size": 16, "predictions": 20}
    batches = pretraining_batches([lines], vocabulary, seed=seed, **sizes)
    model_key, run_key = jax.random.split(jax.random.key(seed))
    config = small_encoder(mixer, len(vocabulary), 128, width=128, depth=4)
    model = PretrainingModel(config, key=model_key)
    step = training_step(
        pretraining_loss,
        pretraining_optimizer(steps, rate=1e-3, warmup=steps // 10),
        trainable=trainable(model),
    )
    state = step.initial_state(model, run_key)
    for _ in range(steps):
        state, _ = step(state, next(batches))
    evaluate = eqx.filter_jit(lambda m, b: pretraining_loss(m, b, None)[1]["masked_accuracy"])
    tests = pretraining_batches([held_out], vocabulary, seed=0, **sizes)
    scores = [float(evaluate(state.model, next(tests))) for _ in range(20)]
    return sum(scores) / len(scores)


EXPERIMENT = Experiment(
    system="fnet",
    title="Fourier mixing in place of attention",
    source="Lee-Thorp, Ainslie, Eckstein, Ontañón: FNet: Mixing Tokens with Fourier Transforms, "
    "NAACL 2022",
    claim="92 to 97 % of BERT's accuracy on GLUE, while training 80 % (GPU) or 70 % (TPU) faster "
    "at length 512",
    baseline="BERT of equal shape: transformers' in PyTorch with fused attention, and ours in JAX; "
    "every contestant compiled or warmed up, interleaved in one process",
    quick="2 layers of the published width at lengths 512 and 2048; small encoders trained for "
    "150 steps on real text, one seed",
    full="12 layers at lengths 128 to 4096; six mixers, three seeds, on labelled text and on "
    "masked words",
    run=run,
)
