"""Update rules of the optimizers: primitives that write parameters and optimizer state in place.

Each works on flat buffers that hold many parameters one after the other. `grads` are the parameters' gradients in the
buffer's order, one turned (transposed) where the parameter's memory is. Hyper-parameters are read from an array, so
that a traced step sees them change. The rules themselves are written once, over scalars and arrays alike.
"""

from __future__ import annotations

from typing import Any

from gradflow.primitive import defimpl, primitive
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


def _impl_sgd(
    xp: Any, p: Any, velocity: Any, step: Any, hyper: Any, *grads: Any, turned: Turned, nesterov: bool, maximize: bool
) -> tuple[Any, Any, Any]:
    lr, momentum, dampening, weight_decay = (float(h) for h in hyper)
    g = _flat(xp, grads, turned) * (-1.0 if maximize else 1.0)
    if weight_decay:
        g = g + p * weight_decay
    if momentum:
        first = float(step[0]) == 0
        velocity = g if first else velocity * momentum + g * (1 - dampening)
        g = g + velocity * momentum if nesterov else velocity
        step = step + 1  # those without momentum do not count: the velocity begins with the first that has it
    return p - g * lr, velocity, step


def _impl_adam(
    xp: Any,
    p: Any,
    m: Any,
    v: Any,
    step: Any,
    hyper: Any,
    *grads: Any,
    turned: Turned,
    decoupled: bool,
    eps_inside: bool,
    maximize: bool,
) -> tuple[Any, Any, Any, Any]:
    lr, beta1, beta2, eps, weight_decay = (float(h) for h in hyper)
    t = float(step[0]) + 1
    g = _flat(xp, grads, turned) * (-1.0 if maximize else 1.0)
    if weight_decay:
        p, g = (p * (1 - lr * weight_decay), g) if decoupled else (p, g + p * weight_decay)
    m = m * beta1 + g * (1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    m_hat, v_hat = m * (1 / (1 - beta1**t)), v * (1 / (1 - beta2**t))
    root = xp.sqrt(v_hat + eps) if eps_inside else xp.sqrt(v_hat) + eps
    return p - m_hat / root * lr, m, v, step + 1


defimpl(sgd, _impl_sgd)
defimpl(adam, _impl_adam)
