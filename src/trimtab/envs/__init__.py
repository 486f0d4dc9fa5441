"""Reinforcement-learning environments as pure JAX functions of states."""

from trimtab.envs.protocol import Environment as Environment
from trimtab.envs.protocol import TimeStep as TimeStep
from trimtab.envs.protocol import compiled_reset as compiled_reset
from trimtab.envs.protocol import compiled_step as compiled_step
from trimtab.envs.protocol import restart as restart
from trimtab.envs.protocol import transition as transition
from trimtab.envs.registry import make as make
from trimtab.envs.registry import register as register
from trimtab.envs.registry import registered_environments as registered_environments
from trimtab.envs.sampling import sample_action as sample_action
from trimtab.envs.wrappers.agents import ScalarReward as ScalarReward
from trimtab.envs.wrappers.auto_reset import AutoReset as AutoReset
from trimtab.envs.wrappers.batch import Batch as Batch
from trimtab.envs.wrappers.statistics import EpisodeStatistics as EpisodeStatistics
from trimtab.envs.wrappers.time_limit import TimeLimit as TimeLimit
