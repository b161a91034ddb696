"""What a backend offers so that a plan becomes a program: the code generators' interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from gradflow.compiler.graph import Array, Graph
from gradflow.compiler.memory import Plan

SMALL_FACTOR = 16384  # elements; 64 × 64: 7.3 µs with the second factor transposed, 4.6 without (one core, OpenBLAS)


class Timed(NamedTuple):
    """How long an item of a program takes: what it is, seconds a call, floating-point operations, bytes moved."""

    what: str
    seconds: float
    operations: int
    nbytes: int


class Executable(ABC):
    """A generated program, bound to the memory it works on."""

    @abstractmethod
    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...] | None:
        """Run on the arguments' arrays, dense and row-major; the results are new arrays. One thread at a time may.

        None says that a check has failed: an index or a label out of range. Nothing has been stored then.
        """

    @abstractmethod
    def source(self) -> str:
        """Return the generated code."""

    @abstractmethod
    def ceilings(self) -> tuple[float, float]:
        """Return the floating-point operations and the bytes that one thread does at most in a second, measured."""

    @abstractmethod
    def profile(self, arrays: Sequence[Array], seconds: float) -> list[Timed]:
        """Run the items one by one for about so long, and say what each takes; bound memory is left as it was."""


class CodeGenerator(ABC):
    """Makes programs for the arrays of one backend.

    Attributes:
        fuses: whether its loops hold many nodes; otherwise each node is a group of its own.
        opens_updates: whether optimizers' rules are compiled; otherwise the backend's kernels are called.
        items: which operations beside loops it has code for ("gemm", "batch_gemm", "gather", "scatter", "uniform",
            "strided_copy"); otherwise the backend's kernel is called.
        turns: second factors of products with at most so many elements are transposed beforehand if they lie so.
    """

    fuses: bool
    opens_updates: bool
    items: frozenset[str]
    turns: int = SMALL_FACTOR

    @abstractmethod
    def tasks(self, graph: Graph) -> int:
        """Into how many parts the rows of a graph's groups are to be split."""

    @abstractmethod
    def generate(self, plan: Plan, namespace: Any) -> Executable:
        """Make the program of a plan; `namespace` has the kernels that it may call."""
