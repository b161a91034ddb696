"""Optimizers: pure update rules over flat buffers that hold all parameters of a dtype."""

from gradflow.optim.adam import Adam, AdamW
from gradflow.optim.optimizer import Optimizer, ParamGroup
from gradflow.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "ParamGroup"]
