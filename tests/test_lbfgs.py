"""L-BFGS against PyTorch's, iteration by iteration, and against SciPy's minima; its state, and its mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, nn, optim
from gradflow.compiler import trace
from gradflow.optim import LBFGS

OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.01},
    {"line_search_fn": "strong_wolfe"},
    {"line_search_fn": "strong_wolfe", "history_size": 2, "max_iter": 5},
    {"line_search_fn": "strong_wolfe", "lr": 0.3, "max_eval": 7},
    {"line_search_fn": "strong_wolfe", "max_iter": 1},
    {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-2, "tolerance_change": 1e-4},
    {"max_iter": 3, "history_size": 1, "lr": 0.1},
    {"max_eval": 1},
]
options = pytest.mark.parametrize("kwargs", OPTIONS, ids=str)


def rosenbrock(w: Any) -> Any:
    """In any number of dimensions; its minimum is 0 where every element is 1."""
    return sum((1 - w[i]) ** 2 + 100 * (w[i + 1] - w[i] ** 2) ** 2 for i in range(len(w) - 1))


def closure_of(optimizer: Any, loss_of: Callable[[], Any], calls: list[float]) -> Callable[[], Any]:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        calls.append(float(loss.item()))
        return loss

    return closure


# ---------------------------------------------------------------- against PyTorch
@options
def test_trajectories_are_pytorchs_on_rosenbrocks_function(kwargs: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    start = np.array([-1.2, 1.0, 0.5, -0.3])
    w, other = gf.tensor(start, requires_grad=True), torch.tensor(start, requires_grad=True)
    mine, reference = LBFGS([w], **kwargs), torch.optim.LBFGS([other], **kwargs)
    calls, other_calls = list[float](), list[float]()
    closure = closure_of(mine, lambda: rosenbrock(w), calls)
    other_closure = closure_of(reference, lambda: rosenbrock(other), other_calls)
    for _ in range(8):
        assert mine.step(closure).item() == pytest.approx(reference.step(other_closure).item(), rel=1e-6)
        np.testing.assert_allclose(w.numpy(), other.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(calls, other_calls, rtol=1e-6)  # every evaluation, in its order


class Twins:
    """A small network, the same in both libraries, with all of its data."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(0)
        x, t = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
        self.model = nn.MLP([3, 5, 2], nn.Tanh).to(gf.float64)
        self.reference = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
        torch.manual_seed(0)
        for layer in (self.reference[0], self.reference[2]):
            layer.reset_parameters()
        self.model.load_state_dict(self.reference.state_dict())
        self.optimizer = LBFGS(self.model.parameters(), **kwargs)
        self.other = torch.optim.LBFGS(self.reference.parameters(), **kwargs)
        inputs, targets = torch.tensor(x), torch.tensor(t)
        mse = torch.nn.functional.mse_loss
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.closure = closure_of(
            self.optimizer, lambda: gf.mse_loss(self.model(gf.tensor(x)), gf.tensor(t)), self.ours
        )
        self.other_closure = closure_of(self.other, lambda: mse(self.reference(inputs), targets), self.theirs)

    def step(self) -> None:
        self.optimizer.step(self.closure)
        self.other.step(self.other_closure)

    def compare(self) -> None:
        np.testing.assert_allclose(self.ours, self.theirs, rtol=1e-6)
        for p, q in zip(self.model.parameters(), self.reference.parameters(), strict=True):
            np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-6, atol=1e-9)


@options
def test_trajectories_are_pytorchs_on_a_network(kwargs: dict[str, Any]) -> None:
    twins = Twins({**kwargs, "max_iter": min(kwargs.get("max_iter", 8), 8)})
    for _ in range(3):
        twins.step()
        twins.compare()


def test_pytorchs_state_loads_and_goes_on() -> None:
    """In the middle of training; and ours is of the same names and shapes."""
    twins = Twins({"line_search_fn": "strong_wolfe", "max_iter": 4, "history_size": 5})
    twins.step()
    theirs = twins.other.state_dict()
    mine = twins.optimizer.state_dict()
    assert set(mine["state"][0]) == set(theirs["state"][0]) - {"al"}  # room for the recursion's factors
    for name in ("d", "prev_flat_grad"):
        np.testing.assert_allclose(mine["state"][0][name].numpy(), theirs["state"][0][name].numpy(), rtol=1e-6)
    for name in ("old_dirs", "old_stps"):
        for a, b in zip(mine["state"][0][name], theirs["state"][0][name], strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-9)
    resumed = LBFGS(twins.model.parameters(), line_search_fn="strong_wolfe", history_size=5)
    resumed.load_state_dict(theirs)
    assert resumed.param_groups[0]["max_iter"] == 4
    twins.optimizer = resumed
    twins.step()
    twins.compare()


# ---------------------------------------------------------------- minima
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 5))
def test_it_finds_scipys_minimum(seed: int, n: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    start = np.random.default_rng(seed).uniform(-1.5, 1.5, n)
    w = gf.tensor(start, requires_grad=True)
    optimizer = LBFGS([w], max_iter=300, tolerance_change=0.0, line_search_fn="strong_wolfe")
    closure = closure_of(optimizer, lambda: rosenbrock(w), [])
    for _ in range(3):
        optimizer.step(closure)
    found = w.numpy()
    theirs = optimize.minimize(rosenbrock, found, jac=None, method="BFGS", options={"gtol": 1e-9})
    assert rosenbrock(found) <= theirs.fun + 1e-9  # from there SciPy finds no way down
    assert np.abs(closure().item() - rosenbrock(found)) < 1e-12
    assert w.grad is not None and np.abs(w.grad.numpy()).max() < 1e-5


def test_a_quadratic_is_solved_exactly() -> None:
    """½ wᵀAw − bᵀw in six dimensions has its minimum at A⁻¹b."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(6, 6))
    a, b = root @ root.T + np.eye(6), rng.normal(size=6)
    w = gf.Parameter(gf.zeros(6, dtype=gf.float64))
    optimizer = LBFGS([w], max_iter=100, tolerance_change=0.0, line_search_fn="strong_wolfe")
    optimizer.step(closure_of(optimizer, lambda: (w @ gf.tensor(a) @ w) / 2 - (gf.tensor(b) * w).sum(), []))
    np.testing.assert_allclose(w.numpy(), np.linalg.solve(a, b), rtol=1e-6)


def test_parameters_without_a_gradient_stay() -> None:
    used, unused = gf.Parameter([3.0]), gf.Parameter([7.0])
    optimizer = LBFGS([used, unused], line_search_fn="strong_wolfe")
    optimizer.step(closure_of(optimizer, lambda: gf.sum((used - 1) ** 2), []))
    assert used.item() == pytest.approx(1.0, abs=1e-5)
    assert unused.item() == 7.0


def test_a_search_turns_back_from_where_the_loss_is_no_number() -> None:
    """−ln w + w is not defined below 0, where a first step of 10 leads."""
    w = gf.Parameter(gf.tensor([9.0], dtype=gf.float64))
    optimizer = LBFGS([w], lr=10.0, line_search_fn="strong_wolfe", max_iter=50, max_eval=200)
    with np.errstate(all="ignore"):
        optimizer.step(closure_of(optimizer, lambda: (w - gf.log(w)).sum() * 3, []))
    assert w.item() == pytest.approx(1.0, abs=1e-4)


# ---------------------------------------------------------------- the closure
def test_the_closure_may_be_a_recorded_function() -> None:
    """It is called as it is and read afterwards, so that what happens inside can be written down and replayed."""
    start = [-1.2, 1.0]
    plain, recorded = (gf.tensor(np.array(start), requires_grad=True) for _ in range(2))
    optimizers = [LBFGS([w], line_search_fn="strong_wolfe") for w in (plain, recorded)]
    optimizers[0].step(closure_of(optimizers[0], lambda: rosenbrock(plain), []))

    def loss_and_gradient(one: gf.Tensor) -> tuple[gf.Tensor, gf.Tensor]:
        loss, gradient = gf.value_and_grad(lambda w: rosenbrock(w) * one)(recorded)
        return loss, gradient

    _, equations = trace(loss_and_gradient, gf.tensor(1.0, dtype=gf.float64))

    def closure() -> gf.Tensor:
        loss, recorded.grad = equations.replay(gf.tensor(1.0, dtype=gf.float64))
        return loss

    optimizers[1].step(closure)
    np.testing.assert_allclose(recorded.numpy(), plain.numpy(), rtol=1e-9)


def test_the_closure_records_inside_of_no_grad() -> None:
    w = gf.Parameter([3.0])
    optimizer = LBFGS([w])
    with gf.no_grad():
        optimizer.step(closure_of(optimizer, lambda: gf.sum(w**2), []))
    assert abs(w.item()) < 1e-3
    assert w.requires_grad and w.is_leaf


# ---------------------------------------------------------------- state
@options
def test_a_state_goes_on_where_it_was(kwargs: dict[str, Any]) -> None:
    def made() -> tuple[gf.Tensor, LBFGS, Callable[[], Any]]:
        w = gf.tensor(np.array([-1.2, 1.0, 0.5]), requires_grad=True)
        optimizer = LBFGS([w], **kwargs)
        return w, optimizer, closure_of(optimizer, lambda: rosenbrock(w), [])

    w, optimizer, closure = made()
    again, resumed, other_closure = made()
    for _ in range(2):
        optimizer.step(closure)
    state = copy.deepcopy(optimizer.state_dict())
    with gf.no_grad():
        again[...] = w.detach()
    resumed.load_state_dict(state)
    for o, c in ((optimizer, closure), (resumed, other_closure)):
        o.step(c)
    assert w.tolist() == again.tolist()
    assert [t.tolist() for t in state["state"][0].get("old_dirs", [])] == [
        t.tolist() for t in resumed_start(state, kwargs)["old_dirs"]
    ]


def resumed_start(state: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer that took over a state says of itself."""
    optimizer = LBFGS([gf.tensor(np.zeros(3), requires_grad=True)], **kwargs)
    optimizer.load_state_dict(state)
    found: dict[str, Any] = {"old_dirs": [], **optimizer.state_dict()["state"][0]}
    return found


def test_state_is_saved_in_a_file(tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    w = gf.tensor(np.array([-1.2, 1.0]), requires_grad=True)
    optimizer = LBFGS([w], line_search_fn="strong_wolfe", max_iter=3)
    assert optimizer.state_dict()["state"] == {}
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(w), []))
    gf.save(tmp_path / "lbfgs", optimizer)
    other = LBFGS([w], line_search_fn="strong_wolfe")
    other.load_state_dict(gf.load(tmp_path / "lbfgs"))
    a, b = optimizer.state_dict()["state"][0], other.state_dict()["state"][0]
    assert a.keys() == b.keys()
    assert [t.tolist() for t in a["old_stps"]] == [t.tolist() for t in b["old_stps"]]
    assert (a["n_iter"], a["t"], a["prev_loss"]) == (b["n_iter"], b["t"], b["prev_loss"])


def test_states_that_do_not_fit() -> None:
    w = gf.tensor(np.array([-1.2, 1.0]), requires_grad=True)
    optimizer = LBFGS([w], max_iter=3)
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(w), []))
    whole = optimizer.state_dict()

    def with_entry(**changed: Any) -> dict[str, Any]:
        return {**whole, "state": {0: {**whole["state"][0], **changed}}}

    for wrong in (
        with_entry(d=gf.zeros(3)),
        with_entry(d="x"),
        with_entry(ro=[]),
        with_entry(n_iter=-1),
        with_entry(old_dirs=[gf.zeros(3)] * 2),
        with_entry(H_diag=None),
        {**whole, "state": {0: {"n_iter": 2}}},
        {**whole, "state": {0: 3}},
    ):
        with pytest.raises(errors.StateDictError, match="does not fit LBFGS: the history is no history of LBFGS"):
            optimizer.load_state_dict(wrong)
    (group,) = whole["param_groups"]
    with pytest.raises(errors.StateDictError, match="line_search_fn='strong_wolfe', the optimizer line_search_fn=None"):
        optimizer.load_state_dict({**whole, "param_groups": [{**group, "line_search_fn": "strong_wolfe"}]})
    with pytest.raises(errors.StateDictError, match="max_iter=0"):
        optimizer.load_state_dict({**whole, "param_groups": [{**group, "max_iter": 0}]})
    assert optimizer.state_dict()["state"][0]["n_iter"] == 2  # as the third evaluation was the last allowed


# ---------------------------------------------------------------- mistakes
def one() -> list[gf.Parameter]:
    return [gf.Parameter([1.0, 2.0])]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LBFGS(one()).step(), errors.ArgumentError, r"LBFGS\.step\(\) without a closure"),
        (lambda: LBFGS(one()).step(3), errors.DTypeError, r"step\(\) got a int as closure"),
        (lambda: LBFGS(one()).step(lambda: 3.0), errors.DTypeError, "got a float as what the closure returned"),
        (lambda: LBFGS(one(), max_iter=0), errors.ArgumentError, "max_iter=0"),
        (lambda: LBFGS(one(), max_iter=2.5), errors.ArgumentError, "max_iter=2.5"),
        (lambda: LBFGS(one(), max_iter="many"), errors.ArgumentError, "max_iter='many'"),
        (lambda: LBFGS(one(), history_size=-1), errors.ArgumentError, "history_size=-1"),
        (lambda: LBFGS(one(), max_eval=0), errors.ArgumentError, "max_eval=0"),
        (lambda: LBFGS(one(), tolerance_grad=-1e-3), errors.ArgumentError, "tolerance_grad=-0.001"),
        (lambda: LBFGS(one(), line_search_fn="wolfe"), errors.ArgumentError, "line_search_fn='wolfe'"),
        (lambda: LBFGS([{"params": one()}, {"params": one()}]), errors.ArgumentError, "second parameter group"),
        (lambda: LBFGS(one()).add_param_group({"params": one()}), errors.ArgumentError, "second parameter group"),
        (
            lambda: LBFGS([*one(), gf.Parameter(gf.zeros(2, dtype=gf.float64))]),
            errors.DTypeError,
            "float32 on numpy and float64 on numpy",
        ),
    ],
)
def test_mistakes_are_explained(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n  why: " in str(caught.value)
    assert "\n  fix: " in str(caught.value)


def test_hyper_parameters_change_midway() -> None:
    w = gf.Parameter([3.0])
    optimizer = LBFGS([w], lr=0.0)
    closure = closure_of(optimizer, lambda: gf.sum(w**2), [])
    optimizer.step(closure)
    assert w.item() == 3.0
    optimizer.lr = 0.25
    optimizer.param_groups[0]["max_iter"] = 1
    optimizer.step(closure)
    assert 0 < w.item() < 3.0
    assert math.isclose(optimizer.lr, 0.25)
    assert repr(optimizer).startswith("LBFGS(lr=0.25, max_iter=1, max_eval=25")


def test_it_is_an_optimizer_like_the_others() -> None:
    assert issubclass(LBFGS, optim.Optimizer)
    w = gf.Parameter([3.0])
    optimizer = LBFGS([w])
    (w * w).sum().backward()
    optimizer.zero_grad()
    assert w.grad is None
