"""Strategies of modules and losses, each with batches that it takes.

A layer is entered once, with `constructs` (a loss with `constructs_loss`), as a function that makes one to fit an
input's shape. `layers` and `loss_classes` list what `gradflow.nn` offers, so that a test finds one without an entry.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gradflow import nn
from gradflow.errors import ArgumentError, explain
from gradflow.nn.loss import Loss
from gradflow.nn.module import Module
from gradflow.ops.creation import as_tensor
from gradflow.ops.random import default_generator
from gradflow.tensor import no_grad
from gradflow.testing.strategies import (
    Array,
    Shape,
    arrays,
    dtypes,
    generators,
    shapes,
    spread,
    stretchable_shapes,
)

Batch = tuple[Array, ...]
Takes = Callable[[Any, Shape], SearchStrategy[Array]]


class _Entry(NamedTuple):
    """How a layer is made, for inputs of at least and at most some numbers of axes (the batch's one among them).

    A layer that takes no float arrays brings a strategy of what it takes, of a module and a shape.
    """

    make: Callable[[DrawFn, Shape], Module]
    min_dims: int
    max_dims: int
    takes: Takes | None = None


MODULES: dict[type[Module], _Entry] = {}
LOSSES: dict[type[Loss], Callable[[DrawFn, Shape], tuple[Loss, SearchStrategy[Batch]]]] = {}
_BATCHES: WeakKeyDictionary[Module, SearchStrategy[Batch]] = WeakKeyDictionary()


def constructs(
    layer: type[Module], *, min_dims: int = 1, max_dims: int = 4, takes: Takes | None = None
) -> Callable[[Any], Any]:
    """Enter a function of (draw, shape) as the way to make a layer that takes a float array of that shape.

    Args:
        layer: the class.
        min_dims, max_dims: the numbers of axes that its input can have, the batch's axis among them.
        takes: for a layer that takes other arrays, a function of (module, shape) that returns a strategy of them.

    >>> from hypothesis import find
    >>> from gradflow.testing.layers import MODULES, constructs, modules
    >>> class Scale(gf.nn.Module):
    ...     def __init__(self, n):
    ...         self.factor = gf.Parameter([1.0] * n)
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> @constructs(Scale)
    ... def scale(draw, shape):
    ...     return Scale(shape[-1])
    >>> find(modules(Scale), lambda module: True).factor.shape
    (1,)
    >>> _ = MODULES.pop(Scale)
    """

    def enter(make: Callable[[DrawFn, Shape], Module]) -> Callable[[DrawFn, Shape], Module]:
        MODULES[layer] = _Entry(make, min_dims, max_dims, takes)
        return make

    return enter


def constructs_loss(loss: type[Loss]) -> Callable[[Any], Any]:
    """Enter a function of (draw, shape) as the way to make a loss, and (input, target) with inputs of that shape.

    It returns the loss and a strategy of the pairs.
    """

    def enter(make: Any) -> Any:
        LOSSES[loss] = make
        return make

    return enter


def layers() -> list[type[Module]]:
    """The classes of modules that `gradflow.nn` offers, losses and base classes apart.

    >>> from gradflow.testing.layers import layers
    >>> gf.nn.Linear in layers(), gf.nn.MSELoss in layers()
    (True, False)
    """
    return [found for found in _offered(Module) if not issubclass(found, Loss)]


def loss_classes() -> list[type[Loss]]:
    """The classes of losses that `gradflow.nn` offers.

    >>> from gradflow.testing.layers import loss_classes
    >>> gf.nn.MSELoss in loss_classes()
    True
    """
    return _offered(Loss)


def _offered(base: type[Any]) -> list[type[Any]]:
    found = [getattr(nn, name) for name in nn.__all__]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, base) and kind not in (Module, Loss)]


# ---------------------------------------------------------------- the strategies
@st.composite
def modules(draw: DrawFn, layer: type[Module] | None = None) -> Module:
    """Modules in float64: of one class, or of any, composed ones among them. `batches` draws what one takes.

    Raises:
        ArgumentError: nobody has entered how to make that class.

    >>> from hypothesis import given, strategies
    >>> from gradflow.testing.layers import batches, modules
    >>> @given(strategies.data())
    ... def test(data):
    ...     module = data.draw(modules())
    ...     (x,) = data.draw(batches(module))
    ...     assert gf.isfinite(module(x)).all()
    >>> test()
    """
    chosen = draw(st.sampled_from(layers())) if layer is None else layer
    if chosen not in MODULES:
        raise _no_entry("modules", chosen, "constructs")
    entry = MODULES[chosen]
    shape = draw(shapes(min_dims=entry.min_dims, max_dims=min(entry.max_dims, entry.min_dims + 2), min_side=1))
    module = _made(draw, lambda: entry.make(draw, shape))
    _BATCHES[module] = (entry.takes(module, shape) if entry.takes else arrays(shape)).map(lambda x: (x,))
    return module


@st.composite
def losses(draw: DrawFn, loss: type[Loss] | None = None) -> Loss:
    """Losses with options of any kind: of one class, or of any. `batches` draws pairs of (input, target) for one.

    Raises:
        ArgumentError: nobody has entered how to make that class.

    >>> from hypothesis import given, strategies
    >>> from gradflow.testing.layers import batches, losses
    >>> @given(strategies.data())
    ... def test(data):
    ...     loss = data.draw(losses())
    ...     input, target = data.draw(batches(loss))
    ...     assert gf.isfinite(loss(input, target)).all()
    >>> test()
    """
    chosen = draw(st.sampled_from(loss_classes())) if loss is None else loss
    if chosen not in LOSSES:
        raise _no_entry("losses", chosen, "constructs_loss")
    made, pairs = LOSSES[chosen](draw, draw(shapes(min_dims=1, min_side=1)))
    _BATCHES[made] = pairs
    return made


def batches(module: Module) -> SearchStrategy[Batch]:
    """What a drawn module takes: a tuple of arrays; of a loss, (input, target).

    Raises:
        ArgumentError: a module that `modules` or `losses` did not draw.
    """
    if module not in _BATCHES:
        raise ArgumentError(
            explain(
                f"batches of a {type(module).__name__} that was not drawn.",
                "what a module of your own takes cannot be guessed.",
                "arrays((5, 3)), or batches(data.draw(modules()))",
            )
        )
    return _BATCHES[module]


def _no_entry(strategy: str, kind: type[Any], decorator: str) -> ArgumentError:
    return ArgumentError(
        explain(
            f"{strategy} of {kind.__name__}, for which there is no entry.",
            "how to make one cannot be guessed.",
            f"@gradflow.testing.{decorator}({kind.__name__}) above a function of (draw, shape)",
        )
    )


def _made(draw: DrawFn, make: Callable[[], Module]) -> Module:
    """A module whose parameters depend on what is drawn alone; the stream of random numbers stays where it was."""
    generator = default_generator()
    state = generator.get_state()
    module = make().to(np.float64)
    generator.set_state(state)
    rng = draw(generators)
    with no_grad():
        for parameter in module.parameters():
            parameter[...] = spread(rng, parameter.shape)[0]
    return module


def _output_shape(module: Module, shape: Shape) -> Shape:
    with no_grad():
        out: Shape = module.to(np.float64)(as_tensor(np.zeros(shape))).shape
    return out


# ---------------------------------------------------------------- layers
@constructs(nn.Linear)
def _(draw: DrawFn, shape: Shape) -> Module:
    return nn.Linear(shape[-1], draw(st.integers(1, 3)), bias=draw(st.booleans()))


def _plain(layer: Callable[[], Module]) -> Callable[[DrawFn, Shape], Module]:
    return lambda draw, shape: layer()


for _layer in (nn.Identity, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Tanh):
    constructs(_layer)(_plain(_layer))


@constructs(nn.GELU)
def _(draw: DrawFn, shape: Shape) -> Module:
    return nn.GELU(draw(st.sampled_from(["none", "tanh"])))


@constructs(nn.Dropout)
def _(draw: DrawFn, shape: Shape) -> Module:
    return nn.Dropout(draw(st.sampled_from([0.0, 0.5, 0.2, 1.0])))


@constructs(nn.LayerNorm)
def _(draw: DrawFn, shape: Shape) -> Module:
    normalized = shape[draw(st.integers(0, len(shape) - 1)) :]
    affine = draw(st.booleans())
    return nn.LayerNorm(normalized, draw(st.sampled_from([1e-5, 0.1])), affine, draw(st.booleans()))


def _row_numbers(module: nn.Embedding, shape: Shape) -> SearchStrategy[Array]:
    """Indices of any integer dtype."""

    @st.composite
    def numbers(draw: DrawFn) -> Array:
        rng = draw(generators)
        return rng.integers(0, module.num_embeddings, shape, dtype=np.int64).astype(draw(dtypes("iu")))

    return numbers()


@constructs(nn.Embedding, takes=_row_numbers)
def _(draw: DrawFn, shape: Shape) -> Module:
    rows = draw(st.integers(1, 5))
    return nn.Embedding(rows, draw(st.integers(1, 3)), draw(st.none() | st.integers(-rows, rows - 1)))


@constructs(nn.Softmax)
def _(draw: DrawFn, shape: Shape) -> Module:
    return nn.Softmax(draw(st.integers(-len(shape), len(shape) - 1)))


@constructs(nn.LogSoftmax)
def _(draw: DrawFn, shape: Shape) -> Module:
    return nn.LogSoftmax(draw(st.integers(-len(shape), len(shape) - 1)))


@constructs(nn.Flatten, min_dims=2)
def _(draw: DrawFn, shape: Shape) -> Module:
    start = draw(st.integers(0, len(shape) - 1))
    return nn.Flatten(start, draw(st.integers(start, len(shape) - 1)) - len(shape) * draw(st.booleans()))


@constructs(nn.MLP)
def _(draw: DrawFn, shape: Shape) -> Module:
    widths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return nn.MLP([shape[-1], *widths], draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid])))


@constructs(nn.Sequential)
def _(draw: DrawFn, shape: Shape) -> Module:
    return _chain(draw, shape)


@constructs(nn.Residual)
def _(draw: DrawFn, shape: Shape) -> Module:
    body = _chain(draw, shape)
    same = _output_shape(body, shape) == shape
    return nn.Residual(*body, shortcut=None if same else copy.deepcopy(body))


def _chain(draw: DrawFn, shape: Shape) -> nn.Sequential:
    """Up to three layers in sequence, each made to fit what comes out of the one before."""
    chain = nn.Sequential()
    for _ in range(draw(st.integers(0, 3))):
        fitting = [
            layer
            for layer in layers()
            if layer not in (nn.Sequential, nn.Residual)
            and layer in MODULES
            and MODULES[layer].takes is None
            and MODULES[layer].min_dims <= len(shape) <= MODULES[layer].max_dims
        ]
        module = MODULES[draw(st.sampled_from(fitting))].make(draw, shape)
        chain.append(module)
        shape = _output_shape(module, shape)
    return chain


# ---------------------------------------------------------------- losses
reductions = st.sampled_from(["mean", "sum", "none"])


@st.composite
def _weights(draw: DrawFn, shape: Shape) -> Array | None:
    return draw(st.none() | arrays(shape, values="positive"))


@st.composite
def _pairs(draw: DrawFn, shape: Shape) -> Batch:
    return tuple(spread(draw(generators), shape, shape))


@st.composite
def _probabilities(draw: DrawFn, shape: Shape) -> Batch:
    return tuple(spread(draw(generators), shape, shape, low=0.05, high=0.95, positive=True))


@constructs_loss(nn.MSELoss)
def _(draw: DrawFn, shape: Shape) -> tuple[Loss, SearchStrategy[Batch]]:
    return nn.MSELoss(draw(reductions)), _pairs(shape)


@constructs_loss(nn.BCELoss)
def _(draw: DrawFn, shape: Shape) -> tuple[Loss, SearchStrategy[Batch]]:
    weight = draw(_weights(draw(stretchable_shapes(shape))))
    return nn.BCELoss(weight, draw(reductions)), _probabilities(shape)


@constructs_loss(nn.BCEWithLogitsLoss)
def _(draw: DrawFn, shape: Shape) -> tuple[Loss, SearchStrategy[Batch]]:
    weight, pos_weight = (draw(_weights(draw(stretchable_shapes(shape)))) for _ in range(2))
    loss = nn.BCEWithLogitsLoss(weight, pos_weight, draw(reductions))
    return loss, st.tuples(arrays(shape), _probabilities(shape).map(lambda pair: pair[1]))


@constructs_loss(nn.CrossEntropyLoss)
def _(draw: DrawFn, shape: Shape) -> tuple[Loss, SearchStrategy[Batch]]:
    classes = shape[1 if len(shape) > 1 else 0]
    loss = nn.CrossEntropyLoss(
        weight=draw(_weights((classes,))),
        ignore_index=draw(st.sampled_from([-100, *range(classes)])) if classes > 1 else -100,
        label_smoothing=draw(st.sampled_from([0.0, 0.1])),
        reduction=draw(reductions),
    )
    targets = _distributions(shape) if draw(st.booleans()) else _labels(shape, classes, loss.ignore_index)
    return loss, st.tuples(arrays(shape), targets)


@st.composite
def _distributions(draw: DrawFn, shape: Shape) -> Array:
    """Probabilities of the classes, on the second axis, or the only one."""
    (shares,) = spread(draw(generators), shape, positive=True)
    return np.asarray(shares / shares.sum(axis=1 if len(shape) > 1 else 0, keepdims=True))


@st.composite
def _labels(draw: DrawFn, shape: Shape, classes: int, ignore_index: int) -> Array:
    """Class numbers of any integer dtype, some of them ignored; one at least counts, as the mean of none is NaN."""
    rng = draw(generators)
    lengths = shape[:1] + shape[2:] if len(shape) > 1 else ()
    labels = rng.integers(0, classes, lengths, dtype=np.int64)
    if ignore_index < 0:
        labels = np.where(rng.random(lengths) < 0.2, ignore_index, labels)
    counting = [label for label in range(classes) if label != ignore_index]
    labels = np.asarray(labels)
    labels.reshape(-1)[0] = draw(st.sampled_from(counting))
    return labels.astype(draw(dtypes("i" if ignore_index < 0 else "iu")))
