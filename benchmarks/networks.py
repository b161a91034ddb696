"""A training step described as data, from which `workloads` builds the same step for every framework.

A layer is a kind and its sizes; a residual block is a layer that holds layers. A network is a tuple of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

LR = {"adam": 1e-3, "adamw": 1e-3, "sgd": 1e-3}
MOMENTUM, DECAY = 0.9, 0.01  # of SGD and of AdamW
EPS = 1e-5  # of layer norm
WITH_ARRAYS = ("linear", "layer_norm", "embedding", "skip_gram")


class Layer(NamedTuple):
    """One layer.

    kind                sizes                    what it computes
    linear              inputs, outputs          x Wᵀ + b
    relu tanh …         –                        an activation; GELU is the approximation by tanh
    layer_norm          width                    (x − μ)/σ · w + b
    dropout             percent                  some elements as zeros
    embedding           rows, width              rows of a table
    mean                –                        the mean over axis 1: of a bag of words, after an embedding
    skip_gram           rows, width              scores of words (all columns of x but the first) as the context of a
                                                 word (the first), from one table for each role
    residual            –                        x + body(x)
    """

    kind: str
    sizes: tuple[int, ...] = ()
    body: tuple[Layer, ...] = ()

    def __str__(self) -> str:
        match self.kind:
            case "residual":
                return f"residual ({_text(self.body)})"
            case "linear":
                return "→".join(map(str, self.sizes))
        return " ".join([self.kind, "×".join(map(str, self.sizes))]).strip()


class Batch(NamedTuple):
    """Input and target, and the initial arrays of each layer that has some: weight (out, in) and bias, for example."""

    x: np.ndarray
    t: np.ndarray
    layers: list[tuple[np.ndarray, ...]]


class Workload(NamedTuple):
    """A network and how it is trained."""

    layers: tuple[Layer, ...]
    loss: str
    batch: int
    optimizer: str = "adam"
    words: int = 0  # columns of an input that holds numbers of words
    rate: float = 1.0  # times the usual learning rate of the optimizer

    @property
    def lr(self) -> float:
        return self.rate * LR[self.optimizer]

    @property
    def is_random(self) -> bool:
        """Whether a step draws random numbers, so that two frameworks need not agree."""
        return any(layer.kind == "dropout" for layer in flat(self.layers))

    def data(self) -> Batch:
        """The same random arrays at every call."""
        rng = np.random.default_rng(0)
        leaves = list(flat(self.layers))
        gain = 2 if {"relu", "gelu"} & {layer.kind for layer in leaves} else 1
        layers = [arrays for layer in leaves if (arrays := _initial(layer, gain, rng))]
        first = leaves[0].sizes[0]
        if self.words:
            x: np.ndarray = rng.integers(0, first, (self.batch, self.words))
            return Batch(x, self._targets(rng, rng.standard_normal((self.batch, 2))), layers)
        x = rng.standard_normal((self.batch, first)).astype(np.float32)
        return Batch(x, self._targets(rng, x), layers)

    def _targets(self, rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
        """Classes at random; or what the product of the first two inputs is, or whether it is positive."""
        if self.loss == "cross_entropy":
            return rng.integers(0, self.outputs, self.batch)
        product = np.repeat(x[:, :1] * x[:, 1:2], self.outputs, axis=1)
        return (product if self.loss == "mse_loss" else product > 0).astype(np.float32)

    @property
    def outputs(self) -> int:
        if self.layers[-1].kind == "skip_gram":
            return self.words - 1
        return next(layer.sizes[1] for layer in reversed(list(flat(self.layers))) if layer.kind == "linear")

    def operations(self) -> int:
        """Floating-point operations of a step's matrix products: y = x Wᵀ, and the gradients by W and by x."""
        leaves = list(flat(self.layers))
        products = sum(3 * layer.sizes[0] * layer.sizes[1] for layer in leaves if layer.kind == "linear")
        if leaves[0].kind == "linear":  # nobody asks for the gradient by the data
            products -= leaves[0].sizes[0] * leaves[0].sizes[1]
        return 2 * self.batch * products

    def __str__(self) -> str:
        rest = "" if self.optimizer == "adam" else f", {self.optimizer}"
        return f"{_text(self.layers)}, {self.loss}, batch {self.batch}{rest}"


def _text(layers: tuple[Layer, ...]) -> str:
    """Blocks that begin with a layer of their own, equal ones counted: 20 × [64→64 relu], 64→10."""
    blocks: list[str] = []
    for layer in layers:
        if blocks and layer.kind in ("relu", "tanh", "sigmoid", "gelu", "layer_norm", "dropout", "mean"):
            blocks[-1] += f" {layer}"
        else:
            blocks.append(str(layer))
    runs = [(block, len(list(equal))) for block, equal in groupby(blocks)]
    return ", ".join(block if count == 1 else f"{count} × [{block}]" for block, count in runs)


def flat(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """The layers that hold no others, in their order: that of the parameters in every framework."""
    for layer in layers:
        if layer.body:
            yield from flat(layer.body)
        else:
            yield layer


def _initial(layer: Layer, gain: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    match layer:
        case Layer("linear", (n, m)):
            return rng.normal(0, np.sqrt(gain / n), (m, n)).astype(np.float32), np.zeros(m, np.float32)
        case Layer("layer_norm", (n,)):
            return np.ones(n, np.float32), np.zeros(n, np.float32)
        case Layer("embedding", (rows, width)):
            return (rng.normal(0, 1, (rows, width)).astype(np.float32),)
        case Layer("skip_gram", (rows, width)):
            scale = width**-0.25  # the scores have variance 1
            return tuple(rng.normal(0, scale, (rows, width)).astype(np.float32) for _ in range(2))
    return ()


# ---------------------------------------------------------------- networks
def mlp(sizes: list[int] | tuple[int, ...], activation: str, *after: Layer) -> Iterator[Layer]:
    """Linear layers, with an activation, and what follows it, between them."""
    pairs = list(pairwise(sizes))
    for pair in pairs[:-1]:
        yield from (Layer("linear", pair), Layer(activation), *after)
    yield Layer("linear", pairs[-1])


def residual(width: int, hidden: int) -> Layer:
    """x + f(x), where f is layer norm, a wide layer with GELU, and a layer back."""
    wide, back = Layer("linear", (width, hidden)), Layer("linear", (hidden, width))
    return Layer("residual", (), (Layer("layer_norm", (width,)), wide, Layer("gelu"), back))
