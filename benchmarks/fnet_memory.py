"""Peak memory of a training step at 2,048 tokens: ours against transformers in PyTorch.

Every contestant runs in a process of its own, which reports by how much its peak resident size
grew over that after building the model (parameters excluded, gradients included). 4 layers of
width 768, one text a batch, float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from trimtab.files import atomic_file
from trimtab.hardware import provenance

CONTESTANTS = ("FNet", "FNet in PyTorch", "BERT in PyTorch, sdpa", "BERT in PyTorch, eager")


def peak_mib() -> float:
    """Return the process's largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, length: int, depth: int) -> float:
    """Run one training step here and return how much the peak grew, in MiB."""
    if name == "FNet":
        from trimtab.reproduce.fnet import encoder_call

        short = encoder_call("fourier", 16, 1, True)
        short()
        call = encoder_call("fourier", length, depth, True)
    else:
        import torch
        from transformers import BertConfig, BertModel, FNetConfig, FNetModel

        sizes = {"num_hidden_layers": depth, "max_position_embeddings": length}
        if name.startswith("FNet"):
            model = FNetModel(FNetConfig(**sizes))
        else:
            model = BertModel(BertConfig(attn_implementation=name.split(", ")[1], **sizes))
        ids = torch.randint(5, 30_000, (1, length))
        model.eval()

        def call() -> None:
            model(ids).last_hidden_state.square().mean().backward()

    before = peak_mib()
    result = call()
    if name == "FNet":
        import jax

        jax.block_until_ready(result)
    return peak_mib() - before


def main() -> None:
    """Measure every contestant in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="512 tokens, 1 layer")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    length, depth = (512, 1) if options.quick else (2048, 4)
    if options.only:
        print(measure(options.only, length, depth))
        return
    found = {}
    for name in CONTESTANTS:
        arguments = [sys.executable, __file__, "--only", name]
        arguments += ["--quick"] if options.quick else []
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        found[name] = float(done.stdout.split()[-1])
        print(f"{name}: {found[name]:.0f} MiB, ours is {found['FNet'] / found[name]:.2f} of it")
    if options.json:
        document = {
            "benchmark": "fnet_memory",
            "command": "python benchmarks/fnet_memory.py",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "quick": options.quick,
            "tokens": length,
            "layers": depth,
            "machine": provenance(devices=False),
            "peak_growth_mib": found,
        }
        with atomic_file(options.json) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
