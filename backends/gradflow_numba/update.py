"""Optimizer updates over flat buffers, in one pass over parameters, moments and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gradflow_numba import threads
from gradflow_numba.jit import loop
from gradflow_numba.kernels import KERNELS, Array, fits, kernel

SMALL = 1 << 15  # elements: smaller gradients are gathered into one array, as a call takes 1 µs
LARGE = 1 << 17  # elements: from here on threads may pay

_numpy_adam, _numpy_sgd = KERNELS["adam"], KERNELS["sgd"]


def _pieces(n: int, grads: tuple[Array, ...], turned: tuple[bool, ...]) -> Iterable[tuple[int, int, Array]]:
    """(start, stop, gradient) over a flat buffer of n elements: large ones as they are, small neighbours gathered."""
    flat = [g.T.ravel() if turn else g.ravel() for g, turn in zip(grads, turned)]  # noqa: B905  (240 ns)
    return [(0, n, np.concatenate(flat))] if n < SMALL else _cut(flat)


def _cut(flat: list[Array]) -> Iterator[tuple[int, int, Array]]:
    start = held = 0
    waiting: list[Array] = []
    for g in flat:
        if g.size < SMALL:
            waiting.append(g)
            held += g.size
            continue
        if waiting:
            yield start, start + held, np.concatenate(waiting)
            start, held, waiting = start + held, 0, []
        yield start, start + g.size, g if g.flags.carray else g.copy()
        start += g.size
    if waiting:
        yield start, start + held, np.concatenate(waiting)


def _compiled(param: Array, *others: Array) -> bool:
    """Whether compiled code takes the operands: flat, and of one dtype."""
    dtype = param.dtype
    for a in others:
        if a.dtype is not dtype:
            return False
    return fits(param)


_sites: dict[tuple[Any, int], threads.Adaptive] = {}


def _in_threads(name: Any, n: int, *args: Any) -> None:
    """Run a loop over n elements, on as many threads as are faster for about so many."""
    site = _sites.get((name, n.bit_length()))
    if site is None:
        from gradflow_numba import parallel

        site = _sites[name, n.bit_length()] = threads.Adaptive(name, parallel.IN_BLOCKS[name])
    site(*args)


@loop
def adam_loop(
    p: Array,
    m: Array,
    v: Array,
    g: Array,
    t: float,
    hyper: Array,
    decoupled: bool,
    inside: bool,
    sign: float,
    start: int,
    stop: int,
) -> None:
    """Step t of Adam over a piece; moments that have all but died out become 0, as in the NumPy backend."""
    lr, beta1, beta2, eps, weight_decay = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    root = np.sqrt(1 - beta2**t)  # of the bias correction; it is moved from v into lr and ε
    number = p.dtype.type
    rate, small = number(lr * root / (1 - beta1**t)), number(eps * root * root if inside else eps * root)
    c1, n1, c2, n2 = number(beta1), number(1 - beta1), number(beta2), number(1 - beta2)
    shrink, decay = number(1 - lr * weight_decay if decoupled else 1.0), number(0.0 if decoupled else weight_decay)
    up, zero, floor = number(sign), number(0), number(np.finfo(p.dtype).tiny * number(1e8))
    p, m, v, g = (
        p[start:stop],
        m[start:stop],
        v[start:stop],
        g[start:stop],
    )  # from 0, indices are not negative
    for i in range(p.size):
        pi = p[i]
        gi = up * g[i] + decay * pi
        mi = m[i] * c1 + gi * n1
        vi = v[i] * c2 + gi * gi * n2
        mi = zero if abs(mi) < floor else mi
        below = np.sqrt(vi + small) if inside else np.sqrt(vi) + small
        m[i] = mi
        v[i] = vi
        p[i] = pi * shrink - rate * (mi / below)


@kernel("adam")
def adam(
    param: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    step: Array,
    hyper: Array,
    *grads: Array,
    turned: tuple[bool, ...],
    decoupled: bool,
    eps_inside: bool,
    maximize: bool,
) -> None:
    """0.3 ns a parameter on one thread, where sixteen calls of NumPy take 1.2 to 1.6."""
    if not _compiled(param, exp_avg, exp_avg_sq, *grads):
        settings = {"turned": turned, "decoupled": decoupled, "eps_inside": eps_inside, "maximize": maximize}
        _numpy_adam(param, exp_avg, exp_avg_sq, step, hyper, *grads, **settings)
        return
    t = step.item(0) + 1
    step.fill(t)
    sign = -1.0 if maximize else 1.0
    for start, stop, g in _pieces(param.size, grads, turned):
        n = stop - start
        whole = n == param.size  # a slice takes 0.1 µs
        p, m, v = (param, exp_avg, exp_avg_sq) if whole else (a[start:stop] for a in (param, exp_avg, exp_avg_sq))
        if n < LARGE:
            adam_loop(p, m, v, g, t, hyper, decoupled, eps_inside, sign, 0, n)
        else:
            _in_threads(adam_loop, n, p, m, v, g, t, hyper, decoupled, eps_inside, sign, 0, n)


@loop
def sgd_loop(
    p: Array, velocity: Array, g: Array, made: float, hyper: Array, nesterov: bool, sign: float, start: int, stop: int
) -> None:
    """The step of gradient descent after `made` with momentum."""
    number = p.dtype.type
    lr, momentum, share, decay = number(hyper[0]), number(hyper[1]), number(1 - hyper[2]), number(hyper[3])
    up, zero, floor = number(sign), number(0), number(np.finfo(p.dtype).tiny * number(1e8))
    p, velocity, g = p[start:stop], velocity[start:stop], g[start:stop]
    if momentum == zero:
        for i in range(p.size):
            p[i] -= lr * (up * g[i] + decay * p[i])
        return
    kept = momentum if made else zero  # the velocity begins with the first gradient, undamped
    taken = share if made else number(1)
    for i in range(p.size):
        gi = up * g[i] + decay * p[i]
        b = velocity[i] * kept + gi * taken
        b = zero if abs(b) < floor else b
        velocity[i] = b
        p[i] -= lr * (gi + b * momentum if nesterov else b)


@kernel("sgd")
def sgd(
    param: Array,
    velocity: Array,
    step: Array,
    hyper: Array,
    *grads: Array,
    turned: tuple[bool, ...],
    nesterov: bool,
    maximize: bool,
) -> None:
    if not _compiled(param, velocity, *grads):
        _numpy_sgd(param, velocity, step, hyper, *grads, turned=turned, nesterov=nesterov, maximize=maximize)
        return
    made = step.item(0)
    if hyper[1]:
        step.fill(made + 1)
    sign = -1.0 if maximize else 1.0
    for start, stop, g in _pieces(param.size, grads, turned):
        n = stop - start
        p, b = (param, velocity) if n == param.size else (param[start:stop], velocity[start:stop])
        if n < LARGE:
            sgd_loop(p, b, g, made, hyper, nesterov, sign, 0, n)
        else:
            _in_threads(sgd_loop, n, p, b, g, made, hyper, nesterov, sign, 0, n)
