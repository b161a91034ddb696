"""The two walks of the design, step by step: `loss.backward()`, and a whole training step recorded and replayed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import errors, nn, tape
from gradflow.backend import Backend
from gradflow.compiler import Trace, trace
from gradflow.optim import SGD, Adam, AdamW, Optimizer
from gradflow.optim.optimizer import FirstOrder
from gradflow.primitive import _NAMESPACES, REGISTRY
from gradflow.tensor import OPS, Tensor

rng = np.random.default_rng(0)


def leaf(*shape: int, dtype: Any = np.float64) -> Tensor:
    return gf.tensor(rng.normal(size=shape).astype(dtype), requires_grad=True)


# ---------------------------------------------------------------------------------------------- walk 1: loss.backward()
# A function of leaves x, y, z of shapes (3, 4), (4, 2), (4,), named after the primitive it records -> what the rule of
# each operand saves: values, or the names of x, y, z and out; None where an operand is not differentiated.
RECORDED: dict[str, tuple[Callable[..., Tensor], list[tuple[Any, ...] | None]]] = {
    "matmul": (lambda x, y, z: x @ y, [("y",), ("x",)]),
    "matmul of data": (lambda x, y, z: x.detach() @ y, [None, ("x",)]),
    "multiply": (lambda x, y, z: x * z, [("z",), ("x",)]),
    "add": (lambda x, y, z: x + z, [(), ()]),
    "divide": (lambda x, y, z: x / z, [("z",), ("z", "out")]),
    "tanh": (lambda x, y, z: gf.tanh(x), [("out",)]),
    "log": (lambda x, y, z: gf.log(x), [("x",)]),
    "relu": (lambda x, y, z: gf.relu(x), [("out",)]),
    "negative": (lambda x, y, z: -x, [()]),
    "sum": (lambda x, y, z: x.sum(axis=1), [((3, 4), (1,), False)]),
    "reshape": (lambda x, y, z: x.reshape(2, 6), [((3, 4),)]),
    "linear": (
        lambda x, y, z: gf.linear(x.detach(), y.detach().mT.requires_grad_(), z.detach()[:2].requires_grad_()),
        [None, ("x",), ()],
    ),
}


@pytest.mark.parametrize("case", RECORDED)
def test_a_node_saves_exactly_what_its_rules_name(case: str) -> None:
    function, expected = RECORDED[case]
    x, y, z = abs(leaf(3, 4)).detach().requires_grad_(), leaf(4, 2), leaf(4)
    out = function(x, y, z)
    node = out._node
    assert isinstance(node, tape.Node)
    assert node.primitive is REGISTRY[case.partition(" ")[0]]
    assert (node.shape, node.dtype) == (out.shape, out.dtype)
    known = {id(t._data): name for name, t in {"x": x, "y": y, "z": z, "out": out}.items()}
    saved = [
        None if edge is None else tuple(known.get(id(value), value) for value in edge[2])
        for edge in node.edges[: len(expected)]
    ]
    assert saved == expected
    for i, edge in enumerate(node.edges):
        assert edge is None or len(edge[2]) == len(node.primitive.names_at(i))


def test_an_edge_leads_to_the_operands_node() -> None:
    x, w = leaf(3, 4), leaf(4, 2)
    hidden = x @ w
    out = hidden * 2
    assert hidden._node is not None
    assert [edge[0] for edge in hidden._node.edges] == [x._node, w._node]  # type: ignore[index]
    assert out._node is not None
    assert out._node.edges[0][0] is hidden._node  # type: ignore[index]
    assert out._node.edges[1] is None


def test_nothing_is_recorded_where_nothing_requires_grad() -> None:
    assert (leaf(2, 2).detach() @ leaf(2, 2).detach())._node is None
    with gf.no_grad():
        assert (leaf(2, 2) @ leaf(2, 2))._node is None
    assert (leaf(2, 2) > 0)._node is None


def test_the_sweep_visits_newest_first_and_each_node_once(monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[str] = []
    x = leaf(3)
    a = gf.tanh(x)
    b = gf.exp(a)
    c = a * b  # a diamond: the cotangent of a is complete only when both ways have arrived
    for name, t in {"x": x, "a": a, "b": b, "c": c}.items():
        t.register_hook(lambda g, name=name: visited.append(name))
    c.sum().backward()
    assert visited == ["c", "b", "a", "x"]


@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((), (3, 4)),
        ((4,), (3, 4)),
        ((3, 1), (3, 4)),
        ((1, 1), (3, 4)),
        ((1,), (5,)),
        ((2, 1, 1), (4, 1)),
        ((0, 1), (4,)),
    ],
)
def test_a_cotangent_is_projected_to_shape_and_dtype(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    x = gf.tensor(rng.normal(size=shape).astype(np.float32), requires_grad=True)
    y = gf.tensor(rng.normal(size=other), requires_grad=True)
    (x * y).sum().backward()
    assert x.grad is not None and y.grad is not None
    assert (x.grad.shape, x.grad.dtype) == (shape, np.float32)
    assert (y.grad.shape, y.grad.dtype) == (other, np.float64)
    full = np.broadcast_shapes(shape, other)
    lead = len(full) - len(shape)
    axes = (*range(lead), *(i + lead for i, n in enumerate(shape) if n == 1))
    expected = np.broadcast_to(y.numpy(), full).sum(axis=axes).reshape(shape)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)


def test_project_is_the_one_place_that_undoes_broadcasting() -> None:
    """Each rule of an elementwise primitive gives its cotangent in the shape of the output."""
    seen = 0
    for name, prim in REGISTRY.items():
        if prim.function.__module__ != "gradflow.ops.elementwise" or sum(rule is not None for rule in prim.rules) < 2:
            continue
        shapes = [(3, 1), (1, 4), (3, 4)][: len(prim.operands)]
        operands = [gf.tensor(rng.uniform(0.5, 1.5, size=shape), requires_grad=True) for shape in shapes]
        if name == "where":
            operands[0] = gf.tensor(rng.uniform(size=shapes[0]) > 0.5)
        out = prim.function(*operands)
        for edge in out._node.edges:
            if edge is not None:
                ct = edge[1](out._xp, rng.normal(size=out.shape), *edge[2])
                assert ct.shape == out.shape, f"the rule {edge[1].__name__} of {name} projects by itself"
                seen += 1
    assert seen >= 12


def test_what_was_saved_is_freed_behind_the_sweep() -> None:
    x = leaf(300)
    hidden = gf.exp(x)
    loss = (hidden * hidden).sum()
    saved = weakref.ref(hidden._data)
    del hidden
    gc.disable()
    try:
        assert saved() is not None
        loss.backward(retain_graph=True)
        assert saved() is not None
        loss.backward()
        assert saved() is None
    finally:
        gc.enable()
    with pytest.raises(errors.GraphError, match="retain_graph=True"):
        loss.backward()


# ----------------------------------------------------------------------------------- walk 2: the recorded training step
class Case:
    """A small network, its loss, and batches to train on."""

    def __init__(self, kind: str, optimizer: Callable[[Any], Optimizer], dtype: str = "float64", seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        gf.manual_seed(seed)
        cast = np.dtype(dtype)
        if kind == "relu+cross_entropy":
            self.model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
            self.loss: Any = gf.cross_entropy
            self.batches = [(draw.normal(size=(16, 5)).astype(cast), draw.integers(0, 3, 16)) for _ in range(14)]
        else:
            self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
            self.loss = gf.mse_loss
            self.batches = [
                (draw.normal(size=(16, 5)).astype(cast), draw.normal(size=(16, 2)).astype(cast)) for _ in range(14)
            ]
        self.model.to(dtype)
        self.optimizer = optimizer(self.model.parameters())

    def step(self, x: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.model(x), target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def tensors(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((gf.tensor(x), gf.tensor(t)) for x, t in self.batches)

    def state(self) -> dict[str, np.ndarray]:
        found = {name: p.numpy().copy() for name, p in self.model.named_parameters()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            found |= {f"{name} {number}": np.array(value) for name, value in entry.items()}
        return found


KINDS = ["relu+cross_entropy", "tanh+mse"]
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD-momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "Adam": lambda p: Adam(p, lr=0.02),
    "Adam-inside": lambda p: Adam(p, lr=0.02, eps=1e-3, eps_inside_root=True, weight_decay=1e-3),
    "AdamW": lambda p: AdamW(p, lr=0.02, weight_decay=0.1),
}


def test_every_optimizer_takes_the_walk() -> None:
    walked = {type(make([gf.Parameter([1.0])])) for make in OPTIMIZERS.values()}
    assert walked == {cls for cls in FirstOrder.__subclasses__() if cls.__module__.startswith("gradflow.")}


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_replayed_step_trains_as_the_eager_one(kind: str, optimizer: str, dtype: str) -> None:
    """Eager takes the backend's fused derivatives and the trace the generic rules: they differ by rounding."""
    tolerance = {"float32": 2e-5, "float64": 1e-12}[dtype]
    eager, replayed = (Case(kind, OPTIMIZERS[optimizer], dtype) for _ in range(2))
    recorded: Trace | None = None
    for (x, target), (x2, target2) in zip(eager.tensors(), replayed.tensors(), strict=True):
        loss = eager.step(x, target)
        if recorded is None:
            again, recorded = trace(replayed.step, x2, target2)
        else:
            (again,) = recorded.replay(x2, target2)
        assert again.dtype == loss.dtype == np.dtype(dtype)
        np.testing.assert_allclose(again.numpy(), loss.numpy(), rtol=tolerance)
        compare(replayed.state(), eager.state(), tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_equals_the_traced_run_to_the_bit(kind: str) -> None:
    traced, replayed = (Case(kind, OPTIMIZERS["Adam"]) for _ in range(2))
    recorded: Trace | None = None
    for x, target in traced.tensors():
        loss, _ = trace(traced.step, x, target)
        if recorded is None:
            again, recorded = trace(replayed.step, x, target)
        else:
            (again,) = recorded.replay(x, target)
        assert again.item() == loss.item()
        for (name, ours), theirs in zip(replayed.state().items(), traced.state().values(), strict=True):
            assert np.array_equal(ours, theirs), name


def test_the_equations_of_a_step() -> None:
    """Forward, backward and optimizer are one list of equations, each value computed before it is used."""
    case = Case("tanh+mse", OPTIMIZERS["Adam"])
    x, target = next(case.tensors())
    case.step(x, target)  # the first step builds lazy state
    _, recorded = trace(case.step, x, target)
    names = [equation.primitive.name for equation in recorded.equations]
    assert names[:4] == ["linear", "tanh", "linear", "mean_squared_error"]
    assert names.count("adam") == 1
    assert names[-1] == "adam"
    known = {*recorded.arguments, *recorded.bound}
    for equation in recorded.equations:
        assert known.issuperset(equation.operands), str(equation)
        if equation.output is not None:
            assert equation.output not in known
            known.add(equation.output)
    assert known.issuperset(recorded.results)
    bound = {id(array) for array in recorded.bound.values()}
    assert {id(p._data) for p in case.model.parameters()} <= bound
    assert id(case.optimizer.param_groups[0].hyper._data) in bound
    updated = [recorded.bound[v] for v in recorded.equations[-1].operands[:4]]
    buffer = case.optimizer.param_groups[0].buffers[0]
    for array, whole in zip(updated, (buffer.flat, *buffer.slots, buffer.steps), strict=True):
        assert np.shares_memory(array, whole._data)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_hyper_parameters_are_read_not_baked_in(optimizer: str) -> None:
    eager, replayed = (Case("tanh+mse", OPTIMIZERS[optimizer]) for _ in range(2))
    recorded: Trace | None = None
    for i, (x, target) in enumerate(eager.tensors()):
        for case in (eager, replayed):
            case.optimizer.lr = 0.1 / (1 + i)
            if i == 5:
                case.optimizer.param_groups[0]["weight_decay"] = 0.3
            if i == 8:
                name = "momentum" if "momentum" in case.optimizer.hyper else "beta1"
                case.optimizer.param_groups[0][name] = 0.5
        eager.step(x, target)
        if recorded is None:
            _, recorded = trace(replayed.step, x, target)
        else:
            recorded.replay(x, target)
        compare(replayed.state(), eager.state(), 1e-12)


def test_a_loaded_state_is_seen_by_the_next_replay() -> None:
    eager, replayed = (Case("tanh+mse", OPTIMIZERS["Adam"]) for _ in range(2))
    other = Case("tanh+mse", OPTIMIZERS["Adam"], seed=1)
    for x, target in other.tensors():
        other.step(x, target)
    batches = list(eager.tensors())
    eager.step(*batches[0])
    _, recorded = trace(replayed.step, *batches[0])
    for case in (eager, replayed):
        case.model.load_state_dict(other.model.state_dict())
        case.optimizer.load_state_dict(other.optimizer.state_dict())
    for batch in batches[1:]:
        eager.step(*batch)
        recorded.replay(*batch)
    compare(replayed.state(), eager.state(), 1e-12)


Step = Callable[[Tensor], Tensor]


def clipped() -> tuple[nn.Module, list[Optimizer], Step]:
    model = nn.MLP([4, 6, 2], nn.Tanh)
    optimizer = Adam(model.parameters(), lr=0.05)

    def step(x: Tensor) -> Tensor:
        loss = (model(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return loss

    return model, [optimizer], step


def gradient_penalty() -> tuple[nn.Module, list[Optimizer], Step]:
    model = nn.MLP([4, 6, 1], nn.Tanh)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(x: Tensor) -> Tensor:
        slope = gf.grad(lambda y: model(y).sum())(x)
        loss = model(x).mean() + ((slope**2).sum(axis=1) - 1).mean() ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return model, [optimizer], step


def two_optimizers_and_noise() -> tuple[nn.Module, list[Optimizer], Step]:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 4))
    optimizers = [Adam(model[0].parameters(), lr=0.05), SGD(model[2].parameters(), lr=0.1)]

    def step(x: Tensor) -> Tensor:
        loss = gf.mse_loss(model(x + gf.random.normal(x.shape, dtype=x.dtype) * 0.1), x)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss

    return model, optimizers, step


def tied_frozen_and_grouped() -> tuple[nn.Module, list[Optimizer], Step]:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    parameters = list(model.parameters())
    optimizer = AdamW([{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "weight_decay": 0.3}], lr=0.01)

    def step(x: Tensor) -> Tensor:
        loss = gf.cross_entropy(model(x), gf.argmax(x, axis=1) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return model, [optimizer], step


def unequal_step_counts() -> tuple[nn.Module, list[Optimizer], Step]:
    model, (optimizer,), step = clipped()
    parameters = list(model.parameters())
    parameters[1].requires_grad_(False)
    for _ in range(3):
        step(gf.ones((2, 4)))
    parameters[1].requires_grad_()
    return model, [optimizer], step


def mixed_dtypes() -> tuple[nn.Module, list[Optimizer], Step]:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2, dtype=gf.float64))
    optimizer = Adam(model.parameters(), lr=0.05)

    def step(x: Tensor) -> Tensor:
        loss = (model[2](model[1](model[0](x)).astype(gf.float64)) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return model, [optimizer], step


def accumulated_over_parts() -> tuple[nn.Module, list[Optimizer], Step]:
    model = nn.MLP([4, 6, 2], nn.ReLU)
    optimizer = SGD(model.parameters(), lr=0.05)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        total = gf.zeros(())
        for i in range(0, 8, 4):
            loss = (model(x[i : i + 4]) ** 2).mean()
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return model, [optimizer], step


@pytest.mark.parametrize(
    "build",
    [
        clipped, gradient_penalty, two_optimizers_and_noise, tied_frozen_and_grouped, unequal_step_counts, mixed_dtypes,
        accumulated_over_parts,
    ],
)  # fmt: skip
def test_steps_of_many_kinds_replay(build: Callable[[], tuple[nn.Module, list[Optimizer], Step]]) -> None:
    draw = np.random.default_rng(7)
    batches = [gf.tensor(draw.normal(size=(8, 4)).astype(np.float32)) for _ in range(11)]
    found = []
    for traced in (False, True):
        gf.manual_seed(4)
        model, optimizers, step = build()
        recorded: Trace | None = None
        losses = []
        for x in batches:
            if not traced:
                loss = step(x)
            elif recorded is None:
                loss, recorded = trace(step, x)
            else:
                (loss,) = recorded.replay(x)
            losses.append(loss.item())
        state = {name: p.numpy().copy() for name, p in model.named_parameters()}
        for k, optimizer in enumerate(optimizers):
            for number, entry in optimizer.state_dict()["state"].items():
                state |= {f"{k} {number} {name}": np.array(value) for name, value in entry.items()}
        found.append((losses, state))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4)
    compare(found[1][1], found[0][1], 1e-4)


def test_random_numbers_go_on_in_a_replay() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + gf.random.normal(x.shape, dtype=x.dtype)

    x = gf.zeros(4)
    gf.manual_seed(3)
    expected = [noisy(x).tolist() for _ in range(4)]
    gf.manual_seed(3)
    first, recorded = trace(noisy, x)
    assert [first.tolist(), *(recorded.replay(x)[0].tolist() for _ in range(3))] == expected
    assert expected[0] != expected[1]


# --------------------------------------------------------------------------- nothing goes past the recorded equations
class StandIn(Backend):
    """NumPy's kernels, each call noted together with whether an equation was being run."""

    name, device = "stand-in", "cpu"

    def __init__(self) -> None:
        self.inner = gf.get_backend()
        self.inside = False
        self.outside: list[str] = []
        self.calls = 0
        self.made: list[Any] = []
        self.kernels = {name: self._noted(name, kernel) for name, kernel in self.inner.kernels.items()}
        self.residual_kernels = {name: self._noted(name, k) for name, k in self.inner.residual_kernels.items()}
        self.vjps = {key: self._noted(f"the derivative of {key}", rule) for key, rule in self.inner.vjps.items()}

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arrays: Any, **settings: Any) -> Any:
            self.calls += 1
            if not self.inside:
                self.outside.append(name)
            return function(*arrays, **settings)

        return noted

    def asarray(self, obj: Any, dtype: Any = None, copy: bool | None = None) -> Any:
        if not self.inside and not isinstance(obj, bool | int | float | np.generic):
            self.made.append(obj)
        return self.inner.asarray(obj, dtype, copy)

    def to_numpy(self, array: Any) -> Any:
        return self.inner.to_numpy(array)

    def extent(self, array: Any) -> tuple[Any, int, int]:
        return self.inner.extent(array)

    def synchronize(self) -> None:
        pass

    def versions(self) -> dict[str, str]:
        return {}

    def num_threads(self) -> int:
        return 1

    def set_num_threads(self, n: int | None) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    backend = StandIn()
    apply = Trace.apply

    def watched(self: Trace, *args: Any) -> Any:
        backend.inside = True
        try:
            return apply(self, *args)
        finally:
            backend.inside = False

    monkeypatch.setattr(Trace, "apply", watched)
    with gf.use_backend(backend):
        yield backend
    _NAMESPACES.pop(backend, None)


def watch(backend: StandIn, step: Callable[..., Any], *arguments: Tensor) -> tuple[Trace, list[str], list[Any]]:
    """Trace a step: the trace, the kernels called and the arrays made outside of its equations."""
    backend.outside, backend.made, backend.calls = [], [], 0
    _, recorded = trace(step, *arguments)
    return recorded, backend.outside, backend.made


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_call_of_a_step_belongs_to_an_equation(stand_in: StandIn, kind: str, optimizer: str) -> None:
    case = Case(kind, OPTIMIZERS[optimizer])
    batches = list(case.tensors())
    case.step(*batches[0])
    assert stand_in.outside  # eager calls kernels, and fused derivatives
    recorded, outside, made = watch(stand_in, case.step, *batches[1])
    assert not outside
    assert not made
    assert stand_in.calls >= len(recorded.equations)
    stand_in.calls = 0
    recorded.replay(*batches[2])
    assert stand_in.calls >= len(recorded.equations)


def test_the_watch_sees_what_goes_past_the_equations(stand_in: StandIn) -> None:
    def leaky(x: Tensor) -> Tensor:
        raw = x._xp.multiply(x._data, x._data)
        return x + gf.tensor(raw, backend=stand_in)

    _, outside, made = watch(stand_in, leaky, gf.tensor([1.0, 2.0]))
    assert outside == ["multiply"]
    assert len(made) == 1


def poison(recorded: Trace) -> int:
    """Overwrite every array that an equation computed, but for views of what is bound or given."""
    kept = [*recorded.bound.values(), *(recorded._alive[v] for v in recorded.arguments)]
    count = 0
    for variable in recorded._computed:
        array = recorded._alive[variable]
        if any(np.may_share_memory(array, other) for other in kept):
            continue
        if array.flags.writeable:
            array[...] = np.nan if array.dtype.kind == "f" else ~array
            count += 1
    return count


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_reads_no_intermediate_value_of_the_traced_run(kind: str, optimizer: str) -> None:
    eager, replayed = (Case(kind, OPTIMIZERS[optimizer]) for _ in range(2))
    batches = list(eager.tensors())
    for case in (eager, replayed):
        case.step(*batches[0])
    eager.step(*batches[1])
    _, recorded = trace(replayed.step, *batches[1])
    assert poison(recorded) >= 8
    for batch in batches[2:]:
        loss = eager.step(*batch)
        (again,) = recorded.replay(*batch)
        np.testing.assert_allclose(again.numpy(), loss.numpy(), rtol=1e-12)
    compare(replayed.state(), eager.state(), 1e-12)


def test_poison_finds_a_value_that_was_baked_in() -> None:
    def leaky(x: Tensor) -> Tensor:
        squared = x * x
        baked = gf.zeros(x.shape)
        baked._data = squared._data.view()  # another array object over the same memory: a constant to the trace
        return x + baked

    _, recorded = trace(leaky, gf.tensor([1.0, 2.0]))
    for variable in recorded._computed:
        recorded._alive[variable][...] = np.nan
    assert np.isnan(recorded.replay(gf.tensor([3.0, 4.0]))[0].numpy()).all()


def test_rules_run_over_the_namespace_they_are_given() -> None:
    """One rule set on raw arrays and on Tensors, where it is recorded in turn."""
    rule = REGISTRY["tanh"].rules[0]
    assert rule is not None
    out = np.tanh(rng.normal(size=3))
    raw = rule(gf.ones(1)._xp, np.ones(3), out)
    lifted = rule(OPS, gf.ones(3, dtype=gf.float64), gf.tensor(out, requires_grad=True))
    assert lifted.requires_grad
    assert np.array_equal(raw, lifted.numpy())
