"""Neural networks: modules, layers, losses, initial values and utilities."""

from typing import TYPE_CHECKING, NoReturn

from gradflow.errors import explain
from gradflow.nn import init, utils
from gradflow.nn.activation import GELU, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Tanh
from gradflow.nn.containers import MLP, Residual, Sequential
from gradflow.nn.dropout import Dropout
from gradflow.nn.embedding import Embedding
from gradflow.nn.flatten import Flatten
from gradflow.nn.linear import Identity, Linear
from gradflow.nn.loss import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, Loss, MSELoss
from gradflow.nn.module import Buffer, Module
from gradflow.nn.normalization import LayerNorm
from gradflow.nn.utils import functional_call
from gradflow.tensor import Parameter

__all__ = [
    "GELU", "MLP", "BCELoss", "BCEWithLogitsLoss", "Buffer", "CrossEntropyLoss", "Dropout", "Embedding", "Flatten",
    "Identity", "LayerNorm", "Linear", "LogSoftmax", "Loss", "MSELoss", "Module", "Parameter", "ReLU", "Residual",
    "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh", "functional_call", "init", "utils",
]  # fmt: skip

if not TYPE_CHECKING:  # where it would let every misspelt name pass

    def __getattr__(name: str) -> NoReturn:
        mistake = f"module 'gradflow.nn' has no attribute {name!r}"
        if name in ("ModuleList", "ModuleDict", "ParameterList", "ParameterDict"):
            mistake = explain(
                f"{mistake}.",
                "a Module finds what stands in Python's own lists, tuples and dicts.",
                "self.layers = [nn.Linear(10, 10), nn.Linear(10, 1)]",
            )
        raise AttributeError(mistake)
