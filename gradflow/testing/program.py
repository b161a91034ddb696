"""Random differentiable programs: data that any array namespace can run, and a strategy of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from gradflow.errors import ArgumentError, explain
from gradflow.testing.instructions import INSTRUCTIONS, Builder, Step
from gradflow.testing.strategies import Array, Shape, generators

SHAPES: tuple[Shape, ...] = ((3,), (), (2, 3), (2, 2, 3), (3, 3), (4,), (1, 3), (2, 1))
"""Of the first input; the others broadcast to it."""


class Program:
    """A composed function of arrays, as data: value i is the i-th input, or what a later step computes.

    The result is the value of the last step. Its `repr` is Python that makes the same program again.

    Attributes:
        inputs: float64 arrays at which it is finite and smooth.
        steps: in order of execution.

    >>> from gradflow.testing.program import Program, Step
    >>> program = Program((np.array([1.0, 2.0]),), (Step("square", (0,)), Step("sum", (1,))))
    >>> program(np, *program.inputs), program(gf, *program.inputs)
    (np.float64(5.0), tensor(5., dtype=float64))
    >>> gf.grad(lambda x: program(gf, x))(gf.tensor(program.inputs[0]))
    tensor([2., 4.], dtype=float64)
    """

    def __init__(self, inputs: Sequence[Any], steps: Sequence[Step]) -> None:
        self.inputs: tuple[Array, ...] = tuple(np.asarray(x, np.float64) for x in inputs)
        self.steps = tuple(steps)

    def __call__(self, xp: Any, *arrays: Any) -> Any:
        """Run the steps with the functions of a namespace, on arrays in place of the inputs.

        Args:
            xp: `gradflow`, `numpy`, or anything with functions of these names.
            arrays: xp's own, one for each input.

        Raises:
            ArgumentError: another number of arrays.
        """
        if len(arrays) != len(self.inputs):
            raise ArgumentError(
                explain(
                    f"a program of {len(self.inputs)} inputs was called with {len(arrays)} arrays.",
                    "there is one for each input.",
                    "program(gf, *map(gf.tensor, program.inputs))",
                )
            )
        values = list(arrays)
        for step in self.steps:
            values.append(step.run(xp, values))
        return values[-1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program):
            return NotImplemented
        return (
            self.steps == other.steps
            and len(self.inputs) == len(other.inputs)
            and all(np.array_equal(a, b) for a, b in zip(self.inputs, other.inputs, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # it is compared by value, and holds arrays

    def __repr__(self) -> str:
        inputs = "".join(f"        np.array({x.tolist()!r}),\n" for x in self.inputs)
        steps = "".join(f"        {step!r},\n" for step in self.steps)
        return f"Program(\n    inputs=(\n{inputs}    ),\n    steps=(\n{steps}    ),\n)"


@st.composite
def programs(
    draw: DrawFn,
    *,
    max_steps: int = 8,
    scalar: bool | None = None,
    instructions: Collection[str] | None = None,
) -> Program:
    """Random differentiable programs, with values used several times, broadcasting, and everything gradflow can do.

    On its inputs, and near them, a program is finite, of moderate size, and clear of kinks, ties and poles, so that
    finite differences and other libraries can be compared with.

    Args:
        max_steps: how many instructions are tried; some add two steps or three, and one that nothing fits adds none.
        scalar: whether the result has no axes; None for either.
        instructions: of `gradflow.testing.instructions.INSTRUCTIONS`, the names to use; None for all.

    >>> from hypothesis import given
    >>> from gradflow.testing.program import programs
    >>> @given(programs(scalar=True))
    ... def test(program):
    ...     value, *_ = gf.value_and_grad(lambda *x: program(gf, *x))(*map(gf.tensor, program.inputs))
    ...     np.testing.assert_allclose(value.item(), program(gf, *program.inputs).item())
    >>> test()
    """
    names = sorted(INSTRUCTIONS if instructions is None else instructions)
    builder = Builder(draw, draw(generators))
    positive = builder.toss()
    whole = draw(st.sampled_from(SHAPES))
    for shape in (whole, *draw(st.lists(st.sampled_from(_stretchable(whole)), max_size=2))):
        builder.input(shape, positive=positive)
    draw(st.lists(_attempts(builder, names), min_size=1, max_size=max_steps))
    if not builder.steps:
        builder.emit("positive", builder.pick())
    if builder.toss():
        _join(builder)
    last = len(builder.steps) - 1
    if builder.shape(last) and (builder.toss() if scalar is None else scalar):
        builder.emit("mean", last)
    return Program(builder.inputs, builder.numbered())


@st.composite
def _attempts(draw: DrawFn, builder: Builder, names: Sequence[str]) -> None:
    """Try an instruction; as elements of a list, so that failing programs shrink by leaving steps out."""
    builder.attempt(INSTRUCTIONS[draw(st.sampled_from(names))])


def _stretchable(shape: Shape) -> list[Shape]:
    """Shapes that broadcast to a shape: it, without leading axes, and each of them with an axis of length 1."""
    tails = [shape[i:] for i in range(len(shape) + 1)]
    ones = [(*tail[:i], 1, *tail[i + 1 :]) for tail in tails for i in range(len(tail))]
    return list(dict.fromkeys([*tails, *ones]))


def _join(builder: Builder) -> None:
    """Have the result depend on every value: add the mean of each that no step reads."""
    for unused in builder.unused():
        last = len(builder.steps) - 1

        def add(b: Builder, unused: int = unused, last: int = last) -> None:
            b.emit("add", last, b.emit("mean", unused))

        builder.attempt(add)
