"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from gradflow.arguments import flag
from gradflow.errors import ArgumentError, explain
from gradflow.ops.update import SGD_HYPER
from gradflow.optim.optimizer import FirstOrder, require


@final
class SGD(FirstOrder):
    """Stochastic gradient descent with momentum, Nesterov's variant, and weight decay.

    With gradient g, velocity b, and λ the weight decay::

        g ← g + λ w
        b ← μ b + (1 − τ) g          (b ← g in the first step with momentum)
        w ← w − lr (g + μ b)         nesterov
        w ← w − lr b                 otherwise; w ← w − lr g without momentum

    Args:
        params: parameters or groups.
        lr: learning rate η ≥ 0.
        momentum: μ ≥ 0.
        dampening: τ.
        weight_decay: λ ≥ 0, the factor of ‖w‖²/2 in the loss.
        nesterov: look ahead along the velocity; needs momentum and no dampening.
        maximize: climb instead of descend.

    Raises:
        ArgumentError: a hyper-parameter out of range, no parameters, or one given twice.

    Source: Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum in deep learning, 2013.

    >>> w = gf.Parameter([1.0])
    >>> optimizer = gf.optim.SGD([w], lr=0.1)
    >>> (w**2).sum().backward()
    >>> optimizer.step()
    >>> w
    parameter([0.8])
    """

    rule = "sgd"
    hyper = SGD_HYPER
    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        self.settings = {
            "nesterov": flag(type(self).__name__, "nesterov", nesterov),
            "maximize": flag(type(self).__name__, "maximize", maximize),
        }
        if self.settings["nesterov"] and (require("momentum", momentum) == 0 or require("dampening", dampening) != 0):
            raise ArgumentError(
                explain(
                    f"nesterov=True with momentum={momentum}, dampening={dampening}.",
                    "Nesterov's variant looks ahead along an undamped velocity.",
                    "SGD(params, lr, momentum=0.9, nesterov=True)",
                )
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay})
