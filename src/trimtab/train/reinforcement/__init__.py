"""Actor-critic training in the environments of :mod:`trimtab.envs`."""

from trimtab.train.reinforcement.agents import greedy_agent as greedy_agent
from trimtab.train.reinforcement.agents import learned_agent as learned_agent
from trimtab.train.reinforcement.agents import random_agent as random_agent
from trimtab.train.reinforcement.evaluation import Evaluation as Evaluation
from trimtab.train.reinforcement.evaluation import evaluate as evaluate
from trimtab.train.reinforcement.networks import ActorCritic as ActorCritic
from trimtab.train.reinforcement.networks import make_network as make_network
from trimtab.train.reinforcement.settings import Settings as Settings
from trimtab.train.reinforcement.settings import settings_for as settings_for
from trimtab.train.reinforcement.trainer import Trainer as Trainer
from trimtab.train.reinforcement.trainer import train as train
