"""Every optimizer that gradflow.optim has: against PyTorch, its kernel against its rule, its state, its refusals."""

from __future__ import annotations

import copy
import gc
import inspect
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, nn, optim
from gradflow.optim import SGD, Adam, AdamW, Optimizer
from gradflow.optim.optimizer import FirstOrder
from gradflow.primitive import REGISTRY, Namespace, _generic_kernel, namespace
from gradflow.tensor import Tensor

# optimizer -> options under which it is held against PyTorch's of the same name
CASES: dict[type[Optimizer], list[dict[str, Any]]] = {
    SGD: [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.05},
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
        {"lr": 0.01, "momentum": 0.5, "maximize": True, "weight_decay": 0.1},
        {"lr": 0.01, "maximize": True},
        {},
    ],
    Adam: [
        {"lr": 0.02},
        {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-3},
        {"lr": 0.02, "weight_decay": 0.1},
        {"lr": 0.02, "betas": (0.0, 0.9)},
        {"lr": 0.01, "maximize": True, "weight_decay": 0.1},
        {},
    ],
    AdamW: [
        {"lr": 0.02},
        {"lr": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.99)},
        {"lr": 0.02, "weight_decay": 0.0},
        {"lr": 0.01, "maximize": True, "weight_decay": 0.1},
        {},
    ],
}
ALL = [
    pytest.param(cls, options, id=f"{cls.__name__}-{i}")
    for cls, cases in CASES.items()
    for i, options in enumerate(cases)
]
TOLERANCE = {"float32": 3e-5, "float64": 1e-12}


def concrete(cls: type[Optimizer] = Optimizer) -> set[type[Optimizer]]:
    found = {sub for sub in cls.__subclasses__() if sub.__module__.startswith("gradflow.")}
    return {sub for sub in found if not inspect.isabstract(sub)}.union(*(concrete(sub) for sub in found))


def text(caught: Any) -> str:
    return str(caught.value)


def test_every_optimizer_has_a_case() -> None:
    exported = {value for name in optim.__all__ if isinstance(value := getattr(optim, name), type)}
    assert set(CASES) == concrete(FirstOrder) == {cls for cls in exported if issubclass(cls, FirstOrder)}
    assert concrete() - concrete(FirstOrder) == {optim.LBFGS}, "it has tests of its own, in tests/test_lbfgs.py"
    assert {cls for cls in exported if issubclass(cls, Optimizer)} - {Optimizer} == concrete()


# ------------------------------------------------------------------------------------------------------ against PyTorch
class Twins:
    """One small network in gradflow and in PyTorch, with the same weights and batches."""

    def __init__(self, dtype: str = "float64", seed: int = 0) -> None:
        self.torch = pytest.importorskip("torch")
        draw = np.random.default_rng(seed)
        gf.manual_seed(seed)
        self.model = nn.MLP([4, 8, 8, 3], nn.Tanh).to(dtype)
        layers = [self.torch.nn.Linear(a, b) for a, b in ((4, 8), (8, 8), (8, 3))]
        self.theirs = self.torch.nn.Sequential(
            layers[0], self.torch.nn.Tanh(), layers[1], self.torch.nn.Tanh(), layers[2]
        )
        self.theirs.to(getattr(self.torch, dtype))
        self.copy_weights()
        self.batches = [(draw.normal(size=(16, 4)).astype(dtype), draw.integers(0, 3, 16)) for _ in range(4)]
        self.tolerance = TOLERANCE[dtype]

    def copy_weights(self) -> None:
        with self.torch.no_grad():
            for p, q in self.pairs():
                q.copy_(self.torch.tensor(p.numpy().copy()))

    def pairs(self) -> list[tuple[Any, Any]]:
        return list(zip(self.model.parameters(), self.theirs.parameters(), strict=True))

    def build(self, cls: type[Optimizer], options: dict[str, Any]) -> tuple[Optimizer, Any]:
        return cls(self.model.parameters(), **options), getattr(self.torch.optim, cls.__name__)(
            self.theirs.parameters(), **options
        )

    def step(self, ours: Optimizer, theirs: Any, i: int) -> None:
        x, t = self.batches[i % len(self.batches)]
        ours.zero_grad()
        theirs.zero_grad()
        gf.cross_entropy(self.model(gf.tensor(x)), gf.tensor(t)).backward()
        self.torch.nn.functional.cross_entropy(self.theirs(self.torch.tensor(x)), self.torch.tensor(t)).backward()
        ours.step()
        theirs.step()

    def compare(self, scale: float = 1.0) -> None:
        for i, (p, q) in enumerate(self.pairs()):
            assert p.dtype.name == str(q.dtype).removeprefix("torch.")
            np.testing.assert_allclose(
                p.numpy(), q.detach().numpy(), rtol=scale * self.tolerance, atol=scale * self.tolerance, err_msg=str(i)
            )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("cls", "options"), ALL)
def test_trajectories_are_pytorchs(cls: type[Optimizer], options: dict[str, Any], dtype: str) -> None:
    twins = Twins(dtype)
    ours, theirs = twins.build(cls, options)
    before = [p.numpy().copy() for p in twins.model.parameters()]
    for i in range(25):
        twins.step(ours, theirs, i)
    twins.compare()
    assert not any(np.array_equal(p.numpy(), b) for p, b in zip(twins.model.parameters(), before, strict=True))
    saved, expected = ours.state_dict(), theirs.state_dict()
    for number, entry in expected["state"].items():
        for name, value in entry.items():
            if value is not None:
                mine = np.asarray(saved["state"][number][name])
                np.testing.assert_allclose(
                    mine, np.asarray(value), rtol=10 * twins.tolerance, atol=10 * twins.tolerance
                )


@pytest.mark.parametrize("cls", CASES)
def test_arguments_are_pytorchs(cls: type[Optimizer]) -> None:
    torch = pytest.importorskip("torch")
    theirs = inspect.signature(getattr(torch.optim, cls.__name__)).parameters
    ours = inspect.signature(cls).parameters
    own = {"eps_inside_root"}
    for name, parameter in ours.items():
        if name not in own:
            assert theirs[name].default == parameter.default, name
    shared = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [name for name in theirs if name in shared] == shared
    assert list(theirs)[: len(shared)] == shared


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("cls", [Adam, AdamW])
def test_eps_inside_the_root(cls: type[Optimizer], weight_decay: float) -> None:
    """w ← w − lr m̂ / √(v̂ + ε), by the formula in Python numbers; √ε ≫ ε tells the two placements apart."""
    lr, b1, b2, eps = 0.1, 0.8, 0.95, 1e-2
    w = gf.Parameter(gf.tensor([1.0, -2.0], dtype=gf.float64))
    optimizer = cls([w], lr, (b1, b2), eps, weight_decay, eps_inside_root=True)  # type: ignore[call-arg]
    values, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for t in range(1, 25):
        optimizer.zero_grad()
        (w**2 * 0.05).sum().backward()
        optimizer.step()
        for i in range(2):
            g = 0.1 * values[i]
            if cls is AdamW:
                values[i] -= lr * weight_decay * values[i]
            else:
                g += weight_decay * values[i]
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g * g
            values[i] -= lr * (m[i] / (1 - b1**t)) / math.sqrt(v[i] / (1 - b2**t) + eps)
    np.testing.assert_allclose(w.numpy(), values, rtol=1e-12)


def test_first_steps_by_hand() -> None:
    w = gf.Parameter([1.0, 2.0])
    w.grad = gf.tensor([0.5, -4.0])
    Adam([w], lr=0.1).step()  # the first step of Adam is lr times the sign
    np.testing.assert_allclose(w.numpy(), [0.9, 2.1], rtol=1e-6)
    SGD([w], lr=0.5).step()
    np.testing.assert_allclose(w.numpy(), [0.65, 4.1], rtol=1e-6)


# --------------------------------------------------------------------------------------- the kernels against the rules
def rule_of(xp: Namespace, name: str) -> Callable[..., None]:
    return _generic_kernel(xp, REGISTRY[name])


RULE_OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"nesterov": st.booleans(), "maximize": st.booleans()},
    "adam": {"decoupled": st.booleans(), "eps_inside": st.booleans(), "maximize": st.booleans()},
}


def test_every_rule_is_held() -> None:
    assert {cls.rule for cls in concrete(FirstOrder)} == set(RULE_OPTIONS)


@pytest.mark.parametrize("cls", CASES)
@given(data=st.data())
def test_kernels_are_their_rules(cls: type[FirstOrder], data: st.DataObject) -> None:
    """Three updates of a flat buffer, each by the backend's kernel and from the same state by the generic rule."""
    xp = namespace("numpy")
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    sizes = data.draw(st.sampled_from(["small", "one", "empty", "mixed", "large"]))
    shapes: list[tuple[int, ...]] = {
        "small": [(3,), (2, 3), ()],
        "one": [(5,)],
        "empty": [(0,), (4,), (0, 3)],
        "mixed": [(3, 4), (70_000,), (300, 2), (7,)],
        "large": [(150, 1000), (3,), (65_536,), (65_537,)],
    }[sizes]
    turned = tuple(len(shape) == 2 and data.draw(st.booleans()) for shape in shapes)
    settings = {name: data.draw(option) for name, option in RULE_OPTIONS[cls.rule].items()}
    ranges = {
        "lr": 0.1,
        "momentum": 0.9,
        "dampening": 0.4,
        "weight_decay": 0.2,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-3,
    }
    hyper = np.array([data.draw(st.sampled_from([0.0, ranges[name]])) if name != "eps" else 1e-3 for name in cls.hyper])
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    n = sum(math.prod(shape) for shape in shapes)
    flat = draw.normal(size=n).astype(dtype)
    state = [flat, *(np.zeros(n, dtype) for _ in cls.slots), np.zeros(len(shapes))]
    rounding = 16 * np.finfo(dtype).eps
    for _ in range(3):
        grads = [draw.normal(size=shape).astype(dtype) for shape in shapes]
        kept = [g.copy() for g in grads]
        before, by_rule = flat.copy(), [array.copy() for array in state]
        getattr(xp, cls.rule)(*state, hyper, *grads, turned=turned, **settings)
        rule_of(xp, cls.rule)(*by_rule, hyper, *grads, turned=turned, **settings)
        for ours, rule in zip(state, by_rule, strict=True):
            assert ours.dtype == rule.dtype
            scale = np.maximum(abs(before), abs(rule)) + abs(rule - before) if ours is flat else abs(rule)
            assert (abs(ours - rule) <= rounding * (scale + 1)).all()
        for g, k in zip(grads, kept, strict=True):
            assert np.array_equal(g, k)


@pytest.mark.parametrize("cls", CASES)
def test_large_and_mixed_parameters_are_pytorchs(cls: type[Optimizer]) -> None:
    """Parameters beyond the kernel's chunk, small ones between them, 0-d and empty ones, transposed ones."""
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    shapes = [(3,), (300, 250), (), (2, 3), (0, 4), (66_000,), (5, 1), (65_536,), (1,)]
    values = [np.asarray(draw.normal(size=shape)) for shape in shapes]
    ours = [gf.Parameter(gf.tensor(v)) for v in values]
    ours[1] = gf.Parameter(gf.tensor(np.asfortranarray(values[1])))
    ours[3] = gf.Parameter(gf.tensor(values[3].T.copy()).mT)
    assert ours[1].numpy().flags.f_contiguous and not ours[1].numpy().flags.c_contiguous
    theirs = [torch.tensor(v, requires_grad=True) for v in values]
    options = CASES[cls][2] if cls is SGD else {"lr": 0.1}
    step, their_step = cls(ours, **options), getattr(torch.optim, cls.__name__)(theirs, **options)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            g = np.asarray(draw.normal(size=p.shape))
            p.grad, q.grad = gf.tensor(g), torch.tensor(g)
        step.step()
        their_step.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-12, atol=1e-13)
    assert ours[1].numpy().flags.f_contiguous  # the memory order a layer chose is kept


@pytest.mark.parametrize("cls", CASES)
def test_gradients_in_any_memory_order(cls: type[Optimizer]) -> None:
    draw = np.random.default_rng(0)
    g = draw.normal(size=(4, 3))
    results = []
    for weight in (np.ones((4, 3)), np.asfortranarray(np.ones((4, 3))), np.ones((3, 4)).T):
        for grad in (g, np.asfortranarray(g), np.repeat(g, 2, axis=1)[:, ::2], g[::-1].copy()[::-1]):
            w = gf.Parameter(gf.asarray(weight.copy(order="K")))
            w.grad = gf.asarray(grad)
            cls([w], lr=0.1).step()
            results.append(w.numpy())
    for other in results[1:]:
        assert np.array_equal(other, results[0])
    w = gf.Parameter(gf.ones((2, 3, 4), dtype=gf.float64))
    turned = gf.Parameter(gf.permute_dims(gf.ones((4, 3, 2), dtype=gf.float64), (2, 1, 0)))
    for p in (w, turned):
        p.grad = gf.broadcast_to(gf.tensor(np.arange(4.0)), (2, 3, 4))
        cls([p], lr=0.1).step()
    assert np.array_equal(w.numpy(), turned.numpy())


# ------------------------------------------------------------------------------ which parameters take part, and when
@pytest.mark.parametrize(("cls", "options"), [param for param in ALL if param.values[1]])
def test_parameters_without_a_gradient_are_skipped(cls: type[Optimizer], options: dict[str, Any]) -> None:
    """Their values, moments and step counts stay; PyTorch's bias correction is that of each parameter's own count."""
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(1)
    values = [draw.normal(size=shape) for shape in ((2,), (3, 2), (4,), (1,))]
    ours = [gf.Parameter(gf.tensor(v)) for v in values]
    theirs = [torch.tensor(v, requires_grad=True) for v in values]
    step, their_step = cls(ours, **options), getattr(torch.optim, cls.__name__)(theirs, **options)
    present = [draw.random(4) < 0.6 for _ in range(20)] + [np.zeros(4, bool)] + [np.ones(4, bool)] * 4
    for mask in present:
        for p, q, there in zip(ours, theirs, mask, strict=True):
            g = draw.normal(size=p.shape)
            p.grad, q.grad = (gf.tensor(g), torch.tensor(g)) if there else (None, None)
        step.step()
        their_step.step()
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-11, atol=1e-12)
    counts = [int(entry["step"].item()) for entry in step.state_dict()["state"].values()]
    counted = cls is not SGD or "momentum" in options  # SGD counts the steps of its velocity
    assert counts == (np.sum(present, axis=0) * counted).tolist()


@pytest.mark.parametrize("cls", CASES)
def test_frozen_and_thawed_midway(cls: type[Optimizer]) -> None:
    twins = Twins()
    ours, theirs = twins.build(cls, CASES[cls][1])
    for i in range(24):
        if i in (6, 14):
            for p, q in twins.pairs()[:2]:
                p.requires_grad_(i == 14)
                q.requires_grad_(i == 14)
        twins.step(ours, theirs, i)
    twins.compare(10)


def test_a_velocity_begins_with_the_first_step_that_has_momentum() -> None:
    twins = Twins()
    ours, theirs = twins.build(SGD, {"lr": 0.1, "dampening": 0.3})
    for i in range(8):
        momentum = 0.9 if i >= 3 else 0.0
        ours.param_groups[0]["momentum"] = theirs.param_groups[0]["momentum"] = momentum
        twins.step(ours, theirs, i)
        twins.compare()


def test_a_parameter_that_was_frozen_from_the_start() -> None:
    w, frozen = gf.Parameter([1.0]), gf.Parameter([1.0], requires_grad=False)
    optimizer = SGD([w, frozen], lr=0.5)
    (w * frozen).sum().backward()
    optimizer.step()
    assert (w.tolist(), frozen.tolist()) == ([0.5], [1.0])


@pytest.mark.parametrize("cls", CASES)
def test_groups_have_their_own_hyper_parameters(cls: type[Optimizer]) -> None:
    twins = Twins()
    special: dict[str, Any] = {"lr": 0.2, "weight_decay": 0.1}
    special |= {"momentum": 0.5, "dampening": 0.1} if cls is SGD else {"betas": (0.5, 0.8), "eps": 1e-2}
    groups = [
        [
            {"params": [pair[i] for pair in twins.pairs()[:2]], **special},
            {"params": [pair[i] for pair in twins.pairs()[2:4]]},
        ]
        for i in range(2)
    ]
    ours, theirs = cls(groups[0], lr=0.05), getattr(twins.torch.optim, cls.__name__)(groups[1], lr=0.05)  # type: ignore[call-arg]
    assert [group["lr"] for group in ours.param_groups] == [0.2, 0.05]
    for i in range(20):
        if i == 5:
            ours.add_param_group({"params": [p for p, _ in twins.pairs()[4:]], "lr": 0.01})
            theirs.add_param_group({"params": [q for _, q in twins.pairs()[4:]], "lr": 0.01})
        if i == 9:
            for optimizer in (ours, theirs):
                optimizer.param_groups[1]["lr"] = 0.3
                optimizer.param_groups[0]["weight_decay"] = 0.0
        if i == 12 and cls is not SGD:
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["betas"] = (0.7, 0.9)
        if i == 14:
            ours.lr = 0.07
            for group in theirs.param_groups:
                group["lr"] = 0.07
        twins.step(ours, theirs, i)
    twins.compare(10)
    assert ours.lr == 0.07
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        for name in special:
            assert group[name] == other[name]


def test_groups_read_like_mappings() -> None:
    w = gf.Parameter([1.0])
    group = Adam([w], lr=0.5).param_groups[0]
    assert set(group) >= {"params", "lr", "eps", "weight_decay"}
    assert dict(group)["lr"] == 0.5
    assert len(group) == len(list(group))
    assert group["params"] == [w]
    assert group["betas"] == (0.9, 0.999)
    with pytest.raises(KeyError):
        group["momentum"]
    with pytest.raises(errors.ArgumentError, match="a parameter group has no 'momentum'"):
        group["momentum"] = 0.5
    with pytest.raises(errors.ArgumentError, match=r"lr=-1.0\."):
        group["lr"] = -1.0
    with pytest.raises(errors.ArgumentError, match=r"betas=0.5\."):
        group["betas"] = 0.5
    assert group["lr"] == 0.5
    assert "lr=0.5" in repr(Adam([w], lr=0.5))
    assert repr(SGD([w], lr=0.25)) == "SGD(lr=0.25, momentum=0, dampening=0, weight_decay=0)"


@pytest.mark.parametrize("cls", CASES)
def test_two_optimizers_over_the_same_parameters(cls: type[Optimizer]) -> None:
    twins = Twins()
    ours, theirs = twins.build(cls, CASES[cls][2])
    second, their_second = twins.build(Adam, {"lr": 0.01})
    for i in range(20):
        twins.step(*((ours, theirs) if i % 3 else (second, their_second)), i)
    twins.compare(10)


def test_a_closure_and_zero_grad() -> None:
    w = gf.Parameter([1.0])
    optimizer = SGD([w], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss is not None
    assert (loss.item(), w.tolist()) == (1.0, [0.0])
    assert optimizer.step() is None
    optimizer.zero_grad()
    assert w.grad is None


@pytest.mark.parametrize("cls", CASES)
def test_a_step_records_nothing_and_ignores_the_mode(cls: type[Optimizer]) -> None:
    results = []
    for manager in (gf.no_grad, gf.enable_grad):
        w = gf.Parameter([1.0, 2.0])
        optimizer = cls([w], lr=0.1)
        (w**3).sum().backward(create_graph=manager is gf.enable_grad)
        with manager():
            optimizer.step()
        assert w.is_leaf and w.requires_grad
        results.append(w.numpy().copy())
        w.grad = None
    assert np.array_equal(*results)


# ------------------------------------------------------------------------------------------------------------ the state
def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    draw = np.random.default_rng(5)
    x, t = draw.normal(size=(8, 16, 4)), draw.integers(0, 3, (8, 16))
    dtype = next(iter(model.parameters())).dtype
    for i in steps:
        loss = gf.cross_entropy(model(gf.tensor(x[i % 8].astype(dtype))), gf.tensor(t[i % 8]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def fresh(
    cls: type[Optimizer], options: dict[str, Any], seed: int = 0, dtype: str = "float32"
) -> tuple[nn.Module, Optimizer]:
    gf.manual_seed(seed)
    model = nn.MLP([4, 8, 3], nn.Tanh).to(dtype)
    return model, cls(model.parameters(), **options)


def weights(model: nn.Module) -> list[np.ndarray]:
    return [p.numpy().copy() for p in model.parameters()]


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("through", ["dict", "file", "deepcopy"])
@pytest.mark.parametrize(("cls", "options"), ALL)
def test_training_goes_on_from_a_saved_state(
    cls: type[Optimizer], options: dict[str, Any], through: str, tmp_path: Path
) -> None:
    model, optimizer = fresh(cls, options)
    train(model, optimizer, range(7))
    optimizer.lr = 0.03
    state: Any = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if through == "file":
        pytest.importorskip("safetensors")
        gf.save(tmp_path / "run.safetensors", state)
        state = gf.load(tmp_path / "run.safetensors")
    if through == "deepcopy":
        state = copy.deepcopy(state)
    train(model, optimizer, range(7, 20))

    again, resumed = fresh(cls, options, seed=1)
    train(again, resumed, range(3))  # state that must be overwritten
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    assert resumed.lr == 0.03
    train(again, resumed, range(7, 20))
    assert equal(weights(again), weights(model))


@pytest.mark.parametrize("cls", CASES)
def test_a_state_dict_is_a_snapshot(cls: type[Optimizer]) -> None:
    model, optimizer = fresh(cls, CASES[cls][2])
    empty = optimizer.state_dict()
    train(model, optimizer, range(3))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    train(model, optimizer, range(3, 6))
    for number, entry in kept["state"].items():
        for name, value in entry.items():
            assert np.array_equal(np.asarray(state["state"][number][name]), np.asarray(value))
            assert value.shape == (() if name == "step" else list(model.parameters())[number].shape)
    optimizer.load_state_dict(empty)
    assert all(entry["step"].item() == 0 for entry in optimizer.state_dict()["state"].values())


OTHER: dict[str, Any] = {"lr": 0.5, "momentum": 0.1, "betas": (0.1, 0.2), "weight_decay": 0.01}


@pytest.mark.parametrize(("cls", "options"), ALL)
def test_pytorchs_state_loads(cls: type[Optimizer], options: dict[str, Any]) -> None:
    twins = Twins()
    ours, theirs = twins.build(cls, options)
    other = Twins()
    other_options = {k: v for k, v in OTHER.items() if k in inspect.signature(cls).parameters}
    other_options |= {k: v for k, v in options.items() if v is True}
    other_ours = cls(other.model.parameters(), **other_options)
    for i in range(8):
        twins.step(ours, theirs, i)
    state = theirs.state_dict()
    for form in ("tensors", "arrays"):
        if form == "arrays":
            state["state"] = {
                str(n): {k: np.asarray(v) for k, v in entry.items() if v is not None}
                for n, entry in state["state"].items()
            }
        other.model.load_state_dict(twins.theirs.state_dict())
        other_ours.load_state_dict(state)
        assert other_ours.lr == theirs.param_groups[0]["lr"]
        if form == "tensors":
            other_ours.step()  # no gradients: nothing
    other.theirs, other.batches = twins.theirs, twins.batches
    for i in range(8, 20):
        other.step(other_ours, theirs, i)
    other.compare(10)


@pytest.mark.parametrize(("cls", "options"), ALL)
def test_our_state_loads_into_pytorch(cls: type[Optimizer], options: dict[str, Any]) -> None:
    twins = Twins()
    ours, theirs = twins.build(cls, options)
    for i in range(8):
        twins.step(ours, theirs, i)
    _, resumed = twins.build(cls, options)
    state = ours.state_dict()
    state["state"] = {
        n: {k: twins.torch.tensor(v.numpy().copy()) for k, v in entry.items()} for n, entry in state["state"].items()
    }
    groups = zip(resumed.state_dict()["param_groups"], state["param_groups"], strict=True)  # theirs names more options
    state["param_groups"] = [{**group, **saved} for group, saved in groups]
    resumed.load_state_dict(state)
    for i in range(8, 20):
        twins.step(ours, resumed, i)
    twins.compare(10)


def broken_states() -> Iterator[tuple[str, Callable[[dict[str, Any]], Any], list[str]]]:
    def put(*path: Any) -> Callable[[Any], Callable[[dict[str, Any]], Any]]:
        def to(value: Any) -> Callable[[dict[str, Any]], Any]:
            def change(state: dict[str, Any]) -> Any:
                at: Any = state
                for key in path[:-1]:
                    at = at[key]
                at[path[-1]] = value
                return state

            return change

        return to

    yield "nothing", lambda s: {}, ['it has no "state"']
    yield "a list", lambda s: [1], ['it has no "state"']
    yield "groups", put("param_groups")([]), ["0 parameter groups, the optimizer 1"]
    yield "a group without params", put("param_groups", 0)({"lr": 0.1}), ["group 0"]
    yield "fewer params", put("param_groups", 0, "params")([0, 1]), ["group 0 has 2 parameters, the optimizer's 4"]
    yield (
        "a shape",
        put("state", 0, "exp_avg")(gf.ones((3, 3))),
        ["exp_avg of parameter 0 has shape (3, 3), not (8, 4)"],
    )
    yield "not numbers", put("state", 1, "exp_avg")("text"), ["exp_avg of parameter 1"]
    yield "missing", put("state", 2)({"step": 1.0, "exp_avg": gf.ones((3, 8))}), ["exp_avg_sq of parameter 2"]
    yield "a key", put("state", 9)({}), ["parameter 9 of 4"]
    yield "a negative key", put("state", -1)({}), ["parameter -1 of 4"]
    yield "a text key", put("state", "weight")({}), ["parameter weight of 4"]
    yield "an entry", put("state", 0)([1.0]), ["parameter 0"]
    yield "a step", put("state", 3, "step")(-1.0), ["step of parameter 3"]
    yield "a NaN step", put("state", 3, "step")(float("nan")), ["step of parameter 3"]
    yield "other state", put("state", 0, "max_exp_avg_sq")(gf.ones((8, 4))), ["max_exp_avg_sq"]
    yield "lr", put("param_groups", 0, "lr")(-0.1), ["lr=-0.1"]
    yield "lr text", put("param_groups", 0, "lr")("fast"), ["lr"]
    yield "betas", put("param_groups", 0, "betas")((0.9, 1.5)), ["beta2=1.5"]
    yield "one beta", put("param_groups", 0, "betas")(0.9), ["betas=0.9"]
    yield "another setting", put("param_groups", 0, "maximize")(True), ["maximize=True"]

    def many(state: dict[str, Any]) -> Any:
        for change in (put("param_groups", 0, "lr")(-1.0), put("state", 0, "exp_avg")(gf.ones(1)), put("state", 7)({})):
            change(state)
        return state

    yield "many", many, ["lr=-1.0", "exp_avg of parameter 0", "parameter 7 of 4"]


@pytest.mark.parametrize(("change", "named"), [pytest.param(*case[1:], id=case[0]) for case in broken_states()])
def test_a_state_that_does_not_fit_changes_nothing(change: Callable[..., Any], named: list[str]) -> None:
    model, optimizer = fresh(Adam, {"lr": 0.01})
    train(model, optimizer, range(3))
    other_model, other = fresh(Adam, {"lr": 0.5, "betas": (0.1, 0.2)})
    train(other_model, other, range(5))
    with pytest.raises(errors.StateDictError) as caught:
        optimizer.load_state_dict(change(other.state_dict()))
    for part in ("this state does not fit Adam", "nothing was loaded", *named):
        assert part in text(caught)
    reference_model, reference = fresh(Adam, {"lr": 0.01})
    train(reference_model, reference, range(6))
    train(model, optimizer, range(3, 6))
    assert optimizer.lr == 0.01
    assert equal(weights(model), weights(reference_model))


# -------------------------------------------------------------------------------- what happens to parameters meanwhile
@pytest.mark.parametrize("cls", CASES)
def test_a_model_may_be_loaded_while_trained(cls: type[Optimizer]) -> None:
    twins = Twins()
    ours, theirs = twins.build(cls, CASES[cls][2])
    saved = twins.model.state_dict()
    for i in range(20):
        if i == 7:
            twins.model.load_state_dict(saved)
            twins.copy_weights()
        twins.step(ours, theirs, i)
    twins.compare(10)


def test_deep_copies_train_apart_and_alike() -> None:
    model, optimizer = fresh(Adam, {"lr": 0.05})
    train(model, optimizer, range(5))
    model2, optimizer2 = copy.deepcopy((model, optimizer))
    assert all(a is b for a, b in zip(model2.parameters(), optimizer2.param_groups[0]["params"], strict=True))
    before = weights(model)
    train(model2, optimizer2, range(5, 12))
    assert equal(weights(model), before)
    train(model, optimizer, range(5, 12))
    assert equal(weights(model), weights(model2))
    model3 = copy.deepcopy(model)
    train(model3, Adam(model3.parameters(), lr=0.1), range(2))
    assert not equal(weights(model3), weights(model))
    assert not any(np.shares_memory(p.numpy(), q.numpy()) for p in model.parameters() for q in model3.parameters())


def test_a_model_that_changed_its_dtype_is_noticed() -> None:
    model, optimizer = fresh(Adam, {"lr": 0.05})
    train(model, optimizer, range(2))
    model.to(gf.float64)
    with pytest.raises(errors.GraphError) as caught:
        train(model, optimizer, range(2))
    assert text(caught) == (
        "a parameter left float32 on numpy after the optimizer was built.\n"
        "  why: the optimizer's state lies where its parameters were.\n"
        "  fix: model.to(...) first, then optim.Adam(model.parameters())"
    )
    train(model, Adam(model.parameters(), lr=0.05), range(2))
    model32, optimizer32 = fresh(Adam, {"lr": 0.05})
    model32.to(gf.float32)  # the same dtype, new memory
    reference, reference_optimizer = fresh(Adam, {"lr": 0.05})
    train(model32, optimizer32, range(4))
    train(reference, reference_optimizer, range(4))
    assert equal(weights(model32), weights(reference))


def test_mixed_dtypes_in_one_optimizer() -> None:
    torch = pytest.importorskip("torch")
    ours = [gf.Parameter(gf.ones(2, dtype=dtype)) for dtype in (gf.float32, gf.float64, gf.float32)]
    theirs = [torch.ones(2, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.float64, torch.float32)]
    step, their_step = Adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for _ in range(5):
        for params, optimizer in ((ours, step), (theirs, their_step)):
            optimizer.zero_grad()
            sum((p * p * (i + 1)).sum() for i, p in enumerate(params)).backward()
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert p.dtype.name == str(q.dtype).removeprefix("torch.")
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-6 if p.dtype == gf.float32 else 1e-13)
    state = step.state_dict()
    assert [state["state"][i]["exp_avg"].dtype for i in range(3)] == [gf.float32, gf.float64, gf.float32]
    step.load_state_dict(state)


def test_tied_parameters_are_updated_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))  # type: ignore[no-any-return]

    model = Tied()
    before = model.a.weight.numpy().copy()
    optimizer = SGD(model.parameters(), lr=1.0)
    model(gf.ones((1, 3))).sum().backward()
    assert model.a.weight.grad is not None
    g = model.a.weight.grad.numpy().copy()
    optimizer.step()
    np.testing.assert_allclose(model.b.weight.numpy(), before - g, rtol=1e-6)
    assert model.a.weight is model.b.weight


def test_detached_views_see_the_updates_of_their_parameter() -> None:
    w = gf.Parameter([1.0, 2.0])
    optimizer = SGD([w], lr=1.0)
    view = w.detach()
    w.grad = gf.ones(2)
    optimizer.step()
    assert view.tolist() == w.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("cls", CASES)
def test_an_optimizer_dies_with_its_last_reference(cls: type[Optimizer]) -> None:
    gc.collect()
    gc.disable()
    try:
        model, optimizer = fresh(cls, CASES[cls][2])
        train(model, optimizer, range(2))
        ends = [weakref.ref(optimizer), weakref.ref(optimizer.param_groups[0].buffers[0].slots[0]._data)]
        del optimizer
        assert [end() for end in ends] == [None, None]
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------------------- what it refuses
@pytest.mark.parametrize("cls", CASES)
def test_what_an_optimizer_refuses(cls: type[Optimizer]) -> None:
    name = cls.__name__
    w, v = gf.Parameter([1.0]), gf.Parameter([2.0])
    used_up = (p for p in [w])
    list(used_up)
    make: Any = cls
    refused: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: make([]),
            errors.ArgumentError,
            (
                f"{name} got no parameters.\n"
                "  why: there is nothing to train; an iterator may have been used up.\n"
                f"  fix: {name}(model.parameters(), lr=0.001)"
            ),
        ),
        (lambda: make(used_up), errors.ArgumentError, f"{name} got no parameters.\n"),
        (lambda: make([{"params": []}]), errors.ArgumentError, f"{name} got no parameters.\n"),
        (
            lambda: make([w, v, w]),
            errors.ArgumentError,
            (
                f"{name} got one parameter twice, as number 0 and 2.\n"
                "  why: it would be updated twice in every step.\n"
                f"  fix: {name}(model.parameters()) lists tied parameters once"
            ),
        ),
        (lambda: make([{"params": [w]}, {"params": [w]}]), errors.ArgumentError, "got one parameter twice"),
        (
            lambda: make([v, w * 2]),
            errors.GraphError,
            (
                f"parameter 1 of {name} was made by an operation.\n"
                "  why: only a leaf can be updated in place and collects a gradient.\n"
                "  fix: w = gf.Parameter(initial_values) and train that"
            ),
        ),
        (
            lambda: make(w),
            errors.DTypeError,
            (f"{name} got one tensor.\n  why: it takes an iterable of parameters.\n  fix: {name}([parameter], lr=...)"),
        ),
        (lambda: make([("weight", w)]), errors.DTypeError, f"{name} got a tuple as parameter 0.\n"),
        (lambda: make([np.ones(2)]), errors.DTypeError, f"{name} got a ndarray as parameter 0.\n"),
        (lambda: make([gf.tensor([1, 2])]), errors.DTypeError, f"parameter 0 of {name} has dtype int64.\n"),
        (lambda: make(None), TypeError, ""),
        (
            lambda: make([w], lr=-0.1),
            errors.ArgumentError,
            "lr=-0.1.\n  why: lr is at least 0.\n  fix: lr=0.001",
        ),
        (lambda: make([w], lr=float("nan")), errors.ArgumentError, "lr=nan.\n"),
        (lambda: make([w], weight_decay=-1e-4), errors.ArgumentError, "weight_decay=-0.0001.\n"),
        (lambda: make([{"params": [w], "lr": -1.0}]), errors.ArgumentError, "lr=-1.0.\n"),
        (lambda: make([{"params": [w], "rate": 1.0}]), errors.ArgumentError, f"{name} got a group with ['rate'].\n"),
        (lambda: make([{"lr": 1.0}]), errors.ArgumentError, f"{name} got a parameter group without parameters.\n"),
        (lambda: make([{"params": [w]}, v]), errors.DTypeError, f"{name} got a dict as parameter 0.\n"),
        (lambda: make([w]).add_param_group({"params": [w]}), errors.ArgumentError, "got one parameter twice"),
        (lambda: make([w]).add_param_group({"params": []}), errors.ArgumentError, f"{name} got no parameters.\n"),
        (lambda: make([w]).add_param_group([v]), errors.ArgumentError, "without parameters"),
        (lambda: setattr(make([w]), "lr", -2.0), errors.ArgumentError, "lr=-2.0.\n"),
    ]
    for call, error, message in refused:
        with pytest.raises(error) as caught:
            call()
        assert message in text(caught)


@pytest.mark.parametrize("cls", [Adam, AdamW])
def test_what_adam_refuses(cls: Any) -> None:
    w = gf.Parameter([1.0])
    for betas, message in (
        ((-0.1, 0.9), "beta1=-0.1.\n  why: beta1 is in [0, 1).\n  fix: beta1=0.9"),
        ((0.9, 1.0), "beta2=1.0.\n  why: beta2 is in [0, 1).\n  fix: beta2=0.999"),
        (0.9, "betas=0.9.\n  why: there are two, β₁ and β₂.\n  fix: betas=(0.9, 0.999)"),
        ((0.9,), "betas=(0.9,).\n"),
        ((0.9, 0.99, 0.999), "betas=(0.9, 0.99, 0.999).\n"),
    ):
        with pytest.raises(errors.ArgumentError) as caught:
            cls([w], betas=betas)
        assert message in text(caught)
        with pytest.raises(errors.ArgumentError) as caught:
            cls([{"params": [w], "betas": betas}])
        assert message in text(caught)
    with pytest.raises(errors.ArgumentError, match=r"eps=-1e-08\."):
        cls([w], eps=-1e-8)


def test_what_sgd_refuses() -> None:
    w = gf.Parameter([1.0])
    with pytest.raises(errors.ArgumentError, match=r"momentum=-0.5\."):
        SGD([w], momentum=-0.5)
    for options in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(errors.ArgumentError, match="nesterov=True with momentum=") as caught:
            SGD([w], nesterov=True, **options)  # type: ignore[arg-type]
        assert "SGD(params, lr, momentum=0.9, nesterov=True)" in text(caught)


def test_the_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Optimizer([gf.Parameter([1.0])], {"lr": 0.1})  # type: ignore[abstract]


def test_zero_grad_forgets_or_fills_with_zeros() -> None:
    w, frozen = gf.Parameter([1.0, 2.0]), gf.Parameter([3.0])
    optimizer = optim.SGD([w, frozen], lr=0.1)
    (w * 2).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert w.grad is not None
    assert w.grad.tolist() == [0.0, 0.0]
    assert frozen.grad is None
    optimizer.zero_grad()
    assert w.grad is None


def test_moments_that_are_no_numbers_change_nothing() -> None:
    optimizer = optim.Adam([gf.Parameter([1.0, 2.0])])
    (optimizer.param_groups[0].params[0] * 2).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.7
    state["state"][0]["exp_avg"] = np.array([1j, 2])
    with pytest.raises(errors.StateDictError, match="exp_avg of parameter 0 has dtype complex128"):
        optimizer.load_state_dict(state)
    assert optimizer.lr == 1e-3


def test_a_model_in_place_of_its_parameters_is_named() -> None:
    with pytest.raises(errors.DTypeError, match=r"Adam got a Linear[\s\S]*model\.parameters\(\)"):
        optim.Adam(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_moments_that_have_died_out_rest_at_zero() -> None:
    w = gf.Parameter([1.0, 1.0])
    optimizer = optim.Adam([w])
    (w * 1e-20).sum().backward()
    for _ in range(1300):
        optimizer.step()
        assert w.grad is not None
        w.grad[0] = 0.0  # as behind a dead ReLU
    first = optimizer.state_dict()["state"][0]["exp_avg"]
    assert first[0].item() == 0.0
    assert first[1].item() == pytest.approx(1e-20, rel=1e-5)
