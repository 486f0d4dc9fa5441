"""The published experiments, at a size that fits the machine, each beside its baseline."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from trimtab.errors import UnsupportedError, unknown_name
from trimtab.reproduce.experiment import Experiment as Experiment
from trimtab.reproduce.experiment import Figure as Figure
from trimtab.reproduce.experiment import Result as Result
from trimtab.reproduce.experiment import Row as Row
from trimtab.reproduce.experiment import compared as compared


@dataclass(frozen=True)
class System:
    """A published system that this package sets out to reproduce.

    Args:
        name: what the command calls it.
        paper: authors and year.
        subject: what it does, in a few words.
    """

    name: str
    paper: str
    subject: str

    @property
    def module(self) -> str:
        """The module that exports its ``EXPERIMENT``."""
        return f"trimtab.reproduce.{self.name.replace('-', '_')}"

    @property
    def available(self) -> bool:
        """Whether the experiment is part of this installation."""
        return importlib.util.find_spec(self.module) is not None


# In the order in which reports and lists show them.
SYSTEMS: tuple[System, ...] = (
    System("fnet", "Lee-Thorp et al. 2022", "Fourier mixing in place of attention"),
    System("lookupvit", "Koner et al. 2024", "vision transformer on a few lookup tokens"),
    System("vrgd", "Jiang et al. 2023", "large-batch training by gradient signal-to-noise"),
    System("sparamx", "AbouElhamayed et al. 2025", "sparse token generation on CPUs"),
    System("mixpe", "Zhang et al. 2024", "mixed-precision quantisation and its hardware"),
    System("deltallm", "Qi et al. 2025", "temporal-delta attention for small devices"),
    System("redco", "Tan et al. 2023", "automatic model parallelism in three functions"),
    System("pockengine", "Zhu et al. 2023", "sparse, compiled training at the edge"),
    System("tensorflow", "Abadi et al. 2016", "stateful dataflow graphs across devices"),
    System("streaming-sdpa", "Sohn et al. 2024", "attention on streaming dataflow hardware"),
    System("jumanji", "Bonnet et al. 2024", "reinforcement-learning environments in JAX"),
    System("katago", "Wu 2019", "accelerated self-play learning in Go"),
    System("biggan", "Li et al. 2020", "re-purposing GANs by tuning class embeddings"),
)


def find(name: str) -> System:
    """Return the system of that name.

    Raises:
        UnknownNameError: no system is called so.
    """
    for system in SYSTEMS:
        if system.name == name:
            return system
    raise unknown_name("system", name, (system.name for system in SYSTEMS))


def load(name: str) -> Experiment:
    """Import the experiment of a system.

    Raises:
        UnknownNameError: no system is called so.
        UnsupportedError: its experiment is not part of this installation.
    """
    system = find(name)
    if not system.available:
        raise UnsupportedError(f"{name} is not available: its experiment has not landed yet.")
    return importlib.import_module(system.module).EXPERIMENT
