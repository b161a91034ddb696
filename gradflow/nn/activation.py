"""Activations as layers; the functions are `gf.relu`, `gf.tanh` and so on."""

from __future__ import annotations

from gradflow.arguments import choice, integer
from gradflow.nn.module import Module
from gradflow.ops.elementwise import gelu, relu, sigmoid, silu, tanh
from gradflow.ops.neural import log_softmax, softmax
from gradflow.tensor import Tensor


class ReLU(Module):
    """The rectified linear unit, element by element: y = max(0, x).

    >>> gf.nn.ReLU()(gf.tensor([-1.0, 2.0]))
    tensor([0., 2.])

    Reference: Nair and Hinton, *Rectified Linear Units Improve Restricted Boltzmann Machines*, ICML 2010.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return max(0, x)."""
        return relu(x)


class GELU(Module):
    """The Gaussian error linear unit, element by element: y = x Φ(x), with Φ the normal distribution.

    Args:
        approximate: "none", or "tanh" for y = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))).

    Raises:
        ArgumentError: another `approximate`.

    >>> gf.nn.GELU()(gf.tensor([-1.0, 1.0]))
    tensor([-0.15865...,  0.84134...])

    Reference: Hendrycks and Gimpel, *Gaussian Error Linear Units*, 2016.
    """

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = choice("GELU", "approximate", approximate, ("none", "tanh"))

    def forward(self, x: Tensor) -> Tensor:
        """Return x Φ(x)."""
        return gelu(x, approximate=self.approximate)


class SiLU(Module):
    """The sigmoid-weighted linear unit, also called swish, element by element: y = x σ(x) = x / (1 + e⁻ˣ).

    >>> gf.nn.SiLU()(gf.tensor([-1.0, 1.0]))
    tensor([-0.26894...,  0.73105...])

    Reference: Elfwing, Uchibe and Doya, *Sigmoid-Weighted Linear Units for Neural Network Function Approximation in
    Reinforcement Learning*, Neural Networks 107, 2018.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x σ(x)."""
        return silu(x)


class Tanh(Module):
    """The hyperbolic tangent, element by element: y = (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ).

    >>> gf.nn.Tanh()(gf.tensor([0.0]))
    tensor([0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x)."""
        return tanh(x)


class Sigmoid(Module):
    """The logistic function, element by element: y = 1 / (1 + e⁻ˣ).

    >>> gf.nn.Sigmoid()(gf.tensor([0.0]))
    tensor([0.5])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return σ(x)."""
        return sigmoid(x)


class Softmax(Module):
    """Probabilities from scores, along an axis: yₖ = exp(xₖ) / Σⱼ exp(xⱼ).

    Train on the scores themselves, with `CrossEntropyLoss`: it takes the softmax with them and stays exact.

    Args:
        axis: over which the probabilities sum to 1.

    >>> gf.nn.Softmax()(gf.tensor([[1.0, 1.0]]))
    tensor([[0.5, 0.5]])
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = integer("Softmax", "axis", axis, fix="nn.Softmax(axis=-1)")

    def forward(self, x: Tensor) -> Tensor:
        """Return the softmax of x."""
        return softmax(x, axis=self.axis)


class LogSoftmax(Module):
    """Log-probabilities from scores, along an axis: yₖ = xₖ − ln Σⱼ exp(xⱼ).

    Args:
        axis: over which the probabilities sum to 1.

    >>> gf.nn.LogSoftmax()(gf.tensor([[0.0, 0.0]]))
    tensor([[-0.6931..., -0.6931...]])
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = integer("LogSoftmax", "axis", axis, fix="nn.LogSoftmax(axis=-1)")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the softmax of x."""
        return log_softmax(x, axis=self.axis)
