"""What is checked: a function as one of a flat float64 vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gradflow.arguments import integers, shown
from gradflow.backend import Backend, resolve
from gradflow.errors import ArgumentError, explain
from gradflow.nn.module import Module
from gradflow.nn.utils import functional_call
from gradflow.ops.creation import make_tensor
from gradflow.tensor import Tensor, no_grad
from gradflow.transforms import flatten, vjp

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]


class Subject:
    """f as a function of one float64 vector: its differentiable inputs, one after the other."""

    def __init__(
        self, f: Function, inputs: Sequence[Any], wrt: int | Sequence[int] | None, backend: str | Backend | None
    ) -> None:
        self.name, self.given, self.is_module = name_of(f), inputs, isinstance(f, Module)
        self.backend = resolve(backend)
        if isinstance(f, Module):
            module = f
            f, inputs = _with_parameters(module), (*inputs, dict(Module.named_parameters(module)))
            wrt = None if wrt is None else (*_positions(wrt, len(inputs) - 1), len(inputs) - 1)
        self.f, self.inputs = f, inputs
        chosen = set(range(len(inputs))) if wrt is None else set(_positions(wrt, len(inputs)))
        leaves, self.rebuild = flatten(list(inputs))
        labels = list(_labels(inputs))
        self.leaves = [to_host(leaf) for leaf in leaves]
        self.places = [i for i, leaf in enumerate(self.leaves) if _floating(leaf) and labels[i][0] in chosen]
        self.every_label = [label for _, label in labels]
        self.labels = [self.every_label[i] for i in self.places]
        self.constants: list[tuple[str, Tensor, Array]] = []  # the other arrays of the last call, and what they held
        if not self.places:
            raise ArgumentError(
                explain(
                    f"a check of {self.name} with nothing to differentiate.",
                    "derivatives are taken with respect to floating-point tensors and arrays.",
                    "testing.gradcheck(f, np.ones(3))",
                )
            )
        arrays = [np.asarray(self.leaves[i], np.float64) for i in self.places]
        self.shapes = [a.shape for a in arrays]
        self.ends = np.cumsum([a.size for a in arrays])
        self.x = np.concatenate([a.reshape(-1) for a in arrays])

    def split(self, flat: Array) -> list[Array]:
        """A flat vector as one array for every differentiable input."""
        parts = np.split(flat, self.ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def place(self, i: int) -> tuple[str, int, tuple[int, ...]]:
        """Which input element i of the flat vector belongs to, its flat index there, and its index."""
        which = int(np.searchsorted(self.ends, i, side="right"))
        at = int(i - (self.ends[which - 1] if which else 0))
        return self.labels[which], at, tuple(int(k) for k in np.unravel_index(at, self.shapes[which]))

    def tensors(self, x: Array) -> list[Tensor]:
        """New tensors at a point."""
        return [make_tensor(part, backend=self.backend) for part in self.split(x)]

    def call(self, *variables: Tensor) -> list[Tensor]:
        """The floating-point results of f, with tensors in place of the differentiable inputs."""
        given = list(self.leaves)
        for place, variable in zip(self.places, variables, strict=True):
            given[place] = variable
        self.constants = []
        for i, host in enumerate(given):
            if isinstance(host, np.ndarray):
                given[i] = make_tensor(host, backend=self.backend)
                self.constants.append((self.every_label[i], given[i], host))
        outs, _ = flatten(self.f(*self.rebuild(given)))
        return [t for t in outs if isinstance(t, Tensor) and t.dtype.kind == "f"]

    def values(self, x: Array) -> list[Array]:
        """The results at a point, on the host."""
        with no_grad():
            return [np.array(t.numpy(), np.float64) for t in self.call(*self.tensors(x))]


def nothing_returned(name: str) -> ArgumentError:
    """The error for a function none of whose results can be differentiated."""
    return ArgumentError(
        explain(
            f"{name} returned no tensor of floating-point numbers.",
            "derivatives are those of such results; a Python number or a NumPy array has left the graph.",
            "return the tensor itself, not t.item() or t.numpy()",
        )
    )


def name_of(f: Function) -> str:
    """How a message calls a function."""
    if isinstance(f, Module):
        return type(f).__name__
    name = getattr(f, "__name__", type(f).__name__)
    return "f" if name == "<lambda>" else str(name)


def _with_parameters(module: Module) -> Function:
    return lambda *args: functional_call(module, args[-1], *args[:-1])


def _positions(wrt: int | Sequence[int], given: int) -> tuple[int, ...]:
    found = integers(f"wrt={shown(wrt)}.", wrt, why="it is the position of an input, or several.", fix="wrt=(0, 1)")
    for i in found:
        if not -given <= i < given:
            raise ArgumentError(
                explain(f"wrt={wrt!r} for {given} inputs.", "inputs are counted from 0.", "wrt=0, or wrt=(0, 1)")
            )
    return tuple(i % given for i in found)


def to_host(leaf: Any) -> Any:
    """A tensor or array as a NumPy copy in C order; anything else as it is."""
    if isinstance(leaf, Tensor):
        return np.array(leaf.detach().numpy(), order="C")
    return np.array(leaf, order="C") if isinstance(leaf, np.ndarray | np.floating) else leaf


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"


def _labels(inputs: Sequence[Any]) -> Iterator[tuple[int, str]]:
    for i, value in enumerate(inputs):
        yield from ((i, f"argument {i}{path}") for path in _paths(value))


def _paths(tree: Any, path: str = "") -> Iterator[str]:
    if isinstance(tree, dict | list | tuple):
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _paths(child, f"{path}[{key!r}]")
    else:
        yield path


def derivative_of(subject: Subject, order: int) -> tuple[Function, list[Array]]:
    """(x, u) ↦ uᵀJ(x), as a function to check at its own first order, and arguments for it; repeated for each order."""
    function: Function = subject.call
    arguments = subject.split(subject.x)
    rng = np.random.default_rng(0)
    for _ in range(order - 1):
        with no_grad():
            outs = function(*(make_tensor(a, backend=subject.backend) for a in arguments))
        if not outs:
            raise nothing_returned(subject.name)
        cotangents = [rng.uniform(-1.0, 1.0, t.shape) for t in outs]
        function, arguments = _pulled(function, len(arguments)), [*arguments, *cotangents]
    return function, arguments


def _pulled(function: Function, n: int) -> Function:
    def pull(*args: Tensor) -> list[Tensor]:
        _, pullback = vjp(lambda *xs: tuple(function(*xs)), *args[:n])
        return list(pullback(tuple(args[n:])))

    return pull
