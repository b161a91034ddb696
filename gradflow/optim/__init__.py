"""Optimizers (pure update rules over flat buffers that hold all parameters of a dtype; L-BFGS) and schedules."""

from gradflow.optim import lr_scheduler
from gradflow.optim.adam import Adam, AdamW
from gradflow.optim.lbfgs import LBFGS
from gradflow.optim.optimizer import Optimizer, ParamGroup
from gradflow.optim.sgd import SGD

__all__ = ["LBFGS", "SGD", "Adam", "AdamW", "Optimizer", "ParamGroup", "lr_scheduler"]
