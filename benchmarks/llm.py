"""SmolLM2-135M on CPU: ours against llama.cpp, transformers and plain JAX, with quality.

Every thread count is one child process bound to so many cores, in which all engines load the same
GGUF file and take turns. llama.cpp also runs the file requantised to Q4_0 (its fastest format) and
Q8_0. First tokens are timed from process start. Fetch the peers first:
``python benchmarks/llama_cpp.py`` and ``trimtab pull smollm2``. ``--threads N`` races one thread
count only.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from race import Outcome, Race, command

CONTEXT, DECODED = 50, 16
THREADS = list(dict.fromkeys((1, min(2, os.cpu_count() or 1))))
QUALITY_TOKENS, QUALITY_WINDOWS = 512, 4
# Their rate at 128 tokens stands for them.
SLOW_PREFILL = ("plain JAX, float32", "transformers, float32")


def prompt_tokens(count: int) -> list[int]:
    """Return the first tokens of Python's language reference, as pydoc carries it."""
    from pydoc_data.topics import topics

    from trimtab.generate.language_model import open_checkpoint
    from trimtab.generate.tokenizer import Tokenizer

    text = "\n".join(topics[name] for name in sorted(topics))
    return Tokenizer(open_checkpoint().vocabulary).encode(text[: 12 * count + 100])[:count]


class Peer:
    """What a race needs of an engine: a fresh prompt, and some tokens after a cached one."""

    def __init__(self, name: str, note: str, prefill: Callable, decode: Callable) -> None:
        self.name, self.note, self.prefill, self.decode = name, note, prefill, decode


def our_engine(threads: int) -> Peer:
    """The native engine through the scheduler's interface."""
    from trimtab.generate.engine import build_engine
    from trimtab.generate.language_model import open_checkpoint

    engine = build_engine(open_checkpoint(), engine="native", capacity=2048, threads=threads)
    return _stepped("trimtab, Q4_1", "native kernels, bfloat16 cache", engine)


def plain_jax() -> Peer:
    """The decoder under jit with float32 weights."""
    from trimtab.generate.engine import JaxEngine
    from trimtab.generate.language_model import open_checkpoint

    engine = JaxEngine(open_checkpoint(), capacity=640, weights="float32")
    return _stepped("plain JAX, float32", "jit, warm, donated cache", engine)


def _stepped(name: str, note: str, engine: Any) -> Peer:
    zero = np.zeros(1, np.int32)

    def prefill(tokens: list[int]) -> np.ndarray:
        count = len(tokens)
        ids, places = np.asarray(tokens, np.int32), np.arange(count, dtype=np.int32)
        return engine.step(ids, np.zeros(count, np.int32), places, places[-1:])

    def decode(tokens: list[int]) -> None:
        token = zero + tokens[-1]
        for place in range(CONTEXT, CONTEXT + DECODED):
            logits = engine.step(token, zero, zero + place, zero)
            token = zero + int(logits[0].argmax())

    return Peer(name, note, prefill, decode)


def llama_cpp(kind: str, threads: int) -> Peer:
    """llama.cpp on the same file, or on a requantised one."""
    from llama_cpp import Library, LlamaCpp
    from trimtab.generate.locate import find_model

    library, path = Library(), find_model("smollm2")
    if kind != "q4_1":
        path = library.quantize(path, kind)
    model = LlamaCpp(library, path, threads)

    def prefill(tokens: list[int]) -> np.ndarray:
        model.forget()
        return model.extend(tokens)

    def decode(tokens: list[int]) -> None:
        model.forget(CONTEXT)
        token = tokens[-1]
        for _ in range(DECODED):
            token = int(model.extend([token]).argmax())

    return Peer(f"llama.cpp, {kind.upper()}", "best CPU variant, float16 cache", prefill, decode)


def transformers_engine(dtype: str, threads: int) -> Peer:
    """transformers in eager mode; it unpacks the file."""
    import torch
    import transformers

    from trimtab.generate.locate import find_model

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    path = find_model("smollm2")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, dtype)
    ).eval()
    held: dict[str, Any] = {}

    @torch.no_grad()
    def prefill(tokens: list[int]) -> Any:
        cache = transformers.DynamicCache()
        ids = torch.tensor([tokens])
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        held["cache"] = cache
        return out.logits

    @torch.no_grad()
    def decode(tokens: list[int]) -> None:
        cache = held["cache"]
        if cache.get_seq_length() > CONTEXT:
            cache.crop(CONTEXT - cache.get_seq_length())
        token = torch.tensor([tokens[-1:]])
        for _ in range(DECODED):
            token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    return Peer(f"transformers, {dtype}", "eager, weights unpacked", prefill, decode)


def contest(threads: int, quick: bool) -> list[Outcome]:
    """Race everything in this process, bound to ``threads`` cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    peers = [our_engine(threads)]
    peers += [llama_cpp(kind, threads) for kind in ("q4_1", "q4_0", "q8_0")]
    peers += [transformers_engine(kind, threads) for kind in ("float32", "bfloat16")]
    peers.append(plain_jax())
    tokens = prompt_tokens(512)
    outcomes = []
    for length in (128, 512):
        race = Race(f"prefill {length}, {threads} thread(s)", unit="tokens/s", work=length)
        for peer in peers:
            if length == 512 and peer.name in SLOW_PREFILL:
                continue
            race.enter(
                peer.name, lambda peer=peer, part=tokens[:length]: peer.prefill(part), peer.note
            )
        outcomes.append(race.run(rounds=7, warmup=1, seconds=12, quick=quick))
    for peer in peers:
        peer.prefill(tokens[:CONTEXT])
    race = Race(f"decode after {CONTEXT}, {threads} thread(s)", unit="tokens/s", work=DECODED)
    for peer in peers:
        race.enter(peer.name, lambda peer=peer: peer.decode(tokens[:CONTEXT]), peer.note)
    outcomes.append(race.run(rounds=7, warmup=1, seconds=12, quick=quick))
    return outcomes


def reuse(threads: int, quick: bool) -> list[Outcome]:
    """Race our engine against itself: eight sequences at once, and a prompt seen before."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    from trimtab.generate.engine import build_engine
    from trimtab.generate.language_model import LanguageModel, load, open_checkpoint
    from trimtab.generate.sampling import GREEDY

    engine = build_engine(open_checkpoint(), engine="native", slots=8, capacity=512)
    slots = np.arange(8, dtype=np.int32)
    tokens = np.full(8, 100, np.int32)

    def steps(count: int, width: int) -> None:
        for place in range(CONTEXT, CONTEXT + count):
            positions = np.full(width, place, np.int32)
            engine.step(tokens[:width], slots[:width], positions, slots[:width])

    together = Race(f"decode 8 sequences, {threads} thread(s)", unit="tokens/s", work=128)
    together.enter("at once", lambda: steps(16, 8))
    together.enter("one by one", lambda: steps(128, 1))
    prompt, models = prompt_tokens(1024), {}
    for name, size in (("seen before", 256 << 20), ("cold", 0)):
        models[name] = load("smollm2", context=1100, threads=threads, prefix_bytes=size)
    prefix = Race(f"first token of a 1,024-token prompt, {threads} thread(s)", unit="ms")

    def ask(model: LanguageModel) -> None:
        model.generate(prompt, options=GREEDY, max_tokens=1)

    for name, model in models.items():
        prefix.enter(name, lambda model=model: ask(model))
    return [race.run(rounds=7, warmup=1, seconds=10, quick=quick) for race in (together, prefix)]


_FIRST_TOKEN = {
    "trimtab": "from trimtab.generate import load\n"
    "load('smollm2', context=512, threads=2).generate('Hello', max_tokens=1)",
    "llama.cpp": "from pathlib import Path; from llama_cpp import Library, LlamaCpp\n"
    "model = LlamaCpp(Library(), Path(sys.argv[1]), 2, 512)\n"
    "model.extend(model.tokenize('Hello')).argmax()",
    "transformers": "import torch, transformers, os\n"
    "folder, name = os.path.split(sys.argv[1])\n"
    "keep = dict(gguf_file=name)\n"
    "keep |= dict(dtype=torch.bfloat16)\n"
    "model = transformers.AutoModelForCausalLM.from_pretrained(folder, **keep)\n"
    "model(torch.tensor([[19556]])).logits.argmax()",
}


def cold_start(name: str) -> tuple[float, float]:
    """Return seconds from process start to the first token, and the process's peak megabytes."""
    from trimtab.generate.locate import find_model

    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{_FIRST_TOKEN[name]}\n"
    # The kernel's mark of this address space; ru_maxrss would inherit the parent's.
    code += "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(find_model("smollm2"))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return time.perf_counter() - started, float(done.stdout.split()[-1]) / 1024


def first_token(quick: bool) -> Outcome:
    """Race cold processes to their first token; the file is in the page cache."""
    peaks: dict[str, float] = {}

    def start(name: str) -> None:
        _, peaks[name] = cold_start(name)

    race = Race("first token of a cold process", unit="s")
    for name in ("trimtab", "llama.cpp"):
        race.enter(name, lambda name=name: start(name))
    outcome = race.run(rounds=5, warmup=1, seconds=30, quick=quick)
    seconds, peak = cold_start("transformers")
    outcome.values.update(
        {f"peak MB, {name}": round(value) for name, value in peaks.items()}
        | {"peak MB, transformers": round(peak), "seconds, transformers": round(seconds, 1)}
    )
    return outcome


def quality() -> dict[str, float]:
    """Return perplexities and divergences from float32 arithmetic on the same text."""
    from llama_cpp import Library, LlamaCpp
    from trimtab.generate.engine import JaxEngine, build_engine
    from trimtab.generate.language_model import open_checkpoint
    from trimtab.generate.locate import find_model
    from trimtab.generate.sampling import log_softmax

    checkpoint, library = open_checkpoint(), Library()
    windows = np.asarray(prompt_tokens(QUALITY_TOKENS * QUALITY_WINDOWS), np.int32)
    windows = windows.reshape(QUALITY_WINDOWS, QUALITY_TOKENS)
    exact = JaxEngine(checkpoint, capacity=QUALITY_TOKENS, cache_dtype="float32")
    ours = build_engine(checkpoint, engine="native", capacity=QUALITY_TOKENS)

    def stepped(engine: Any) -> Callable:
        places = np.arange(QUALITY_TOKENS, dtype=np.int32)
        return lambda ids: engine.step(ids, np.zeros_like(places), places, places)

    engines = {"float32": stepped(exact), "trimtab Q4_1": stepped(ours)}
    for kind in ("q4_1", "q4_0", "q8_0"):
        path = find_model("smollm2") if kind == "q4_1" else library.quantize(
            find_model("smollm2"), kind
        )  # fmt: skip
        model = LlamaCpp(library, path, 2)
        engines[f"llama.cpp {kind.upper()}"] = lambda ids, model=model: model.all_logits(
            ids.tolist()
        )
    losses: dict[str, list[float]] = {name: [] for name in engines}
    divergences: dict[str, list[float]] = {name: [] for name in engines}
    for ids in windows:
        reference = None
        for name, run in engines.items():
            rows = log_softmax(run(ids))
            reference = rows if reference is None else reference
            losses[name].append(float(-rows[np.arange(len(ids) - 1), ids[1:]].mean()))
            gap = (np.exp(reference) * (reference - rows)).sum(-1)
            divergences[name].append(float(gap.mean()))
    values = {f"perplexity, {name}": float(np.exp(np.mean(x))) for name, x in losses.items()}
    values |= {f"KL to float32, {name}": float(np.mean(x)) for name, x in divergences.items()}
    return {name: round(value, 5) for name, value in values.items()}


def race(quick: bool) -> Iterator[Outcome]:
    """Yield every outcome; quality stands in the values of the first."""
    context = multiprocessing.get_context("spawn")
    for number, count in enumerate(THREADS):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            outcomes = pool.submit(contest, count, quick).result()
        if number == 0:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                outcomes[0].values.update(pool.submit(quality).result())
            for name, value in outcomes[0].values.items():
                print(f"  {name}: {value}")
        yield from outcomes
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            yield from pool.submit(reuse, count, quick).result()
    outcome = first_token(quick)
    for name, value in outcome.values.items():
        print(f"  {name}: {value}")
    yield outcome
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"  CPU seconds of all children: {usage.ru_utime + usage.ru_stime:.0f}")


if __name__ == "__main__":
    if "--threads" in sys.argv:
        place = sys.argv.index("--threads")
        THREADS = [int(sys.argv[place + 1])]
        del sys.argv[place : place + 2]
    command(__doc__, "llm", race)
