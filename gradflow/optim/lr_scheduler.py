"""Learning-rate schedules: PyTorch's names and numbers. Each `step` writes a new `group["lr"]` into every group.

A hyper-parameter is read by the update rule from the group's array, so a compiled step sees a schedule as it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, final

from gradflow.arguments import choice, flag, integer, integers, number, shown, wrong_kind
from gradflow.errors import ArgumentError, StateDictError, explain
from gradflow.optim.optimizer import Optimizer, ParamGroup
from gradflow.tensor import Tensor


# ---------------------------------------------------------------- what all schedules share
class Schedule(ABC):
    """Base of all schedules: an optimizer, and a state dict of plain numbers.

    Args:
        optimizer: whose groups' learning rates are written. The first schedule of an optimizer keeps what they are, as
            `initial_lr`, for those that follow.

    Raises:
        DTypeError: something that is no optimizer.
    """

    saved: ClassVar[tuple[str, ...]]  # attributes that change from step to step
    fixed: ClassVar[tuple[str, ...]] = ()  # attributes that a state dict must agree with
    _schedulers: Sequence[Schedule] = ()  # what it is made of

    @abstractmethod
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        for group in self._groups(optimizer):
            _initial(group)

    @classmethod
    def _groups(cls, optimizer: Any) -> list[ParamGroup]:
        """The groups of what should be an optimizer."""
        if not isinstance(optimizer, Optimizer):
            fix = "optimizer = optim.SGD(model.parameters(), lr=0.1), and give that"
            raise wrong_kind(cls.__name__, "optimizer", optimizer, "it changes an optimizer's lr.", fix)
        return optimizer.param_groups

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    @final
    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: what `load_state_dict` takes to go on from here."""
        state = {name: getattr(self, name) for name in (*self.fixed, *self.saved)}
        state = {name: list(value) if isinstance(value, list) else value for name, value in state.items()}
        if self._schedulers:
            state["_schedulers"] = [scheduler.state_dict() for scheduler in self._schedulers]
        return state

    @final
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave; the learning rates themselves are part of the optimizer's state.

        Raises:
            StateDictError: entries that are missing, that are no such numbers, or that say another schedule; nothing is
                loaded then.
        """
        wrong = self._misfits(state_dict)
        if wrong:
            raise StateDictError(
                explain(
                    f"this state does not fit {type(self).__name__}: {'; '.join(wrong)}.",
                    "it is that of a schedule built alike; nothing was loaded.",
                    "scheduler.load_state_dict(other.state_dict()), with the arguments of the other",
                )
            )
        for name in self.saved:
            value = state_dict[name]
            setattr(self, name, list(value) if isinstance(value, list | tuple) else value)
        for scheduler, state in zip(self._schedulers, state_dict.get("_schedulers", ()), strict=True):
            scheduler.load_state_dict(state)

    def _misfits(self, state_dict: Any) -> list[str]:
        if not isinstance(state_dict, Mapping):
            return [f"it is a {type(state_dict).__name__} and no dict"]
        wrong = []
        for name in self.saved:
            if name not in state_dict:
                wrong.append(f"{name} is missing")
            elif not _alike(getattr(self, name), state_dict[name]):
                wrong.append(f"{name} is {shown(state_dict[name])}")
        wrong += [
            f"{name} is {shown(state_dict[name])}, the schedule's {shown(getattr(self, name))}"
            for name in self.fixed
            if name in state_dict and not _equal(getattr(self, name), state_dict[name])
        ]
        parts = state_dict.get("_schedulers", ())
        if not isinstance(parts, list | tuple) or len(parts) != len(self._schedulers):
            return [*wrong, f"it is not made of {len(self._schedulers)} schedules"]
        for i, (scheduler, state) in enumerate(zip(self._schedulers, parts, strict=True)):
            wrong += [f"schedule {i}: {misfit}" for misfit in scheduler._misfits(state)]
        return wrong

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.fixed)
        return f"{type(self).__name__}({settings})"


def _alike(mine: Any, given: Any) -> bool:
    """Whether a value could stand in the place of another: a number, or as many numbers."""
    if isinstance(mine, list):
        return isinstance(given, list | tuple) and len(given) == len(mine) and all(map(_alike, mine, given))
    if isinstance(mine, int):
        return isinstance(given, int) and not isinstance(given, bool)
    return isinstance(given, int | float) and not isinstance(given, bool)


def _equal(mine: Any, given: Any) -> bool:
    if isinstance(mine, list) and isinstance(given, Mapping):  # PyTorch's milestones, with how often each is named
        given = sorted(Counter(given).elements())
    return bool(mine == (list(given) if isinstance(given, tuple) else given))


class LRScheduler(Schedule):
    """Base of the schedules that are a function of the number of steps, `last_epoch`.

    Attributes:
        last_epoch: the number of calls of `step`.
        base_lrs: the learning rates with which the groups began.
    """

    saved = ("last_epoch", "base_lrs")

    @abstractmethod
    def __init__(self, optimizer: Optimizer, base_lrs: list[float] | None = None) -> None:
        super().__init__(optimizer)
        if base_lrs is not None:
            for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group.initial_lr = group["lr"] = lr
        self.base_lrs = [_initial(group) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._write([group["lr"] for group in optimizer.param_groups])

    @abstractmethod
    def _rate(self, lr: float, base: float, group: int) -> float:
        """The rate of a group now, from its rate before and the one it began with.

        From the rate before, so that several schedules of one optimizer multiply.
        """

    @final
    def step(self) -> None:
        """Write the learning rates of the next epoch (or batch: whatever is counted)."""
        self.last_epoch += 1
        self._write([group["lr"] for group in self.optimizer.param_groups])

    @final
    def restart(self) -> None:
        """Begin anew, at the learning rates with which the groups began."""
        self.last_epoch = 0
        self._write(self._bases())

    def _bases(self) -> list[float]:
        """`base_lrs`, with those of groups that were added since."""
        self.base_lrs += [_initial(group) for group in self.optimizer.param_groups[len(self.base_lrs) :]]
        return self.base_lrs

    def _write(self, before: Sequence[float]) -> None:
        rates = [self._rate(lr, base, i) for i, (lr, base) in enumerate(zip(before, self._bases(), strict=True))]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _initial(group: ParamGroup) -> float:
    if group.initial_lr is None:
        group.initial_lr = group["lr"]
    return group.initial_lr


def _positive(function: str, name: str, value: Any) -> float:
    """A factor of a learning rate.

    Raises:
        ArgumentError: a negative or infinite one.
    """
    found = float(number(function, name, value))
    if not 0 <= found < math.inf:
        raise ArgumentError(explain(f"{function}() got {name}={found}.", "it is at least 0.", f"{name}=0.1"))
    return found


# ---------------------------------------------------------------- functions of the epoch
@final
class LambdaLR(LRScheduler):
    """A function of the epoch: lrₖ = lr₀ f(k).

    Args:
        optimizer: whose lr is written.
        lr_lambda: f, or one for each group.

    Raises:
        ArgumentError: more or fewer functions than groups.

    >>> optimizer = gf.optim.SGD([gf.Parameter([1.0])], lr=0.5)
    >>> scheduler = gf.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    >>> scheduler.step()
    >>> optimizer.lr
    0.45
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]):
        given = list(lr_lambda) if isinstance(lr_lambda, list | tuple) else [lr_lambda]
        for function in given:
            if not callable(function):
                reason = "it is a function of the epoch."
                raise wrong_kind("LambdaLR", "lr_lambda", function, reason, "lr_lambda=lambda epoch: 0.95**epoch")
        groups = len(self._groups(optimizer))
        self.lr_lambdas: list[Any] = given if isinstance(lr_lambda, list | tuple) else given * groups
        if len(self.lr_lambdas) != groups:
            raise ArgumentError(
                explain(
                    f"LambdaLR got {len(given)} functions for {groups} groups.",
                    "there is one for all groups, or one for each.",
                    "lr_lambda=lambda epoch: 0.95**epoch",
                )
            )
        super().__init__(optimizer)

    def _rate(self, lr: float, base: float, group: int) -> float:
        return float(base * self.lr_lambdas[min(group, len(self.lr_lambdas) - 1)](self.last_epoch))


@final
class StepLR(LRScheduler):
    """A factor γ every n epochs: lrₖ = lr₀ γ^⌊k/n⌋.

    Args:
        optimizer: whose lr is written.
        step_size: n.
        gamma: γ.

    Raises:
        ArgumentError: n below 1, or a negative γ.

    >>> optimizer = gf.optim.SGD([gf.Parameter([1.0])], lr=1.0)
    >>> scheduler = gf.optim.lr_scheduler.StepLR(optimizer, step_size=2)
    >>> for _ in range(2):
    ...     scheduler.step()
    >>> optimizer.lr
    0.1
    """

    fixed = ("step_size", "gamma")

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = integer("StepLR", "step_size", step_size, least=1)
        self.gamma = _positive("StepLR", "gamma", gamma)
        super().__init__(optimizer)

    def _rate(self, lr: float, base: float, group: int) -> float:
        return lr * self.gamma if self.last_epoch and self.last_epoch % self.step_size == 0 else lr


@final
class MultiStepLR(LRScheduler):
    """A factor γ at each of some epochs: lrₖ = lr₀ γ^(number of milestones ≤ k).

    Args:
        optimizer: whose lr is written.
        milestones: the epochs; one that is named twice counts twice.
        gamma: γ.

    Raises:
        DTypeError: milestones that are not integers.
        ArgumentError: a negative γ.

    >>> optimizer = gf.optim.SGD([gf.Parameter([1.0])], lr=1.0)
    >>> scheduler = gf.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[1, 3], gamma=0.5)
    >>> for _ in range(3):
    ...     scheduler.step()
    >>> optimizer.lr
    0.25
    """

    fixed = ("milestones", "gamma")

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones = _milestones("MultiStepLR", milestones)
        self.gamma = _positive("MultiStepLR", "gamma", gamma)
        super().__init__(optimizer)

    def _rate(self, lr: float, base: float, group: int) -> float:
        return float(lr * self.gamma ** self.milestones.count(self.last_epoch))


def _milestones(function: str, value: Any) -> list[int]:
    mistake = f"{function}() got milestones={shown(value)}."
    return sorted(integers(mistake, value, why="they are the numbers of epochs.", fix="milestones=[30, 60]"))


@final
class ExponentialLR(LRScheduler):
    """A factor γ every epoch: lrₖ = lr₀ γᵏ.

    Args:
        optimizer: whose lr is written.
        gamma: γ.

    Raises:
        ArgumentError: a negative γ.

    >>> optimizer = gf.optim.SGD([gf.Parameter([1.0])], lr=1.0)
    >>> scheduler = gf.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    >>> for _ in range(3):
    ...     scheduler.step()
    >>> optimizer.lr
    0.125
    """

    fixed = ("gamma",)

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = _positive("ExponentialLR", "gamma", gamma)
        super().__init__(optimizer)

    def _rate(self, lr: float, base: float, group: int) -> float:
        return lr * self.gamma if self.last_epoch else lr


@final
class LinearLR(LRScheduler):
    """A factor that goes in a straight line from a to b in n epochs, to warm up: lrₖ = lr₀ (a + (b − a) min(k/n, 1)).

    Args:
        optimizer: whose lr is written.
        start_factor: a, in (0, 1].
        end_factor: b, in [0, 1].
        total_iters: n.

    Raises:
        ArgumentError: factors outside these intervals, or n below 1.

    >>> optimizer = gf.optim.SGD([gf.Parameter([1.0])], lr=1.0)
    >>> scheduler = gf.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=4)
    >>> rates = [optimizer.lr]
    >>> for _ in range(4):
    ...     scheduler.step()
    ...     rates.append(optimizer.lr)
    >>> rates
    [0.5, 0.625, 0.75, 0.875, 1.0]
    """

    fixed = ("start_factor", "end_factor", "total_iters")

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor = _positive("LinearLR", "start_factor", start_factor)
        self.end_factor = _positive("LinearLR", "end_factor", end_factor)
        self.total_iters = integer("LinearLR", "total_iters", total_iters, least=1)
        if not (0 < self.start_factor <= 1 and self.end_factor <= 1):
            raise ArgumentError(
                explain(
                    f"LinearLR got start_factor={start_factor}, end_factor={end_factor}.",
                    "factors are at most 1, and the first is not 0, as each rate follows from the one before.",
                    "start_factor=0.1, end_factor=1.0",
                )
            )
        super().__init__(optimizer)

    def _rate(self, lr: float, base: float, group: int) -> float:
        if self.last_epoch == 0:
            return lr * self.start_factor
        if self.last_epoch > self.total_iters:
            return lr
        rise = self.end_factor - self.start_factor
        return lr * (1 + rise / (self.total_iters * self.start_factor + (self.last_epoch - 1) * rise))


@final
class CosineAnnealingLR(LRScheduler):
    """Half a wave of the cosine from lr₀ down to ηₘᵢₙ: lrₖ = ηₘᵢₙ + ½ (lr₀ − ηₘᵢₙ) (1 + cos(π k/T)).

    Args:
        optimizer: whose lr is written.
        T_max: T; after it the rate climbs again.
        eta_min: ηₘᵢₙ.

    Raises:
        ArgumentError: T below 1, or a negative ηₘᵢₙ.

    Source: Loshchilov and Hutter: SGDR: stochastic gradient descent with warm restarts, 2017.

    >>> optimizer = gf.optim.SGD([gf.Parameter([1.0])], lr=1.0)
    >>> scheduler = gf.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    >>> for _ in range(2):
    ...     scheduler.step()
    >>> optimizer.lr
    0.5
    """

    fixed = ("T_max", "eta_min")

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = integer("CosineAnnealingLR", "T_max", T_max, least=1)
        self.eta_min = _positive("CosineAnnealingLR", "eta_min", eta_min)
        super().__init__(optimizer)

    def _rate(self, lr: float, base: float, group: int) -> float:
        epoch = self.last_epoch
        if epoch == 0:
            return lr
        if (epoch - 1 - self.T_max) % (2 * self.T_max) == 0:  # the rate before is ηₘᵢₙ, and says nothing of lr₀
            return lr + (base - self.eta_min) * (1 - math.cos(math.pi / self.T_max)) / 2
        now, before = (1 + math.cos(math.pi * k / self.T_max) for k in (epoch, epoch - 1))
        return max(now / before * (lr - self.eta_min) + self.eta_min, 0.0)  # rounding may pass ηₘᵢₙ = 0


class _Phase(NamedTuple):
    """A stretch of a cycle: its last step, and what the learning rate and the momentum come from and go to."""

    end: float
    rate: tuple[str, str]
    momentum: tuple[str, str]


@final
class OneCycleLR(LRScheduler):
    """One cycle: up from lr/d to lr, down to lr/(d f), batch by batch; the momentum goes the other way.

    Args:
        optimizer: whose lr, and momentum or β₁, are written.
        max_lr: lr, or one for each group.
        total_steps: the number of steps; or, in its place, ``epochs`` and ``steps_per_epoch``.
        epochs: the number of epochs.
        steps_per_epoch: the number of batches in one.
        pct_start: the share of the steps in which the rate goes up.
        anneal_strategy: "cos" or "linear".
        cycle_momentum: whether the momentum (of SGD) or β₁ (of Adam) moves.
        base_momentum: its lowest value.
        max_momentum: its highest.
        div_factor: d.
        final_div_factor: f.
        three_phase: go down to lr/d as fast as up, and only then to lr/(d f).

    Raises:
        ArgumentError: numbers that say no length, a share outside [0, 1], or rates that are not one for each group.

    Source: Smith and Topin: Super-convergence: very fast training of neural networks using large learning rates, 2018.

    >>> optimizer = gf.optim.Adam([gf.Parameter([1.0])])
    >>> scheduler = gf.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    >>> rates = []
    >>> for _ in range(10):
    ...     rates.append(round(optimizer.lr, 4))
    ...     scheduler.step()
    >>> rates[0], max(rates), rates[-1]
    (0.004, 0.1, 0.0)
    """

    fixed = ("total_steps",)

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        self.total_steps = _total_steps(total_steps, epochs, steps_per_epoch)
        share = float(number("OneCycleLR", "pct_start", pct_start))
        if not 0 <= share <= 1:
            raise ArgumentError(explain(f"OneCycleLR got pct_start={share}.", "it is in [0, 1].", "pct_start=0.3"))
        self._is_cosine = choice("OneCycleLR", "anneal_strategy", anneal_strategy, ("cos", "linear")) == "cos"
        down, final_down = _divisor("div_factor", div_factor), _divisor("final_div_factor", final_div_factor)
        self._momenta = {
            "low": _positive("OneCycleLR", "base_momentum", base_momentum),
            "high": _positive("OneCycleLR", "max_momentum", max_momentum),
        }
        self._phases = _phases(self.total_steps, share, flag("OneCycleLR", "three_phase", three_phase))
        cycled = flag("OneCycleLR", "cycle_momentum", cycle_momentum)
        tops = _each_group(len(self._groups(optimizer)), max_lr, "max_lr", "OneCycleLR")
        self._momentum = _momentum_of(optimizer) if cycled else None
        self._rates = [{"start": top / down, "top": top, "end": top / down / final_down} for top in tops]
        super().__init__(optimizer, [rates["start"] for rates in self._rates])

    def _rate(self, lr: float, base: float, group: int) -> float:
        if self.last_epoch > self.total_steps:
            raise ArgumentError(
                explain(
                    f"step {self.last_epoch} of a OneCycleLR of {self.total_steps} steps.",
                    "the cycle is over.",
                    f"OneCycleLR(optimizer, max_lr, total_steps={self.last_epoch}), or more",
                )
            )
        start = 0.0
        for phase in self._phases:
            if self.last_epoch <= phase.end or phase is self._phases[-1]:
                break
            start = phase.end
        share = (self.last_epoch - start) / ((phase.end - start) or 1.0)
        if self._momentum is not None:
            low, high = (self._momenta[name] for name in phase.momentum)
            self.optimizer.param_groups[group][self._momentum] = self._between(low, high, share)
        rates = self._rates[min(group, len(self._rates) - 1)]
        start_rate, end_rate = (rates[name] for name in phase.rate)
        return max(self._between(start_rate, end_rate, share), 0.0)  # one step beyond the end a line is below 0

    def _between(self, start: float, end: float, share: float) -> float:
        if self._is_cosine:
            return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
        return (end - start) * share + start


def _divisor(name: str, value: Any) -> float:
    found = _positive("OneCycleLR", name, value)
    if found == 0:
        raise ArgumentError(explain(f"OneCycleLR() got {name}=0.", "a rate is divided by it.", f"{name}=25.0"))
    return found


def _total_steps(total_steps: Any, epochs: Any, steps_per_epoch: Any) -> int:
    if total_steps is not None:
        return integer("OneCycleLR", "total_steps", total_steps, least=1)
    if epochs is None or steps_per_epoch is None:
        raise ArgumentError(
            explain(
                "OneCycleLR without a length.",
                "it takes total_steps, or epochs and steps_per_epoch.",
                "OneCycleLR(optimizer, max_lr=0.1, epochs=10, steps_per_epoch=len(loader))",
            )
        )
    found = integer("OneCycleLR", "epochs", epochs, least=1)
    return found * integer("OneCycleLR", "steps_per_epoch", steps_per_epoch, least=1)


def _phases(steps: int, share: float, three: bool) -> list[_Phase]:
    up = _Phase(share * steps - 1, ("start", "top"), ("high", "low"))
    if not three:
        return [up, _Phase(steps - 1, ("top", "end"), ("low", "high"))]
    down = _Phase(2 * share * steps - 2, ("top", "start"), ("low", "high"))
    return [up, down, _Phase(steps - 1, ("start", "end"), ("high", "high"))]


def _momentum_of(optimizer: Optimizer) -> str:
    found = next((name for name in ("momentum", "beta1") if name in optimizer.hyper), None)
    if found is None:
        raise ArgumentError(
            explain(
                f"OneCycleLR with cycle_momentum=True for {type(optimizer).__name__}.",
                "it has neither a momentum nor a β₁.",
                "cycle_momentum=False",
            )
        )
    return found


def _each_group(groups: int, value: Any, name: str, function: str) -> list[float]:
    """One number for each group, given as one for all or as one for each."""
    given = list(value) if isinstance(value, list | tuple) else [value] * groups
    if len(given) != groups:
        raise ArgumentError(
            explain(
                f"{function} got {len(given)} values of {name} for {groups} groups.",
                "there is one for all groups, or one for each.",
                f"{name}=0.1",
            )
        )
    return [_positive(function, name, item) for item in given]


# ---------------------------------------------------------------- what reacts to the training
@final
class ReduceLROnPlateau(Schedule):
    """A factor γ whenever a quantity has not improved for more than n epochs.

    Args:
        optimizer: whose lr is written.
        mode: "min" for a quantity that should fall, "max" for one that should rise.
        factor: γ < 1.
        patience: n, the number of epochs without improvement that are put up with.
        threshold: what counts as an improvement: more than this share ("rel") or amount ("abs").
        threshold_mode: "rel" or "abs".
        cooldown: epochs after a reduction that are not counted.
        min_lr: no rate is made smaller; one for all groups or one for each.
        eps: a reduction by less is not made.

    Raises:
        ArgumentError: a factor of 1 or more, or an unknown mode.

    >>> optimizer = gf.optim.SGD([gf.Parameter([1.0])], lr=1.0)
    >>> scheduler = gf.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    >>> for loss in [3.0, 2.0, 2.0, 2.0]:
    ...     scheduler.step(loss)
    >>> optimizer.lr
    0.1
    """

    saved = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")
    fixed = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        name = "ReduceLROnPlateau"
        self.mode = choice(name, "mode", mode, ("min", "max"))
        self.factor = _positive(name, "factor", factor)
        if self.factor >= 1:
            raise ArgumentError(explain(f"{name} got factor={factor}.", "it is below 1.", "factor=0.1"))
        self.patience = integer(name, "patience", patience, least=0)
        self.threshold = _positive(name, "threshold", threshold)
        self.threshold_mode = choice(name, "threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = integer(name, "cooldown", cooldown, least=0)
        self.eps = _positive(name, "eps", eps)
        super().__init__(optimizer)
        self.min_lrs = _each_group(len(optimizer.param_groups), min_lr, "min_lr", name)
        self.best = math.inf if mode == "min" else -math.inf
        self.last_epoch = self.num_bad_epochs = self.cooldown_counter = 0

    def step(self, metrics: float | Tensor) -> None:
        """Look at the quantity after an epoch, and reduce the learning rates if it is time to."""
        value = float(number("step", "metrics", metrics, fix="scheduler.step(loss)"))
        self.last_epoch += 1
        if self._is_better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for i, group in enumerate(self.optimizer.param_groups):
                lr = group["lr"]
                reduced = max(lr * self.factor, self.min_lrs[min(i, len(self.min_lrs) - 1)])
                if lr - reduced > self.eps:
                    group["lr"] = reduced
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _is_better(self, value: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            return sign * value > sign * self.best * (1 + sign * self.threshold)
        return sign * value > sign * self.best + self.threshold


# ---------------------------------------------------------------- several in sequence
@final
class SequentialLR(Schedule):
    """Schedules one after the other, a warm-up and then a decay for instance; each begins anew at its milestone.

    Args:
        optimizer: whose lr is written, the one of all the schedules.
        schedulers: in their order.
        milestones: the epochs at which the second begins, the third, and so on.

    Raises:
        ArgumentError: a schedule of another optimizer, or milestones that are not one fewer and increasing.
        DTypeError: something that is no schedule of the epoch.

    >>> optimizer = gf.optim.SGD([gf.Parameter([1.0])], lr=1.0)
    >>> warm_up = gf.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=2)
    >>> decay = gf.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)
    >>> scheduler = gf.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, decay], milestones=[2])
    >>> rates = [optimizer.lr]
    >>> for _ in range(4):
    ...     scheduler.step()
    ...     rates.append(round(optimizer.lr, 3))
    >>> rates
    [0.5, 0.75, 1.0, 0.1, 0.01]
    """

    saved = ("last_epoch",)
    fixed = ("milestones",)
    _schedulers: Sequence[LRScheduler | SequentialLR]

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler | SequentialLR], milestones: Sequence[int]
    ) -> None:
        fix = "SequentialLR(optimizer, [warm_up, decay], milestones=[5])"
        if not isinstance(schedulers, list | tuple):
            raise wrong_kind("SequentialLR", "schedulers", schedulers, "they are a list.", fix)
        for scheduler in schedulers:
            if not isinstance(scheduler, LRScheduler | SequentialLR):
                reason = "it runs schedules that are functions of the epoch."
                raise wrong_kind("SequentialLR", "a schedule", scheduler, reason, fix)
        self.milestones = _milestones("SequentialLR", milestones)
        self._schedulers = list(schedulers)
        super().__init__(optimizer)
        if any(scheduler.optimizer is not optimizer for scheduler in schedulers):
            raise ArgumentError(
                explain("SequentialLR got a schedule of another optimizer.", "all of them write one lr.", fix)
            )
        rising = all(a < b for a, b in pairwise([0, *self.milestones]))
        if not schedulers or len(self.milestones) != len(schedulers) - 1 or not rising:
            raise ArgumentError(
                explain(
                    f"SequentialLR got {len(schedulers)} schedules and milestones={self.milestones}.",
                    "each schedule but the first has one, the epoch above 0 at which it begins, later than the last.",
                    fix,
                )
            )
        self.restart()

    def step(self) -> None:
        """Write the learning rates of the next epoch."""
        self.last_epoch += 1
        at = bisect_right(self.milestones, self.last_epoch)
        if at and self.milestones[at - 1] == self.last_epoch:
            self._schedulers[at].restart()
        else:
            self._schedulers[at].step()

    def restart(self) -> None:
        """Begin anew, with the first schedule."""
        self.last_epoch = 0
        self._schedulers[0].restart()


__all__ = [
    "CosineAnnealingLR", "ExponentialLR", "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR", "OneCycleLR",
    "ReduceLROnPlateau", "Schedule", "SequentialLR", "StepLR",
]  # fmt: skip
