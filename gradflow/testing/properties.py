"""Properties that every derivative has, each checked by one call; and that backends agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gradflow.backend import Backend, backends, resolve, use_backend
from gradflow.compiler.trace import trace
from gradflow.errors import ArgumentError, GradflowError, PropertyError, explain
from gradflow.ops.creation import make_tensor
from gradflow.ops.shaping import broadcast_to, stack
from gradflow.tensor import Tensor
from gradflow.testing.backends import without_kernels
from gradflow.testing.subject import Array, Function, name_of, nothing_returned, to_host
from gradflow.transforms import flatten, hvp, jvp, vjp


# ---------------------------------------------------------------- helpers
def _tensors(inputs: Iterable[Any], dtype: Any = np.float64) -> list[Tensor]:
    """Inputs as new tensors; floating-point ones in float64, where equalities hold to rounding."""
    hosts = [np.asarray(to_host(x)) for x in inputs]
    return [make_tensor(h.astype(dtype) if h.dtype.kind == "f" and dtype is not None else h) for h in hosts]


def _finite(f: Function, tree: Any) -> None:
    """Raise for a derivative that holds a NaN or an infinity: it would equal itself and prove nothing."""
    for value in flatten(tree)[0]:
        if not np.isfinite(value.numpy() if isinstance(value, Tensor) else value).all():
            raise PropertyError(
                explain(
                    f"{name_of(f)}: a derivative holds a NaN or an infinity.",
                    "what is not finite satisfies no equation.",
                    "choose inputs away from poles; gf.detect_anomaly() says where it comes from",
                )
            )


def _over_floats(f: Function, tensors: Sequence[Tensor]) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """f as a function of its floating-point inputs alone that returns a tuple of its floating-point results."""
    places = [i for i, t in enumerate(tensors) if t.dtype.kind == "f"]

    def function(*variables: Tensor) -> tuple[Tensor, ...]:
        given = list(tensors)
        for i, variable in zip(places, variables, strict=True):
            given[i] = variable
        outs, _ = flatten(f(*given))
        found = tuple(t for t in outs if isinstance(t, Tensor) and t.dtype.kind == "f")
        if not found:
            raise nothing_returned(name_of(f))
        return found

    if not places:
        raise ArgumentError(
            explain(
                f"a property of {name_of(f)} with nothing to differentiate.",
                "derivatives are taken with respect to floating-point tensors and arrays.",
                "np.ones(3) in place of np.ones(3, int)",
            )
        )
    return function, [tensors[i] for i in places]


def _random(rng: np.random.Generator, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(make_tensor(rng.uniform(-1.0, 1.0, t.shape).astype(t.dtype), backend=t.backend) for t in like)


def _inner(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> float:
    return float(sum(float((x.numpy() * y.numpy()).sum()) for x, y in zip(xs, ys, strict=True)))


def _equal(f: Function, what: str, left: Any, right: Any, rtol: float, atol: float) -> None:
    """Raise unless two nestings of numbers and tensors agree to rounding, shape and dtype included."""
    ones, others = (flatten(tree)[0] for tree in (left, right))
    for i, (a, b) in enumerate(zip(ones, others, strict=True)):
        a, b = (np.asarray(v.numpy() if isinstance(v, Tensor) else v) for v in (a, b))
        if a.dtype != b.dtype or a.shape != b.shape:
            raise PropertyError(
                explain(
                    f"{name_of(f)}: {what}: {a.dtype} {a.shape} and {b.dtype} {b.shape} (result {i}).",
                    "shapes and dtypes are part of the property.",
                    "give the derivative the shape and dtype of its primal",
                )
            )
        size = float(np.nanmax(abs(a[np.isfinite(a)]), initial=0.0)) if a.dtype.kind == "f" else 0.0
        if not np.allclose(a, b, rtol=rtol, atol=atol + rtol * size, equal_nan=True):
            with np.errstate(all="ignore"):
                wrong = ~np.isclose(a, b, rtol=rtol, atol=atol + rtol * size, equal_nan=True)
            at = int(np.flatnonzero(wrong)[0])
            raise PropertyError(
                explain(
                    f"{name_of(f)}: {what}: {a.flat[at]!r} and {b.flat[at]!r} at flat index {at} of result {i}.",
                    f"they must agree to rtol={rtol:g}, atol={atol:g}.",
                    f"testing.gradcheck({name_of(f)}, ...) shows which derivative is wrong",
                )
            )


# ---------------------------------------------------------------- one function
def check_linearity(f: Function, *inputs: Any, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """The reverse derivative is linear in its cotangent: (a·u + b·w)ᵀJ = a·uᵀJ + b·wᵀJ.

    Raises:
        PropertyError: it is not.

    >>> from gradflow import testing
    >>> testing.check_linearity(gf.tanh, np.ones(3))
    """
    function, variables = _over_floats(f, _tensors(inputs))
    outs, pullback = vjp(function, *variables)
    rng = np.random.default_rng(seed)
    u, w = _random(rng, outs), _random(rng, outs)
    a, b = 0.75, -1.5
    together = pullback(tuple(p * a + q * b for p, q in zip(u, w, strict=True)))
    apart = [p * a + q * b for p, q in zip(pullback(u), pullback(w), strict=True)]
    _finite(f, apart)
    _equal(f, "the reverse derivative is not linear in the cotangent", list(together), apart, rtol, atol)


def check_adjoint(f: Function, *inputs: Any, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Forward and reverse derivatives are adjoint: ⟨u, J v⟩ = ⟨Jᵀu, v⟩.

    Raises:
        PropertyError: they are not.

    >>> from gradflow import testing
    >>> testing.check_adjoint(lambda x, y: x @ y, np.ones((2, 3)), np.ones(3))
    """
    function, variables = _over_floats(f, _tensors(inputs))
    outs, pullback = vjp(function, *variables)
    rng = np.random.default_rng(seed)
    u, v = _random(rng, outs), _random(rng, variables)
    _, pushed = jvp(function, tuple(variables), v)
    _finite(f, [*pushed, *pullback(u)])
    left, right = _inner(u, pushed), _inner(pullback(u), v)
    _equal(f, "forward and reverse derivatives are not adjoint: ⟨u, J v⟩ and ⟨Jᵀu, v⟩", left, right, rtol, atol)


def check_chain_rule(
    f: Function, g: Function, *inputs: Any, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """The derivative of g ∘ f is the product of theirs: uᵀJ(g ∘ f) = (uᵀJg) Jf.

    Raises:
        PropertyError: it is not.

    >>> from gradflow import testing
    >>> testing.check_chain_rule(gf.tanh, gf.exp, np.ones(3))
    """
    inner, variables = _over_floats(f, _tensors(inputs))

    def outer(*middle: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for t in flatten(g(*middle))[0] if isinstance(t, Tensor))

    middle, pull_inner = vjp(inner, *variables)
    outs, pull_outer = vjp(outer, *middle)
    _, pull_both = vjp(lambda *xs: outer(*inner(*xs)), *variables)
    u = _random(np.random.default_rng(seed), outs)
    _equal(
        f, f"the chain rule with {name_of(g)} fails", list(pull_both(u)), list(pull_inner(pull_outer(u))), rtol, atol
    )


def check_hessian_symmetry(f: Function, x: Any, *, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """The Hessian of a scalar function is symmetric: ⟨u, H v⟩ = ⟨v, H u⟩. An array is first summed with random weights.

    Raises:
        PropertyError: it is not.

    >>> from gradflow import testing
    >>> testing.check_hessian_symmetry(lambda x: (x[0] * gf.exp(x[1])).sum(), np.ones(2))
    """
    function, (variable,) = _over_floats(f, _tensors([x]))
    rng = np.random.default_rng(seed)
    weights = _random(rng, function(variable))
    (u,), (v,) = _random(rng, [variable]), _random(rng, [variable])

    def scalar(t: Tensor) -> Tensor:
        total = make_tensor(np.zeros((), t.dtype))
        for out, w in zip(function(t), weights, strict=True):
            total = total + (out * w).sum()
        return total

    hv, hu = hvp(scalar, variable, v), hvp(scalar, variable, u)
    _finite(f, [hv, hu])
    left, right = _inner([u], [hv]), _inner([v], [hu])
    _equal(f, "the Hessian is not symmetric: ⟨u, H v⟩ and ⟨v, H u⟩", left, right, rtol, atol)


def check_broadcasting(f: Function, *inputs: Any, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Broadcasting in f is broadcasting before f: the same values, and the same gradients of the small inputs.

    Args:
        f: works element by element on inputs that broadcast against each other.
        inputs: of shapes that broadcast.

    Raises:
        PropertyError: values or gradients differ.

    >>> from gradflow import testing
    >>> testing.check_broadcasting(gf.multiply, np.ones((2, 1)), np.ones(3))
    """
    tensors = _tensors(inputs)
    shape = np.broadcast_shapes(*(t.shape for t in tensors))
    implicit, variables = _over_floats(f, tensors)
    explicit, _ = _over_floats(lambda *xs: f(*(broadcast_to(x, shape) for x in xs)), tensors)
    outs, pull = vjp(implicit, *variables)
    stretched, pull_stretched = vjp(explicit, *variables)
    _equal(f, "values with implicit and explicit broadcasting differ", list(outs), list(stretched), rtol, atol)
    u = _random(np.random.default_rng(seed), outs)
    what = "gradients with implicit and explicit broadcasting differ"
    _finite(f, list(pull(u)))
    _equal(f, what, list(pull(u)), list(pull_stretched(u)), rtol, atol)


def check_batching(f: Function, *batches: Any, seed: int = 0, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """A batch is its samples, stacked: f(batch)[i] = f(sample i), and so for the gradients.

    Args:
        f: takes batches, whose first axis counts samples, and returns one.
        batches: arrays with equally long first axes.

    Raises:
        PropertyError: values or gradients differ.

    >>> from gradflow import testing
    >>> testing.check_batching(lambda x: gf.softmax(x, axis=-1), np.ones((4, 3)))
    """
    tensors = _tensors(batches)
    lengths = {t.shape[0] if t.shape else None for t in tensors}
    if len(lengths) != 1 or None in lengths:
        raise ArgumentError(
            explain(
                f"batches of shapes {', '.join(str(t.shape) for t in tensors)}.",
                "their first axes count the same samples.",
                "testing.check_batching(f, x, t) with len(x) == len(t)",
            )
        )
    (n,) = lengths
    whole, variables = _over_floats(f, tensors)
    single, _ = _over_floats(
        lambda *xs: [
            stack(parts)
            for parts in zip(*(_as_list(f(*(x[i : i + 1] for x in xs))) for i in range(n or 0)), strict=True)
        ],
        tensors,
    )
    outs, pull = vjp(whole, *variables)
    stacked, pull_stacked = vjp(single, *variables)
    flat = [s.reshape(o.shape) if s.size == o.size else s for s, o in zip(stacked, outs, strict=True)]
    _equal(f, "a batch differs from its samples", list(outs), flat, rtol, atol)
    u = _random(np.random.default_rng(seed), outs)
    seeds = tuple(w.reshape(s.shape) for w, s in zip(u, stacked, strict=True))
    _equal(
        f, "gradients of a batch differ from those of its samples", list(pull(u)), list(pull_stacked(seeds)), rtol, atol
    )


def _as_list(tree: Any) -> list[Tensor]:
    return [t for t in flatten(tree)[0] if isinstance(t, Tensor)]


def check_replay(f: Function, *inputs: Any, seed: int = 0, rtol: float = 1e-12, atol: float = 1e-15) -> None:
    """A recorded function, replayed on other inputs, is the function; and so is its recorded gradient.

    Args:
        f: without Python side effects, and without branches on values.
        inputs: its arguments; it is recorded on others of the same shapes.

    Raises:
        PropertyError: values or gradients differ.

    >>> from gradflow import testing
    >>> testing.check_replay(lambda x: gf.tanh(x) * 2, np.ones(3))
    """
    tensors = _tensors(inputs)
    function, variables = _over_floats(f, tensors)
    weights = _random(np.random.default_rng(seed), function(*variables))

    def both(*xs: Tensor) -> tuple[Tensor, ...]:
        outs, pullback = vjp(function, *xs)
        return (*outs, *pullback(weights))

    first = [make_tensor(v.numpy() * 0.875) for v in variables]
    _, recorded = trace(both, *first)
    _equal(
        f, "a replay differs from the function", list(both(*variables)), list(recorded.replay(*variables)), rtol, atol
    )


# ---------------------------------------------------------------- several backends
def backend_parity(
    f: Function,
    *inputs: Any,
    backends: Iterable[str | Backend] | None = None,
    seed: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> None:
    """Backends agree: values, gradients, dtypes and, where f raises, the type of the exception.

    Args:
        f: takes tensors.
        inputs: NumPy arrays or tensors, given to f as tensors of each backend in their own dtypes.
        backends: names or Backends; by default every usable one, and each of them again with nothing but the generic
            rules and compositions, so that a machine with NumPy alone compares something as well.
        rtol, atol: relative and absolute tolerance; the size of a result counts, not of its elements.

    Raises:
        PropertyError: two backends differ; it names both.
        ArgumentError: fewer than two backends.

    >>> from gradflow import testing
    >>> testing.backend_parity(gf.softmax, np.float32([1.0, 2.0]))
    >>> testing.backend_parity(gf.matmul, np.ones((2, 3)), np.ones((2, 3)))  # the same error everywhere
    """
    chosen = _comparable(backends)
    hosts = [np.asarray(to_host(x)) for x in inputs]
    first, *others = [(backend, _outcome(f, hosts, backend, seed)) for backend in chosen]
    if not first[1] or isinstance(first[1], Exception) and not isinstance(first[1], GradflowError):
        _refuse_vacuous(f, [outcome for _, outcome in (first, *others)])
    for backend, outcome in others:
        what = f"{first[0].name} and {backend.name} differ"
        mine, theirs = first[1], outcome
        if isinstance(mine, Exception) or isinstance(theirs, Exception):
            if type(mine) is not type(theirs):
                raise PropertyError(
                    explain(
                        f"{name_of(f)}: {what}: {_told(mine)} and {_told(theirs)}.",
                        "the same mistake is the same error on every backend.",
                        "let the kernel raise what the other one raises",
                    )
                )
            continue
        if len(mine) != len(theirs):
            raise PropertyError(
                explain(
                    f"{name_of(f)}: {what}: {len(mine)} and {len(theirs)} results.", "they are the same.", "print(f(x))"
                )
            )
        _equal(f, what, mine, theirs, rtol, atol)


def _told(outcome: Any) -> str:
    return f"raises {type(outcome).__name__}" if isinstance(outcome, Exception) else "returns"


def _refuse_vacuous(f: Function, outcomes: list[Any]) -> None:
    """Raise where all backends agree in that f is broken, or that it returns nothing to compare."""
    if all(isinstance(o, Exception) and type(o) is type(outcomes[0]) for o in outcomes):
        raise outcomes[0]
    if not any(outcomes):
        raise ArgumentError(
            explain(f"{name_of(f)} returned no tensor.", "there is nothing to compare.", "return the tensor itself")
        )


def _comparable(given: Iterable[str | Backend] | None) -> list[Backend]:
    if given is None:
        usable = [resolve(info.name) for info in backends() if info.available]
        return [*usable, *map(without_kernels, usable)]
    chosen = [resolve(b) for b in given]
    if len(chosen) < 2:
        raise ArgumentError(
            explain(
                f"backend_parity with {len(chosen)} backend{'s' * (len(chosen) != 1)}.",
                "it takes two to differ.",
                'testing.backend_parity(f, x, backends=["numpy", "numba"])',
            )
        )
    return chosen


def _outcome(f: Function, hosts: list[Array], backend: Backend, seed: int) -> Any:
    """The values and gradients on one backend as arrays, or the type of what was raised."""
    with use_backend(backend):
        try:
            tensors = [make_tensor(h, backend=backend) for h in hosts]
            everything = [t for t in flatten(f(*tensors))[0] if isinstance(t, Tensor)]
            pulled: Sequence[Tensor] = ()
            if any(t.dtype.kind == "f" for t in tensors) and any(t.dtype.kind == "f" for t in everything):
                function, variables = _over_floats(f, tensors)
                outs, pullback = vjp(function, *variables)
                pulled = pullback(_random(np.random.default_rng(seed), outs))
            return [np.array(t.numpy()) for t in (*everything, *pulled)]
        except Exception as error:
            return error


__all__ = [
    "backend_parity", "check_adjoint", "check_batching", "check_broadcasting", "check_chain_rule",
    "check_hessian_symmetry", "check_linearity", "check_replay",
]  # fmt: skip
