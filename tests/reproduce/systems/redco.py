"""An experiment that waits to be interrupted."""

import time

from trimtab.reproduce import Experiment


def run(progress, seed, full=False):
    progress("waiting")
    time.sleep(60)


EXPERIMENT = Experiment("redco", "Waits", "source", "claim", "baseline", "quick", "full", run)
