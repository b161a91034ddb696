"""Update rules of the optimizers: primitives that write parameters and optimizer state in place.

Each works on flat buffers that hold many parameters one after the other. `grads` are the parameters' gradients in the
buffer's order, one turned (transposed) where the parameter's memory is. Hyper-parameters are read from an array, so
that a traced step sees them change. The rules themselves are written once, over scalars and arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradflow.primitive import REGISTRY, defimpl, primitive
from gradflow.tensor import Tensor

Turned = tuple[bool, ...]

SGD_HYPER = ("lr", "momentum", "dampening", "weight_decay")
ADAM_HYPER = ("lr", "beta1", "beta2", "eps", "weight_decay")


@primitive("any", writes=3)
def sgd(
    param: Tensor,
    velocity: Tensor,
    step: Tensor,
    hyper: Tensor,
    /,
    *grads: Tensor,
    turned: Turned,
    nesterov: bool,
    maximize: bool,
) -> None:
    """Stochastic gradient descent with momentum (`SGD_HYPER`); see `optim.SGD` for the equations."""


@primitive("any", writes=4)
def adam(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    hyper: Tensor,
    /,
    *grads: Tensor,
    turned: Turned,
    decoupled: bool,
    eps_inside: bool,
    maximize: bool,
) -> None:
    """Adam (`ADAM_HYPER`), weight decay in the gradient or decoupled; see `optim.Adam` for the equations."""


def _flat(xp: Any, grads: tuple[Any, ...], turned: Turned) -> Any:
    """The gradients in the order of the flat buffer."""
    pieces = (
        xp.reshape(xp.matrix_transpose(g) if turn else g, shape=(g.size,))
        for g, turn in zip(grads, turned, strict=True)
    )
    return xp.concat(*pieces, axis=0)


# ---------------------------------------------------------------- the rules, for a whole buffer or one parameter of it
def _rule_sgd(
    xp: Any, p: Any, velocity: Any, made: Any, hyper: Any, g: Any, *, nesterov: bool, maximize: bool
) -> tuple[Any, Any]:
    """Parameters and velocity after a step; `made` steps with momentum came before."""
    lr, momentum, dampening, weight_decay = hyper
    in_units = _caster(xp, p)
    g = (-g if maximize else g) + p * in_units(weight_decay)
    gained = xp.where(made == 0, g, velocity * in_units(momentum) + g * in_units(1 - dampening))
    after = g + gained * in_units(momentum) if nesterov else gained
    return p - xp.where(momentum == 0, g, after) * in_units(lr), xp.where(momentum == 0, velocity, gained)


def _rule_adam(
    xp: Any,
    p: Any,
    m: Any,
    v: Any,
    made: Any,
    hyper: Any,
    g: Any,
    *,
    decoupled: bool,
    eps_inside: bool,
    maximize: bool,
) -> tuple[Any, Any, Any]:
    """Parameters and moments after a step; `made` steps came before. The bias correction is moved into lr and ε."""
    lr, beta1, beta2, eps, weight_decay = hyper
    in_units = _caster(xp, p)
    t = made + 1
    root = xp.sqrt(1 - xp.power(beta2, t))
    rate, floor = in_units(lr * root / (1 - xp.power(beta1, t))), in_units(eps * root * (root if eps_inside else 1))
    g = -g if maximize else g
    p, g = (p * in_units(1 - lr * weight_decay), g) if decoupled else (p, g + p * in_units(weight_decay))
    m = m * in_units(beta1) + g * in_units(1 - beta1)
    m = xp.where(xp.abs(m) < _dies_at(m.dtype), 0.0, m)
    v = v * in_units(beta2) + g * g * in_units(1 - beta2)
    return p - m / (xp.sqrt(v + floor) if eps_inside else xp.sqrt(v) + floor) * rate, m, v


def _dies_at(dtype: Any) -> float:
    """Below it a decaying mean counts as 0: arithmetic on subnormal numbers, where it would end, is slow."""
    return float(np.finfo(dtype).tiny) * 1e8


def _caster(xp: Any, p: Any) -> Any:
    """Hyper-parameters are computed in float64 and used in the parameters' dtype."""
    return lambda number: xp.astype(number, dtype=p.dtype)


RULES: dict[str, Callable[..., Any]] = {"sgd": _rule_sgd, "adam": _rule_adam}
"""(xp, parameters, *slots, steps made, hyper-parameters, gradient) -> new parameters and slots."""

COUNTS: dict[str, Callable[..., Any]] = {
    "sgd": lambda xp, step, hyper: step + xp.astype(hyper[1] != 0, dtype=step.dtype),  # only those with momentum count
    "adam": lambda xp, step, hyper: step + 1,
}
"""(xp, counts of steps, hyper-parameters) -> new counts."""


def _impl(name: str) -> Any:
    """A rule on flat buffers."""

    def impl(xp: Any, *operands: Any, turned: Turned, **settings: Any) -> tuple[Any, ...]:
        slots = len(REGISTRY[name].operands) - 3
        buffers, (step, hyper), grads = operands[:slots], operands[slots : slots + 2], operands[slots + 2 :]
        numbers = [xp.as_array(h) for h in hyper]
        new = RULES[name](xp, *buffers, xp.as_array(step[0]), numbers, _flat(xp, grads, turned), **settings)
        return *new, COUNTS[name](xp, step, numbers)

    return impl


defimpl(sgd, _impl("sgd"))
defimpl(adam, _impl("adam"))
