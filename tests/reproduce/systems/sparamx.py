"""An experiment whose process dies, as native code or a lack of memory would make it."""

import os
import sys

from trimtab.reproduce import Experiment


def run(progress, seed, full=False):
    progress("about to die")
    print("last words", file=sys.stderr, flush=True)
    os.abort()


EXPERIMENT = Experiment("sparamx", "Dies", "source", "claim", "baseline", "quick", "full", run)
