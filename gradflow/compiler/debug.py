"""Checking programs against the functions they were recorded from: `gf.compile(f, debug=True)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradflow import structure
from gradflow.compiler.program import Arrays, Program
from gradflow.compiler.recording import Recording
from gradflow.compiler.signature import Results, Signature
from gradflow.errors import CompilationError, explain

CALLS = 3  # of every program that are checked
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # of the largest value; anything else must be equal


class Checked:
    """A program that, in its first calls, also runs the function, on the same state, and compares everything.

    Args:
        program: what is checked.
        recording: what it was made of.
        again: makes the signature of the present call, as the recorded one was made.
        function: called with its arguments.
        known: what `Results` hands out as it is.
        name_of: a name for the memory of a state.
    """

    def __init__(
        self,
        program: Program,
        recording: Recording,
        again: Callable[[], Signature],
        function: Callable[..., Any],
        known: Callable[[Any], bool],
        name_of: Callable[[Any], str],
    ) -> None:
        self._program, self._recording, self._again = program, recording, again
        self._function, self._known, self._name_of = function, known, name_of
        self._left = CALLS
        self.contiguous = program.contiguous

    def __call__(self, arrays: Arrays) -> Arrays:
        """Run it.

        Raises:
            CompilationError: the program and the function differ.
        """
        if not self._left:
            return self._program(arrays)
        self._left -= 1
        recording, xp = self._recording, self._recording._xp
        touched = [*recording.bound.values(), *arrays]
        before = [xp.as_array(array, copy=True) for array in touched]
        gradients = {leaf: leaf.grad for leaf in recording.leaves}
        signature = self._again()
        out = self._function(*signature.args, **signature.kwargs)
        expected = [("result", t._data) for t in Results(out, signature, recording, self._known).tensors]
        lasting = {id(g._data) for g in recording.left.values() if g is not None}
        states = [a for a in recording.bound.values() if id(a) not in lasting]
        expected += [(self._name_of(a), xp.as_array(a, copy=True)) for a in states]
        left = [(leaf, g) for leaf, g in recording.left.items() if g is not None]
        expected += [(f"the gradient of {self._name_of(leaf)}", _copied(leaf.grad, xp)) for leaf, _ in left]
        for array, values in zip(touched, before, strict=True):
            xp.assign(array, values)
        for leaf, gradient in gradients.items():
            leaf.grad = gradient
        structure.changed()
        results = self._program(arrays)
        hidden = len(results) - sum(1 for name, _ in expected if name == "result")
        found = [*results[: len(results) - hidden], *states, *(g._data for _, g in left)]
        for i, ((name, wanted), got) in enumerate(zip(expected, found, strict=True)):
            _compare(f"{name} {i}" if name == "result" else name, wanted, xp.backend.to_numpy(got), xp)
        return results

    def describe(self) -> str:
        """What the program says."""
        return f"{self._program.describe()}\nchecked against the function in the first {CALLS} calls"

    def source(self) -> str:
        """The program's."""
        return self._program.source()


def _copied(gradient: Any, xp: Any) -> Any:
    return None if gradient is None else xp.as_array(gradient._data, copy=True)


def _compare(name: str, wanted: Any, got: np.ndarray, xp: Any) -> None:
    if wanted is None:
        raise _differs(name, "the function leaves none, and the program one")
    host = xp.backend.to_numpy(wanted)
    if host.shape != got.shape or host.dtype != got.dtype:
        raise _differs(name, f"{host.dtype} {host.shape} is computed as {got.dtype} {got.shape}")
    for message in _differences(host, got):
        raise _differs(name, message)


def _differences(host: np.ndarray, got: np.ndarray) -> Iterator[str]:
    tolerance = TOLERANCE.get(host.dtype.name, 0.0)
    largest = float(np.abs(host[np.isfinite(host)]).max(initial=0.0)) if tolerance else 0.0
    allowed = tolerance * (1 + largest)
    close = np.isclose(got, host, rtol=tolerance, atol=allowed, equal_nan=True) if tolerance else got == host
    if not np.all(close):
        at = tuple(int(i) for i in np.argwhere(~close)[0])
        yield f"at {at} it is {got[at]} and should be {host[at]} (tolerance {allowed:.1e})"


def _differs(name: str, how: str) -> CompilationError:
    return CompilationError(
        explain(
            f"a compiled function differs from the function itself: {name}.",
            f"{how}.",
            "GRADFLOW_COMPILE=0 runs it eagerly; please report this with the function and its explain()",
        )
    )
