"""An experiment that needs a package which nobody has."""

from trimtab.errors import require_extra
from trimtab.reproduce import Experiment


def run(progress, seed, full=False):
    require_extra("no_such_package", "hardware", "The simulated array")


EXPERIMENT = Experiment("mixpe", "Lacks", "source", "claim", "baseline", "quick", "full", run)
