"""An experiment with every kind of row and figure."""

import numpy as np

from trimtab.reproduce import Experiment, Result, Row, compared
from trimtab.reproduce.plot import Series, bar_chart, line_chart, picture

LENGTHS = [128, 256, 512, 1024, 2048, 4096]


def run(progress, seed, full=False):
    progress("timing both", 1, 2)
    print("a line that must not reach the reader's standard output")
    rows = (
        compared(
            "training step, length 512",
            "ms",
            baseline=np.float32(412.5),
            ours=np.float32(206.25),
            better="lower",
            at_least=1.7,
            paper="1.8x (GPU), 1.7x (TPU)",
            seeds=(seed,),
            command="trimtab reproduce fnet",
            note="batch 8, float32 <compiled>",
        ),
        compared(
            "accuracy at equal steps",
            "%",
            baseline=41.7,
            ours=39.9,
            better="higher",
            at_least=0.97,
            seeds=(seed, seed + 1),
            where="a simulated mesh of 8 devices",
        ),
        Row("parameters", "million", paper=83, baseline=109.5, ours=82.9),
    )
    lines = line_chart(
        "Training step by length",
        "sequence length, tokens",
        "ms a step",
        [
            Series("FNet", LENGTHS, [10, 20, 42, 90, 190, 420], low=[9] * 6, high=[500] * 6),
            Series("BERT & others", LENGTHS, [14, 30, 75, 200, 600, None], dashed=True),
        ],
        log_x=True,
        log_y=True,
    )
    bars = bar_chart(
        "Memory",
        "GiB",
        ["length 512", "a label too long for its place to be shown"],
        {"FNet": [0.8, 2.2], "BERT": [1.6, None]},
    )
    pixels = np.arange(600, dtype=np.uint8).reshape(10, 20, 3)
    return Result(rows, (lines, bars, picture("Pixels", "a gradient", pixels, scale=8)))


EXPERIMENT = Experiment(
    system="fnet",
    title="Mixing tokens with Fourier transforms",
    source="Authors, venue, year",
    claim="Trains faster than <BERT> & keeps its accuracy.",
    baseline="An encoder of equal shape, compiled.",
    quick="Two layers.",
    full="Twelve layers.",
    run=run,
)
