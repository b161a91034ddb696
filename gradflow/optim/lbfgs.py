"""L-BFGS, a quasi-Newton method for losses without noise, and its line search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import numpy as np

from gradflow.arguments import choice, wrong_kind
from gradflow.errors import ArgumentError, DTypeError, explain
from gradflow.ops.creation import make_tensor, zeros_like
from gradflow.ops.shaping import concat, reshape
from gradflow.optim.optimizer import Optimizer, entry_of
from gradflow.tensor import Tensor, enable_grad, no_grad

ARMIJO, CURVATURE = 1e-4, 0.9  # c₁ and c₂ of the Wolfe conditions: how much the loss must fall, and its slope flatten
LEAST_CURVATURE = 1e-10  # of a pair sᵀy that is remembered: the approximate Hessian stays positive definite
Closure = Callable[[], Tensor]


class _Pair(NamedTuple):
    """What one iteration taught of the curvature: the step s, the change y of the gradient, and 1/yᵀs."""

    s: Tensor
    y: Tensor
    inverse: float


@dataclass
class _Memory:
    """What an iteration hands to the next."""

    func_evals: int = 0
    n_iter: int = 0
    pairs: list[_Pair] = field(default_factory=list)
    scale: float = 1.0  # of the first approximation of the inverse Hessian, γ I
    direction: Tensor | None = None
    t: float = 0.0
    gradient: Tensor | None = None  # where the last direction was computed
    loss: float = math.nan


class _Point(NamedTuple):
    """A point on the line of a search, at x + t d: the loss, its gradient, and its slope dᵀ∇ along the line."""

    t: float
    loss: float
    gradient: Tensor
    slope: float


@final
class LBFGS(Optimizer):
    """L-BFGS: steps along −H g, where H approximates the inverse Hessian by the last m changes of the gradient.

    With sᵢ = wᵢ₊₁ − wᵢ, yᵢ = gᵢ₊₁ − gᵢ and ρᵢ = 1/yᵢᵀsᵢ, H is γ I with γ = sᵀy/yᵀy, updated with each pair in turn::

        H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ
        w ← w − t H g

    For losses that a call computes without noise: from all data, not a batch. Each `step` makes up to `max_iter`
    iterations, and calls the closure for each of them at least once.

    Args:
        params: parameters of one dtype on one backend; one group at most.
        lr: t, or with a line search the t that is tried first; in the very first iteration it is lr · min(1, 1/Σ|g|).
        max_iter: iterations a step.
        max_eval: evaluations of the closure a step, after which no further iteration begins; 1.25 max_iter if None.
        tolerance_grad: a step ends where no element of the gradient is larger.
        tolerance_change: a step ends where neither the parameters nor the loss change by more.
        history_size: m.
        line_search_fn: None, or "strong_wolfe" for a t at which the loss has fallen and flattened enough.

    Raises:
        ArgumentError: a hyper-parameter out of range, no parameters, one given twice, or several groups.
        DTypeError: parameters of several dtypes.

    Source: Liu and Nocedal: On the limited memory BFGS method for large scale optimization, 1989; the line search is
    algorithms 3.5 and 3.6 of Nocedal and Wright: Numerical optimization, 2006. Constants and endings are PyTorch's.

    >>> w = gf.Parameter([-1.0, 1.0])
    >>> optimizer = gf.optim.LBFGS([w], line_search_fn="strong_wolfe")
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(3):
    ...     loss = optimizer.step(closure)
    >>> bool(closure() < 1e-6)
    True
    """

    takes_groups = False
    hyper = ("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        if line_search_fn is not None:
            choice("LBFGS", "line_search_fn", line_search_fn, ("strong_wolfe",))
        self.settings = {"line_search_fn": line_search_fn}
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": _most_evaluations(max_iter) if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
        }
        super().__init__(params, defaults)
        self._refuse_mixture()
        self._memory = _Memory()

    def step(self, closure: Closure | None = None) -> Tensor:
        """Iterate until a tolerance or a limit is reached.

        Args:
            closure: clears the gradients, computes the loss and its gradients, and returns the loss. It is called
                several times.

        Returns:
            The loss before the step.

        Raises:
            ArgumentError: no closure.
            DTypeError: a closure that is no function, or returns no Tensor.
        """
        evaluate = self._evaluation(closure)
        lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size = self.param_groups[0].hyper.tolist()
        memory = self._memory
        before = evaluate()
        evaluations = 1
        memory.func_evals += 1
        loss, gradient = before.item(), self._gradient()
        if _largest(gradient) <= tolerance_grad:
            return before
        for iteration in range(1, int(max_iter) + 1):
            memory.n_iter += 1
            direction = _direction(memory, gradient, int(history_size))
            memory.direction, memory.gradient, memory.loss = direction, gradient, loss
            memory.t = lr * min(1.0, 1 / float(abs(gradient).sum().item())) if memory.n_iter == 1 else lr
            slope = _dot(gradient, direction)
            if slope > -tolerance_change:
                break
            start = self._values()
            made = 0
            if self.settings["line_search_fn"] is not None:
                line = _Line(self, evaluate, start, direction)
                found = line.search(
                    _Point(0.0, loss, gradient, slope), memory.t, max_eval - evaluations, tolerance_change
                )
                made, memory.t, loss, gradient = line.evaluations, found.t, found.loss, found.gradient
                self._place(start + direction * memory.t)
            else:
                self._place(start + direction * memory.t)
                if iteration < max_iter:
                    loss, gradient = evaluate().item(), self._gradient()
                    made = 1
            evaluations += made
            memory.func_evals += made
            if (
                evaluations >= max_eval
                or _largest(gradient) <= tolerance_grad
                or _largest(direction) * memory.t <= tolerance_change
                or abs(loss - memory.loss) < tolerance_change
            ):
                break
        return before

    def _evaluation(self, closure: Closure | None) -> Closure:
        """The closure, run with recording switched on; no_grad around a step does not reach into it."""
        fix = "optimizer.step(closure), where closure() computes the loss, calls loss.backward() and returns the loss"
        if closure is None:
            raise ArgumentError(
                explain("LBFGS.step() without a closure.", "an iteration evaluates the loss several times.", fix)
            )
        if not callable(closure):
            reason = "a closure computes the loss and its gradients, and returns the loss."
            raise wrong_kind("step", "closure", closure, reason, fix)
        closed: Closure = closure

        def evaluate() -> Tensor:
            with enable_grad():
                loss = closed()
            if not isinstance(loss, Tensor):
                raise wrong_kind("step", "what the closure returned", loss, "it returns the loss.", "return loss")
            return loss

        return evaluate

    def _refuse_mixture(self) -> None:
        kinds = dict.fromkeys(f"{p.dtype} on {p.backend.name}" for p in self._params)
        if len(kinds) > 1:
            raise DTypeError(
                explain(
                    f"LBFGS over parameters of {' and '.join(kinds)}.",
                    "it works on all of them as one vector.",
                    "model.to(gf.float64), before the optimizer is built",
                )
            )

    # ------------------------------------------------------------ all parameters as one vector
    def _gradient(self) -> Tensor:
        """The gradients, zero where there is none."""
        grads = ((p, p.grad) for p in self._params)
        return self._vector(zeros_like(p) if grad is None else grad for p, grad in grads)

    def _values(self) -> Tensor:
        return self._vector(self._params)

    def _vector(self, tensors: Iterable[Tensor]) -> Tensor:
        with no_grad():
            return concat([reshape(t, (t.size,)) for t in tensors])

    def _place(self, vector: Tensor) -> None:
        """Write a vector into the parameters, in place."""
        start = 0
        with no_grad():
            for p in self._params:
                p[...] = reshape(vector[start : start + p.size], p.shape)
                start += p.size

    # ------------------------------------------------------------ the state dict, in PyTorch's form
    def _entries(self) -> dict[int, dict[str, Any]]:
        """All of it stands under the first parameter."""
        memory = self._memory
        if not memory.func_evals:
            return {}
        counts: dict[str, Any] = {"func_evals": memory.func_evals, "n_iter": memory.n_iter}
        if memory.direction is None or memory.gradient is None:
            return {0: counts}
        return {
            0: {
                **counts,
                "d": memory.direction.copy(),
                "t": memory.t,
                "old_dirs": [pair.y.copy() for pair in memory.pairs],
                "old_stps": [pair.s.copy() for pair in memory.pairs],
                "ro": [pair.inverse for pair in memory.pairs],
                "H_diag": memory.scale,
                "prev_flat_grad": memory.gradient.copy(),
                "prev_loss": memory.loss,
            }
        }

    def _misfits_of_entries(self, state: Mapping[Any, Any]) -> Iterator[str]:
        yield from (f"it has a state of parameter {key}" for key in state if str(key) != "0")
        try:
            self._memory_of(entry_of(state, 0))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            yield f"the history is no history of LBFGS ({type(error).__name__}: {error})"

    def _load_entries(self, state: Mapping[Any, Any]) -> None:
        self._memory = self._memory_of(entry_of(state, 0))

    def _memory_of(self, entry: dict[str, Any]) -> _Memory:
        """The memory that an entry describes.

        Raises:
            AttributeError, KeyError, TypeError, ValueError, IndexError: one that fits no such parameters.
        """
        if not entry:
            return _Memory()
        evaluations, iterations = int(entry["func_evals"]), int(entry["n_iter"])
        if not (evaluations >= 1 and 0 <= iterations <= evaluations * 2):
            raise ValueError(f"{evaluations} evaluations, {iterations} iterations")
        if not iterations:
            return _Memory(evaluations)
        first = self._params[0]
        size = sum(p.size for p in self._params)

        def vector(value: Any) -> Tensor:
            array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
            if array.shape != (size,) or array.dtype.kind != "f":
                raise ValueError(f"{array.dtype} of shape {array.shape} for {size} weights")
            return make_tensor(array.astype(first.dtype), backend=first.backend)

        pairs = [
            _Pair(vector(s), vector(y), float(inverse))
            for s, y, inverse in zip(entry["old_stps"], entry["old_dirs"], entry["ro"], strict=True)
        ]
        return _Memory(
            evaluations, iterations, pairs, float(entry["H_diag"]), vector(entry["d"]), float(entry["t"]),
            vector(entry["prev_flat_grad"]), float(entry["prev_loss"]),
        )  # fmt: skip


def _most_evaluations(max_iter: Any) -> Any:
    """PyTorch's default; what is no integer is refused later, under its own name."""
    return max_iter * 5 // 4 if isinstance(max_iter, int) else max_iter


def _dot(x: Tensor, y: Tensor) -> float:
    return float((x @ y).item())


def _largest(x: Tensor) -> float:
    return float(abs(x).max().item()) if x.size else 0.0


def _direction(memory: _Memory, gradient: Tensor, history_size: int) -> Tensor:
    """−H g by the two-loop recursion, after the last step has entered the memory."""
    if memory.direction is None or memory.gradient is None:
        return -gradient
    y, s = gradient - memory.gradient, memory.direction * memory.t
    curvature = _dot(y, s)
    if curvature > LEAST_CURVATURE:
        memory.pairs = [*memory.pairs, _Pair(s, y, 1 / curvature)][-history_size:]
        memory.scale = curvature / _dot(y, y)
    q = -gradient
    factors = []
    for pair in reversed(memory.pairs):
        factors.append(_dot(pair.s, q) * pair.inverse)
        q = q - pair.y * factors[-1]
    r = q * memory.scale
    for pair, factor in zip(memory.pairs, reversed(factors), strict=True):
        r = r + pair.s * (factor - _dot(pair.y, r) * pair.inverse)
    return r


# ---------------------------------------------------------------- the line search
class _Line:
    """The loss along x + t d."""

    def __init__(self, optimizer: LBFGS, evaluate: Closure, x: Tensor, d: Tensor) -> None:
        self.optimizer, self.evaluate, self.x, self.d = optimizer, evaluate, x, d
        self.evaluations = 0

    def at(self, t: float) -> _Point:
        self.optimizer._place(self.x + self.d * t)
        loss = self.evaluate().item()
        gradient = self.optimizer._gradient()
        self.evaluations += 1
        return _Point(t, loss, gradient, _dot(gradient, self.d))

    def search(self, start: _Point, t: float, limit: float, tolerance: float) -> _Point:
        """A point that satisfies the strong Wolfe conditions, or the best that `limit` evaluations found."""
        bracket = self._bracket(start, t, limit)
        if isinstance(bracket, _Point):
            return bracket
        first, second = bracket
        low, high = (second, first) if second.loss < first.loss else (first, second)
        return self._zoom(start, low, high, limit, tolerance / (_largest(self.d) or 1.0))

    def _bracket(self, start: _Point, t: float, limit: float) -> _Point | tuple[_Point, _Point]:
        """A good point, or two with a good one between them: go further until the loss rises or flattens."""
        previous, point = start, self.at(t)
        while self.evaluations <= limit:
            if not _falls(start, point) or self.evaluations > 2 and point.loss >= previous.loss:
                return previous, point
            if _is_flat(start, point):
                return point
            if point.slope >= 0:
                return previous, point
            further = point.t + 0.01 * (point.t - previous.t), point.t * 10
            previous, point = point, self.at(_cubic_minimum(previous, point, *further))
        return start, point

    def _zoom(self, start: _Point, low: _Point, high: _Point, limit: float, width: float) -> _Point:
        """Shrink a bracket around a good point; `low` is its end of lower loss."""
        near_an_end = False
        while self.evaluations <= limit and abs(high.t - low.t) >= width:
            a, b = sorted((low.t, high.t))
            t = _cubic_minimum(low, high, a, b)
            margin = 0.1 * (b - a)
            if min(b - t, t - a) >= margin:
                near_an_end = False
            elif near_an_end or not a < t < b:
                t = b - margin if b - t < t - a else a + margin
                near_an_end = False
            else:
                near_an_end = True
            point = self.at(t)
            if not _falls(start, point) or point.loss >= low.loss:
                high = point
                if high.loss < low.loss:
                    low, high = high, low
            elif _is_flat(start, point):
                return point
            else:
                if point.slope * (high.t - low.t) >= 0:
                    high = low
                low = point
        return low


def _falls(start: _Point, point: _Point) -> bool:
    """The first Wolfe condition; a loss that is not a number does not satisfy it."""
    return point.loss <= start.loss + ARMIJO * point.t * start.slope


def _is_flat(start: _Point, point: _Point) -> bool:
    """The second Wolfe condition, the strong one."""
    return abs(point.slope) <= -CURVATURE * start.slope


def _cubic_minimum(p: _Point, q: _Point, low: float, high: float) -> float:
    """The minimum within [low, high] of the cubic through two points with their slopes; the middle if it has none."""
    if p.t > q.t:
        p, q = q, p
    middle = (low + high) / 2
    if p.t == q.t:
        return middle
    a = p.slope + q.slope - 3 * (p.loss - q.loss) / (p.t - q.t)
    square = a * a - p.slope * q.slope
    if not 0 <= square < math.inf:
        return middle
    root = math.sqrt(square)
    below = q.slope - p.slope + 2 * root
    if below == 0:
        return middle
    found = q.t - (q.t - p.t) * ((q.slope + root - a) / below)
    return min(max(found, low), high)
