"""An experiment that raises."""

from trimtab.reproduce import Experiment


def run(progress, seed, full=False):
    raise ValueError("shapes (3, 4) and (5,) do not match [oops]")


EXPERIMENT = Experiment("vrgd", "Raises", "source", "claim", "baseline", "quick", "full", run)
