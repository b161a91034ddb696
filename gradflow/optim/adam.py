"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from gradflow.arguments import flag
from gradflow.ops.update import ADAM_HYPER
from gradflow.optim.optimizer import FirstOrder


@final
class Adam(FirstOrder):
    """Adam: steps scaled by running means of the gradient and of its square.

    With gradient g, step count t, and λ the weight decay::

        g ← g + λ w
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
        w ← w − lr m̂ / (√v̂ + ε)     or  w ← w − lr m̂ / √(v̂ + ε)  with eps_inside_root

    The paper and every library add ε outside the root, which is the default; some texts put it inside. Near v̂ = 0 the
    two differ: outside, the step is bounded by lr/ε, inside by lr/√ε.

    Args:
        params: parameters or groups.
        lr: learning rate ≥ 0.
        betas: (β₁, β₂), each in [0, 1).
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0, the factor of ‖w‖²/2 in the loss; decoupled in `AdamW`.
        eps_inside_root: where ε is added.
        maximize: climb instead of descend.

    Raises:
        ArgumentError: a hyper-parameter out of range, no parameters, or one given twice.

    Source: Kingma and Ba: Adam: a method for stochastic optimization, 2015.

    >>> w = gf.Parameter([1.0])
    >>> optimizer = gf.optim.Adam([w], lr=0.1)
    >>> (w**2).sum().backward()
    >>> optimizer.step()
    >>> w
    parameter([0.9])
    """

    rule = "adam"
    hyper = ADAM_HYPER
    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_inside_root: bool = False,
        maximize: bool = False,
    ) -> None:
        self.settings = {
            "decoupled": False,
            "eps_inside": flag(type(self).__name__, "eps_inside_root", eps_inside_root),
            "maximize": flag(type(self).__name__, "maximize", maximize),
        }
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})


@final
class AdamW(FirstOrder):
    """Adam with decoupled weight decay: w ← w − lr λ w before Adam's step on the plain gradient.

    Args:
        params: parameters or groups.
        lr: learning rate ≥ 0.
        betas: (β₁, β₂), each in [0, 1).
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0.
        eps_inside_root: where ε is added, see `Adam`.
        maximize: climb instead of descend.

    Raises:
        ArgumentError: a hyper-parameter out of range, no parameters, or one given twice.

    Source: Loshchilov and Hutter: Decoupled weight decay regularization, 2019.

    >>> w = gf.Parameter([1.0])
    >>> optimizer = gf.optim.AdamW([w], lr=0.1, weight_decay=0.5)
    >>> (w**2).sum().backward()
    >>> optimizer.step()
    >>> w
    parameter([0.85])
    """

    rule = "adam"
    hyper = ADAM_HYPER
    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        eps_inside_root: bool = False,
        maximize: bool = False,
    ) -> None:
        self.settings = {
            "decoupled": True,
            "eps_inside": flag(type(self).__name__, "eps_inside_root", eps_inside_root),
            "maximize": flag(type(self).__name__, "maximize", maximize),
        }
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
