"""Learning-rate schedules against PyTorch's, whole trajectories of every group; their state, and what they write."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, optim
from gradflow.compiler import trace
from gradflow.optim import lr_scheduler

Make = Callable[[Any, Any], Any]  # of a library's lr_scheduler and an optimizer
EPOCHS = 30
RATES = (0.5, 0.02)  # of the two groups

CASES: dict[str, list[Make]] = {
    "LambdaLR": [
        lambda lib, o: lib.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
        lambda lib, o: lib.LambdaLR(o, [lambda epoch: 0.9**epoch, lambda epoch: 1 + epoch / 2]),
    ],
    "StepLR": [lambda lib, o: lib.StepLR(o, 4, 0.5), lambda lib, o: lib.StepLR(o, 1)],
    "MultiStepLR": [
        lambda lib, o: lib.MultiStepLR(o, [3, 3, 10], 0.3),
        lambda lib, o: lib.MultiStepLR(o, [0, 8]),
        lambda lib, o: lib.MultiStepLR(o, []),
    ],
    "ExponentialLR": [lambda lib, o: lib.ExponentialLR(o, 0.8), lambda lib, o: lib.ExponentialLR(o, gamma=1.1)],
    "LinearLR": [
        lambda lib, o: lib.LinearLR(o),
        lambda lib, o: lib.LinearLR(o, 0.1, 0.7, 12),
        lambda lib, o: lib.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=20),
    ],
    "CosineAnnealingLR": [
        lambda lib, o: lib.CosineAnnealingLR(o, 7),
        lambda lib, o: lib.CosineAnnealingLR(o, T_max=30, eta_min=0.01),
        lambda lib, o: lib.CosineAnnealingLR(o, 1, 0.1),
    ],
    "OneCycleLR": [
        lambda lib, o: lib.OneCycleLR(o, 0.3, 40),
        lambda lib, o: lib.OneCycleLR(o, [0.3, 0.1], EPOCHS + 1, anneal_strategy="linear"),
        lambda lib, o: lib.OneCycleLR(o, 0.3, epochs=6, steps_per_epoch=5, pct_start=0.4, three_phase=True),
        lambda lib, o: lib.OneCycleLR(o, 0.3, 35, div_factor=5, final_div_factor=10, cycle_momentum=False),
        lambda lib, o: lib.OneCycleLR(o, 0.3, 35, base_momentum=0.5, max_momentum=0.7),
    ],
    "ReduceLROnPlateau": [
        lambda lib, o: lib.ReduceLROnPlateau(o, patience=2),
        lambda lib, o: lib.ReduceLROnPlateau(o, "max", 0.5, 0, threshold=0.1, cooldown=2, min_lr=[0.1, 0.001]),
        lambda lib, o: lib.ReduceLROnPlateau(o, threshold_mode="abs", threshold=0.3, patience=1, min_lr=0.004),
        lambda lib, o: lib.ReduceLROnPlateau(o, "max", threshold_mode="abs", patience=1, eps=1e-3),
    ],
    "SequentialLR": [
        lambda lib, o: lib.SequentialLR(
            o, [lib.LinearLR(o, 0.1, total_iters=5), lib.CosineAnnealingLR(o, 20)], milestones=[5]
        ),
        lambda lib, o: lib.SequentialLR(
            o,
            [lib.StepLR(o, 2), lib.ExponentialLR(o, 0.9), lib.LambdaLR(o, lambda k: 2.0 - k / 30)],
            milestones=[4, 11],
        ),
    ],
}
MAKERS = [pytest.param(make, id=f"{name}-{i}") for name, makes in CASES.items() for i, make in enumerate(makes)]
METRICS = np.random.default_rng(3).uniform(1, 2, EPOCHS) * np.linspace(2, 1, EPOCHS)
METRICS[7] = math.nan


def ours(kind: str = "SGD") -> optim.Optimizer:
    groups = [{"params": [gf.Parameter([1.0, 2.0])], "lr": RATES[0]}, {"params": [gf.Parameter([3.0])]}]
    make: Any = getattr(optim, kind)
    return make(groups, lr=RATES[1], **({"momentum": 0.9} if kind == "SGD" else {}))  # type: ignore[no-any-return]


def theirs(torch: Any, kind: str = "SGD") -> Any:
    groups = [
        {"params": [torch.nn.Parameter(torch.tensor([1.0, 2.0]))], "lr": RATES[0]},
        {"params": [torch.nn.Parameter(torch.tensor([3.0]))]},
    ]
    return getattr(torch.optim, kind)(groups, lr=RATES[1], **({"momentum": 0.9} if kind == "SGD" else {}))


def one_step(scheduler: Any, epoch: int) -> None:
    plateau = type(scheduler).__name__ == "ReduceLROnPlateau"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's: the optimizer made no step
        scheduler.step(*([METRICS[epoch]] if plateau else []))


def seen(optimizer: Any) -> list[float]:
    """The learning rate and the momentum, or β₁, of each group."""
    groups = optimizer.param_groups
    return [value for g in groups for value in (g["lr"], g["betas"][0] if "betas" in list(g) else momentum(g))]


def momentum(group: Any) -> float:
    return float(group["beta1"] if "beta1" in list(group) else group["momentum"])


def trajectory(optimizer: Any, scheduler: Any, start: int = 0, end: int = EPOCHS) -> list[list[float]]:
    rows = [seen(optimizer)]
    for epoch in range(start, end):
        one_step(scheduler, epoch)
        rows.append(seen(optimizer))
    return rows


# ---------------------------------------------------------------- against PyTorch
def schedules() -> set[str]:
    found = {name: kind for name, kind in vars(lr_scheduler).items() if inspect.isclass(kind)}
    return {n for n, kind in found.items() if issubclass(kind, lr_scheduler.Schedule) and not inspect.isabstract(kind)}


def test_every_schedule_has_a_case() -> None:
    assert schedules() == set(CASES)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("make", MAKERS)
def test_trajectories_are_pytorchs(make: Make, kind: str) -> None:
    torch = pytest.importorskip("torch")
    mine, other = ours(kind), theirs(torch, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler, reference = make(lr_scheduler, mine), make(torch.optim.lr_scheduler, other)
    np.testing.assert_allclose(trajectory(mine, scheduler), trajectory(other, reference), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(scheduler.get_last_lr(), reference.get_last_lr(), rtol=1e-10, atol=1e-14)


@given(
    names=st.lists(st.sampled_from(["StepLR", "ExponentialLR", "LinearLR", "MultiStepLR"]), min_size=2, max_size=3),
    change=st.none() | st.integers(0, 9),
)
def test_schedules_of_one_optimizer_multiply_as_in_pytorch(names: list[str], change: int | None) -> None:
    """And a learning rate that somebody sets in between stays: each rate follows from the one before."""
    torch = pytest.importorskip("torch")
    rows = []
    for lib, optimizer in ((lr_scheduler, ours()), (torch.optim.lr_scheduler, theirs(torch))):
        schedulers = [CASES[name][0](lib, optimizer) for name in names]
        rows.append([seen(optimizer)])
        for epoch in range(10):
            if epoch == change:
                optimizer.param_groups[1]["lr"] = 0.7
            for scheduler in schedulers:
                one_step(scheduler, epoch)
            rows[-1].append(seen(optimizer))
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-12)


def test_a_net_trained_by_a_schedule_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    model, reference = gf.nn.Linear(3, 1, dtype=gf.float64), torch.nn.Linear(3, 1).double()
    model.load_state_dict(reference.state_dict())
    mine = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    other = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    schedules = lr_scheduler.OneCycleLR(mine, 0.2, 15), torch.optim.lr_scheduler.OneCycleLR(other, 0.2, 15)
    for _ in range(15):
        mine.zero_grad()
        gf.mse_loss(model(gf.tensor(x)), gf.tensor(t)).backward()
        mine.step()
        other.zero_grad()
        torch.nn.functional.mse_loss(reference(torch.tensor(x)), torch.tensor(t)).backward()
        other.step()
        for scheduler in schedules:
            scheduler.step()
    np.testing.assert_allclose(model.weight.numpy(), reference.weight.detach().numpy(), rtol=1e-10)


# ---------------------------------------------------------------- closed forms, by hand
def rates(make: Callable[[optim.Optimizer], lr_scheduler.LRScheduler], epochs: int) -> list[float]:
    optimizer = optim.SGD([gf.Parameter([1.0])], lr=2.0)
    scheduler = make(optimizer)
    found = [optimizer.lr]
    for _ in range(epochs):
        scheduler.step()
        found.append(optimizer.lr)
    return found


def test_schedules_are_their_equations() -> None:
    k = np.arange(21)
    cosine = rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 8, 0.5), 20)
    np.testing.assert_allclose(cosine, 0.5 + 0.75 * (1 + np.cos(np.pi * k / 8)), rtol=1e-12)
    linear = rates(lambda o: lr_scheduler.LinearLR(o, 0.25, 0.75, 10), 20)
    np.testing.assert_allclose(linear, 2 * (0.25 + 0.5 * np.minimum(k / 10, 1)), rtol=1e-12)
    np.testing.assert_allclose(rates(lambda o: lr_scheduler.StepLR(o, 6, 0.5), 20), 2 * 0.5 ** (k // 6), rtol=1e-12)
    np.testing.assert_allclose(rates(lambda o: lr_scheduler.ExponentialLR(o, 0.9), 20), 2 * 0.9**k, rtol=1e-12)


def test_a_group_that_comes_later_begins_with_its_own_rate() -> None:
    optimizer = optim.SGD([gf.Parameter([1.0])], lr=1.0)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    optimizer.add_param_group({"params": [gf.Parameter([2.0])], "lr": 8.0})
    scheduler.step()
    assert scheduler.get_last_lr() == [0.5, 4.0]


# ---------------------------------------------------------------- state
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("stop", [0, 5, 13])
def test_a_schedule_goes_on_from_its_state(make: Make, stop: int) -> None:
    whole = ours()
    expected = trajectory(whole, make(lr_scheduler, whole))
    first = ours()
    scheduler = make(lr_scheduler, first)
    trajectory(first, scheduler, end=stop)
    state, optimizer_state = copy.deepcopy((scheduler.state_dict(), first.state_dict()))
    trajectory(first, scheduler, start=stop)  # it must not reach into the copy
    second = ours()
    resumed = make(lr_scheduler, second)
    second.load_state_dict(optimizer_state)
    resumed.load_state_dict(state)
    np.testing.assert_allclose(trajectory(second, resumed, start=stop), expected[stop:], rtol=1e-12)


@pytest.mark.parametrize("make", MAKERS)
def test_pytorchs_state_loads(make: Make) -> None:
    torch = pytest.importorskip("torch")
    mine, other = ours(), theirs(torch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler, reference = make(lr_scheduler, mine), make(torch.optim.lr_scheduler, other)
    trajectory(other, reference, end=9)
    scheduler.load_state_dict(reference.state_dict())
    for group, its in zip(mine.param_groups, other.param_groups, strict=True):
        group["lr"], group["momentum"] = its["lr"], its["momentum"]
    np.testing.assert_allclose(
        trajectory(mine, scheduler, start=9), trajectory(other, reference, start=9), rtol=1e-10, atol=1e-14
    )


def test_state_is_saved_in_a_file(tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    scheduler = CASES["SequentialLR"][0](lr_scheduler, ours())
    scheduler.step()
    gf.save(tmp_path / "schedule", scheduler)
    assert gf.load(tmp_path / "schedule") == scheduler.state_dict()


def test_states_that_do_not_fit() -> None:
    scheduler = lr_scheduler.StepLR(ours(), 4)
    for wrong, what in {
        "last_epoch is missing": {"base_lrs": [1.0, 1.0]},
        "last_epoch is 1.5": {"base_lrs": [1.0, 1.0], "last_epoch": 1.5},
        r"base_lrs is \[1.0\]": {"base_lrs": [1.0], "last_epoch": 1},
        "step_size is 5, the schedule's 4": {"base_lrs": [1.0, 1.0], "last_epoch": 1, "step_size": 5},
        "it is a list and no dict": [],
    }.items():
        with pytest.raises(errors.StateDictError, match=f"does not fit StepLR: {wrong}"):
            scheduler.load_state_dict(what)  # type: ignore[arg-type]
    assert scheduler.last_epoch == 0
    sequence = CASES["SequentialLR"][0](lr_scheduler, ours())
    with pytest.raises(errors.StateDictError, match="it is not made of 2 schedules"):
        sequence.load_state_dict({"last_epoch": 3})
    state = sequence.state_dict()
    with pytest.raises(errors.StateDictError, match="schedule 1: last_epoch is 'x'"):
        sequence.load_state_dict({**state, "_schedulers": [state["_schedulers"][0], {"last_epoch": "x"}]})


# ---------------------------------------------------------------- what it writes
def test_a_recorded_step_sees_the_schedule() -> None:
    """It writes numbers into the arrays that the update rule reads, and gives no array new memory."""
    w, x = gf.Parameter([1.0]), gf.tensor([1.0])
    optimizer = optim.SGD([w], lr=1.0)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    memory = optimizer.param_groups[0].hyper._data

    def step(x: gf.Tensor) -> gf.Tensor:
        w.grad = None
        loss = (w * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    step(x)
    _, recorded = trace(step, x)
    moved = []
    for _ in range(3):
        scheduler.step()
        before = w.item()
        recorded.replay(x)
        moved.append(before - w.item())
    assert moved == [0.5, 0.25, 0.125]
    assert optimizer.param_groups[0].hyper._data is memory


# ---------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda o: lr_scheduler.StepLR([o], 3), errors.DTypeError, "StepLR\\(\\) got a list as optimizer"),
        (lambda o: lr_scheduler.StepLR(o, 0), errors.ArgumentError, "step_size=0"),
        (lambda o: lr_scheduler.StepLR(o, 2.5), errors.DTypeError, "step_size=2.5"),
        (lambda o: lr_scheduler.ExponentialLR(o, -1), errors.ArgumentError, "gamma=-1.0"),
        (lambda o: lr_scheduler.MultiStepLR(o, [1.5]), errors.DTypeError, "milestones=\\[1.5\\]"),
        (lambda o: lr_scheduler.LinearLR(o, 0.0), errors.ArgumentError, "start_factor=0.0"),
        (lambda o: lr_scheduler.LambdaLR(o, 0.5), errors.DTypeError, "lr_lambda"),
        (lambda o: lr_scheduler.LambdaLR(o, [math.exp]), errors.ArgumentError, "1 functions for 2 groups"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1), errors.ArgumentError, "without a length"),
        (lambda o: lr_scheduler.OneCycleLR(o, [0.1], 9), errors.ArgumentError, "1 values of max_lr for 2 groups"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 9, div_factor=0), errors.ArgumentError, "div_factor=0"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 9, pct_start=2), errors.ArgumentError, "pct_start=2.0"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=1.0), errors.ArgumentError, "factor=1.0"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, "least"), errors.ArgumentError, "mode='least'"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o).step("low"), errors.DTypeError, "metrics='low'"),
        (lambda o: lr_scheduler.SequentialLR(o, [], []), errors.ArgumentError, "0 schedules"),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ReduceLROnPlateau(o)], []),
            errors.DTypeError,
            "got a ReduceLROnPlateau as a schedule",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.StepLR(ours(), 3)], []),
            errors.ArgumentError,
            "another optimizer",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.StepLR(o, 3)] * 3, [5, 5]),
            errors.ArgumentError,
            "later than the last",
        ),
    ],
)
def test_mistakes_are_explained(make: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make(ours())
    assert "\n  why: " in str(caught.value)
    assert "\n  fix: " in str(caught.value)


def test_a_cycle_has_an_end_and_needs_a_momentum() -> None:
    scheduler = lr_scheduler.OneCycleLR(ours(), 0.1, 2)
    scheduler.step()
    scheduler.step()
    with pytest.raises(errors.ArgumentError, match="step 3 of a OneCycleLR of 2 steps"):
        scheduler.step()
    without = optim.LBFGS([gf.Parameter([1.0])])
    with pytest.raises(errors.ArgumentError, match="neither a momentum nor a β₁"):
        lr_scheduler.OneCycleLR(without, 0.1, 2)
    assert lr_scheduler.OneCycleLR(without, 0.1, 10, cycle_momentum=False).get_last_lr() == pytest.approx([0.1 / 25])
