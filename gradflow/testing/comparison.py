"""Analytic and numeric derivatives compared along directions; kinks told from mistakes."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from gradflow.errors import MutatedInputError, NondeterministicError, explain
from gradflow.ops.creation import make_tensor
from gradflow.tensor import Tensor, no_grad
from gradflow.testing.differences import STEPS, slope
from gradflow.testing.subject import Array, Subject, nothing_returned
from gradflow.transforms import jvp, vjp

How = Literal["vjp", "jvp"]
_MOST_COMPARISONS = 2000  # of one direction: halving finds a kink among n elements in 2 log₂ n of them
_OTHER_STEPS = 0.618, 0.382, 1.39  # times the usual ones, to see whether a slope depends on them


class Rejection(NamedTuple):
    """An element along which finite differences have nothing to say."""

    argument: str
    element: int | None
    """Flat index in the argument; None where no single element is to blame."""
    reason: str


class Wrong(NamedTuple):
    """A comparison that failed: element of the flat vector, or None for the whole direction."""

    element: int | None
    analytic: float
    numeric: float
    tolerance: float


def direction(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers in ±[½, 1]: no element counts so little that an error in it would be lost."""
    return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape)


class Comparison:
    """Analytic and numeric derivatives of one subject at its point, and what came of comparing them."""

    def __init__(self, subject: Subject, mode: How, rtol: float, atol: float) -> None:
        self.subject, self.mode, self.rtol, self.atol = subject, mode, rtol, atol
        self.done = self.made = 0
        self.rejected: list[Rejection] = []
        self.smooth = np.ones(subject.x.size, np.bool_)  # elements not known to lie at a kink
        self.at_x: list[Array] = []
        self.eps: list[float] = []  # of the dtype of each result
        self.weights: list[Array] = []
        self._gradient: tuple[list[Array], Array] | None = None

    # ------------------------------------------------------------ the same call twice; nothing written
    def steady(self, rng: np.random.Generator) -> None:
        """Raise unless f and its derivative are functions: no randomness, no memory, no writes into their inputs."""
        subject, x = self.subject, self.subject.x
        aside = x + rng.uniform(-1e-3, 1e-3, x.shape)
        self._values_and_pullback(aside, None, watched=False)  # what f keeps of another call must not matter at x
        with no_grad():
            self.eps = [float(np.finfo(t.dtype).eps) for t in subject.call(*subject.tensors(x))]
        self.at_x = subject.values(x)
        if not self.at_x:
            raise nothing_returned(subject.name)
        weights = [np.asarray(rng.uniform(0.5, 1.0, v.shape)) for v in self.at_x]
        first, second = (self._values_and_pullback(x, weights) for _ in range(2))
        for what, a, b, rtol in (
            ("its values", self.at_x, subject.values(x), 0.0),
            ("its values with and without recording", self.at_x, first[0], 1e-9),  # by other kernels
            ("its derivative", first[1], second[1], 0.0),
        ):
            if len(a) != len(b) or not all(_same(p, q, rtol) for p, q in zip(a, b, strict=True)):
                raise NondeterministicError(
                    explain(
                        f"two calls of {subject.name} on the same inputs differ in {what}.",
                        "finite differences of a function that changes from call to call say nothing.",
                        "model.eval() without dropout; a new gf.Generator(0) inside the function for random numbers",
                    )
                )

    def _values_and_pullback(
        self, x: Array, weights: list[Array] | None, watched: bool = True
    ) -> tuple[list[Array], list[Array]]:
        """The values at a point, recorded, and the cotangents of the inputs; both watched for writes into inputs."""
        subject = self.subject
        variables = subject.tensors(x)
        given = [np.array(v.numpy()) for v in variables]
        outs, pullback = vjp(lambda *xs: tuple(subject.call(*xs)), *variables)
        values = [np.array(t.numpy(), np.float64) for t in outs]
        if watched:
            self._unwritten(variables, given, "")
        if weights is None:
            weights = [np.ones(v.shape) for v in values]
        seeds = [make_tensor(w.astype(t.dtype), backend=subject.backend) for w, t in zip(weights, outs, strict=True)]
        pulled = [np.array(t.numpy(), np.float64) for t in pullback(tuple(seeds))] if outs else []
        if watched:
            self._unwritten(variables, given, "the derivative of ")
        return values, pulled

    def _unwritten(self, variables: list[Tensor], given: list[Array], who: str) -> None:
        subject = self.subject
        watched = [*zip(subject.labels, variables, given, strict=True), *subject.constants]
        for label, variable, before in watched:
            after = variable.numpy()
            if not _same(after, before):
                at = int(np.flatnonzero(~((after == before) | ((after != after) & (before != before))))[0])
                raise MutatedInputError(
                    explain(
                        f"{who}{subject.name} wrote into {label}: element {at} was {before.flat[at]!r} and is "
                        f"{after.flat[at]!r}.",
                        "a function that changes its inputs has another value at its second call.",
                        "x = x.copy() before the write",
                    )
                )

    # ------------------------------------------------------------ both derivatives along a direction
    def _gradient_at_x(self) -> Array:
        if self._gradient is None or self._gradient[0] is not self.weights:
            _, pulled = self._values_and_pullback(self.subject.x, self.weights)
            self._gradient = self.weights, np.concatenate([g.reshape(-1) for g in pulled])
        return self._gradient[1]

    def _analytic(self, v: Array, support: Array) -> tuple[float, float]:
        """⟨u, J v⟩, and √Σ (gᵢvᵢ)² where the terms are known."""
        if self.mode == "vjp":
            terms = self._gradient_at_x()[support] * v[support]
            largest = float(abs(terms).max(initial=0.0)) or 1.0  # terms² may overflow
            return float(terms.sum()), largest * float(np.sqrt(((terms / largest) ** 2).sum()))
        pushed = self._pushed(v)
        return float(sum((w * t).sum() for w, t in zip(self.weights, pushed, strict=True))), 0.0

    def _pushed(self, v: Array) -> list[Array]:
        subject = self.subject
        _, tangents = jvp(lambda *xs: tuple(subject.call(*xs)), subject.tensors(subject.x), subject.tensors(v))
        return [np.array(t.numpy(), np.float64) for t in tangents]

    def _numeric(self, v: Array) -> tuple[float, float, float]:
        subject = self.subject

        def along(h: float) -> Array:
            moved = subject.values(subject.x + h * v)
            if [y.shape for y in moved] != [y.shape for y in self.at_x]:
                return np.array([np.nan])  # as where a mask selects another number of elements
            differences = zip(self.weights, moved, self.at_x, strict=True)
            return np.array([sum(float((w * (y - y0)).sum()) for w, y, y0 in differences)])

        found = slope(along, np.array([self._resolution()]))
        return float(found.value[0]), float(found.error[0]), float(found.jump[0])

    def _resolution(self) -> float:
        """How much rounding may change the weighted sum of the results."""
        terms = zip(self.weights, self.at_x, self.eps, strict=True)
        return math.sqrt(sum(float(((w * y * eps) ** 2).sum()) for w, y, eps in terms))

    def _compare(self, v: Array, support: Array) -> Wrong | str | None:
        """None where the derivatives agree, the reason why they need not, or how they differ."""
        self.made += 1
        analytic, size = self._analytic(v, support)
        verdict = self._judge(analytic, size, *self._numeric(v))
        if verdict is None or len(support) > 1:
            return verdict
        narrow = self._with_steps_relative_to_x(analytic, size, v, float(self.subject.x[support[0]]))
        if narrow is None or isinstance(narrow, Wrong) and isinstance(verdict, str):
            verdict = narrow
        if isinstance(verdict, Wrong):
            verdict = self._confirmed(verdict, size, v)
        return verdict._replace(element=int(support[0])) if isinstance(verdict, Wrong) else verdict

    def _with_steps_relative_to_x(self, analytic: float, size: float, v: Array, x: float) -> Wrong | str | None:
        """The domain or the scale of f may be narrower than the usual steps."""
        if not 0 < (width := abs(x)) < 1e-2:
            return "no other steps"
        return self._judge(analytic, size, *(s / width for s in self._numeric(v * width)))

    def _judge(self, analytic: float, size: float, numeric: float, error: float, jump: float) -> Wrong | str | None:
        if not math.isfinite(numeric):
            return "outside the domain: no step to either side gives finite values"
        if not math.isfinite(analytic):
            return Wrong(None, analytic, numeric, 0.0)
        tolerance = self.atol + self.rtol * max(abs(analytic), abs(numeric), size) + 2 * error
        apart = abs(analytic - numeric)
        if apart <= tolerance:
            rough = error > self.atol + 1e-3 * max(abs(numeric), size)
            return f"too rough: the differences are uncertain by {error:.2g}" if rough else None
        if abs(jump) > max(0.2 * apart, 10 * error):
            return f"a kink: the slopes left and right differ by {abs(jump):.2g}"
        if apart <= 5 * error:
            return f"too rough: the differences are uncertain by {error:.2g}"
        return Wrong(None, analytic, numeric, tolerance)

    def _confirmed(self, verdict: Wrong, size: float, v: Array) -> Wrong | str | None:
        """The same by other steps too: chance may let a few differences of noise agree with one another."""
        if not math.isfinite(verdict.analytic):
            return verdict
        slopes = [verdict.numeric, *(self._numeric(v * step)[0] / step for step in _OTHER_STEPS)]
        spread, middle = max(slopes) - min(slopes), float(np.median(slopes))
        apart = abs(verdict.analytic - middle)
        if apart <= verdict.tolerance + 2 * spread:
            agrees = spread <= self.atol + 1e-3 * max(abs(middle), size)
            return None if agrees else f"too rough: the differences are uncertain by {spread:.2g}"
        rounding = self._resolution() / STEPS[-1]
        if not spread <= 0.1 * max(map(abs, slopes)) + 10 * rounding + self.atol:
            return f"too rough: the differences are uncertain by {spread:.2g}"
        return verdict

    def along(self, v: Array) -> Wrong | None:
        """Compare along a direction; halve it where it does not pass, to find which element is to blame.

        What passes in both halves passes: derivatives are linear, so a direction that is wrong has a half that is.
        """
        waiting, most = [np.flatnonzero(self.smooth)], self.made + _MOST_COMPARISONS
        worst: Wrong | None = None
        while waiting and self.made < most:
            support = waiting.pop()
            if not support.size:
                continue
            part = np.zeros_like(v)
            part[support] = v[support]
            found = self._compare(part, support)
            if found is None:
                self.done += 1
            elif len(support) > 1:
                worst = found if isinstance(found, Wrong) else worst
                waiting += [support[len(support) // 2 :], support[: len(support) // 2]]
            elif isinstance(found, Wrong):
                return found
            else:
                self._reject(int(support[0]), found)
        for support in waiting:
            self._reject(None, f"{support.size} elements among too many kinks to be told apart")
        return worst if waiting and self.smooth.all() else None

    def _reject(self, i: int | None, reason: str) -> None:
        argument, at = ("several arguments", None) if i is None else self.subject.place(i)[:2]
        if i is not None:
            self.smooth[i] = False
        self.rejected.append(Rejection(argument, at, reason))

    # ------------------------------------------------------------ the whole Jacobian
    def every_element(self) -> Wrong | None:
        """Compare every entry of the Jacobian: a row for each element of the results, a column for each of x."""
        n = self.subject.x.size
        worst: Wrong | None = None
        for k, y in enumerate(self.at_x):
            for j in range(y.size):
                self.weights = [np.zeros(other.shape) for other in self.at_x]
                self.weights[k].flat[j] = 1.0
                for i in range(n):
                    unit = np.zeros(n)
                    unit[i] = 1.0
                    found = self._compare(unit, np.array([i]))
                    if isinstance(found, Wrong):
                        worst = worst or found
                    elif found is None:
                        self.done += 1
                    else:
                        self._reject(i, found)
        return worst


def _same(a: Array, b: Array, rtol: float = 0.0) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=rtol, atol=rtol, equal_nan=True))
