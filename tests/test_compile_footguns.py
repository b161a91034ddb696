"""Every way in which a captured step could go stale: each is right, or a clear error."""
# ruff: noqa: PLW0108  (a lambda is what is compiled, and looks its names up when it is called)

from __future__ import annotations

import math
import random
import types
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import errors, nn, optim
from gradflow.compiler import CompileWarning
from gradflow.mode import get_mode
from gradflow.tensor import Tensor
from tests.test_compile import BATCHES, Setup, compare, count, same, same_states, state_of, step_of, text, without_zero

SCALE = 2.0
TABLE = {"scale": 2.0}
MODULE = types.ModuleType("a_users_module")
MODULE.scale = 2.0


def x1(value: float = 1.0) -> Tensor:
    return gf.tensor([value])


# --------------------------------------------------------------------------------- values: seen without compiling again
def new_lr(s: Setup, i: int) -> None:
    s.optimizer.lr = 0.05 / (i + 1)


def new_group_values(s: Setup, i: int) -> None:
    s.optimizer.param_groups[0]["lr"] = 0.1 / (i + 1)
    s.optimizer.param_groups[0]["betas"] = (0.9 - i / 20, 0.99)
    s.optimizer.param_groups[0]["weight_decay"] = i / 100


def load_model(s: Setup, i: int) -> None:
    if i % 2:
        s.model.load_state_dict({name: t * 0.5 for name, t in s.model.state_dict().items()})


def load_optimizer(s: Setup, i: int) -> None:
    state = s.optimizer.state_dict()
    if i % 2:
        for entry in state["state"].values():
            entry["exp_avg"] = entry["exp_avg"] * 0.5
            entry["step"] = entry["step"] + 3
        s.optimizer.load_state_dict(state)


def write_weights(s: Setup, i: int) -> None:
    with gf.no_grad():
        s.model[0].weight[i % 2] = 0.1 * i
        s.model[2].bias += 1.0


def decay_by_hand(s: Setup, i: int) -> None:
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(s.model.parameters()).detach() * 0.9, s.model.parameters()
    )


@pytest.mark.parametrize(
    "between",
    [new_lr, new_group_values, load_model, load_optimizer, write_weights, decay_by_hand],
    ids=lambda f: f.__name__,
)
def test_new_values_are_seen_by_the_same_program(between: Callable[[Setup, int], None]) -> None:
    compare(step_of, between)


def test_the_momentum_of_sgd_can_begin_later() -> None:
    def between(s: Setup, i: int) -> None:
        s.optimizer.param_groups[0]["momentum"] = 0.0 if i < 3 else 0.9

    compare(step_of, between, optimizer=optim.SGD)


# ----------------------------------------------------------------------------------- structure: compiled again, or back
def uneven_steps(s: Setup, i: int) -> None:
    if i == 3:
        state = s.optimizer.state_dict()
        state["state"][1]["step"] = state["state"][1]["step"] + 10
        s.optimizer.load_state_dict(state)


def freeze_and_thaw(s: Setup, i: int) -> None:
    s.model[0].requires_grad_(i % 4 < 2)


def freeze_one(s: Setup, i: int) -> None:
    if i == 2:
        s.model[2].weight.requires_grad_(False)
    if i == 4:
        s.model[2].weight.requires_grad = True


def gradient_left_over(s: Setup, i: int) -> None:
    if i == 2:
        s.model[0].bias.requires_grad_(False)
        s.model[0].bias.requires_grad_(True)


def another_group(s: Setup, i: int) -> None:
    if i == 3:
        s.extra = gf.Parameter(gf.ones(3))
        s.optimizer.add_param_group({"params": [s.extra], "lr": 0.5})
        s.extra.grad = gf.ones(3)


def another_optimizer(s: Setup, i: int) -> None:
    if i == 3:
        s.optimizer = optim.Adam(s.model.parameters(), lr=0.01)


def another_optimizer_that_nobody_uses(s: Setup, i: int) -> None:
    if i == 3:
        optim.SGD(s.model.parameters(), lr=0.01)


def another_parameter(s: Setup, i: int) -> None:
    if i == 3:
        s.model[2].weight = gf.Parameter(s.model[2].weight.numpy() * 2)


def parameters_exchanged(s: Setup, i: int) -> None:
    if i == 0:
        s.spare = gf.Parameter(np.full(8, 0.3, np.float32))
    s.model[0].bias, s.spare = s.spare, s.model[0].bias


def another_layer(s: Setup, i: int) -> None:
    if i == 3:
        s.model.append(nn.Linear(3, 3))


def layers_exchanged(s: Setup, i: int) -> None:
    if i == 3:
        s.model[1] = nn.ReLU()


def layer_taken_away(s: Setup, i: int) -> None:
    if i == 3:
        del vars(s.model)["1"]


def another_loss(s: Setup, i: int) -> None:
    s.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1) if i >= 3 else s.loss_fn


def loss_setting(s: Setup, i: int) -> None:
    s.loss_fn.label_smoothing = 0.0 if i < 3 else 0.2


def hook(s: Setup, i: int) -> None:
    if i == 2:
        s.remove = s.model[0].weight.register_hook(lambda g: g * 2)
    if i == 4:
        s.remove()


def wider(s: Setup, i: int) -> None:
    if i == 3:
        s.model.to(gf.float64)
        s.optimizer = optim.Adam(s.model.parameters(), lr=0.05)


@pytest.mark.parametrize(
    "between",
    [
        uneven_steps, freeze_and_thaw, freeze_one, gradient_left_over, another_group, another_optimizer,
        another_optimizer_that_nobody_uses, another_parameter, parameters_exchanged, another_layer, layers_exchanged,
        layer_taken_away, another_loss, loss_setting, hook, wider,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_new_structure_is_seen(between: Callable[[Setup, int], None]) -> None:
    compare(step_of, between, specialisations=None, calls=8)


def test_a_state_dict_loaded_before_the_first_step() -> None:
    trained = Setup()
    for x, t in BATCHES[:3]:
        step_of(trained)(gf.tensor(x), gf.tensor(t))
    state = trained.optimizer.state_dict()
    state["state"][0]["step"] = gf.tensor(7.0)

    def between(s: Setup, i: int) -> None:
        if i == 0:
            s.optimizer.load_state_dict(state)

    compare(step_of, between)


def test_an_optimizer_without_a_step_before_is_captured() -> None:
    for optimizer in (optim.SGD, optim.Adam):
        compare(step_of, optimizer=optimizer, **({"momentum": 0.9} if optimizer is optim.SGD else {}))


def test_a_parameter_without_a_gradient_takes_part_later() -> None:
    def make(s: Setup) -> Callable[..., Tensor]:
        s.gate = gf.Parameter(gf.ones(3))
        s.optimizer.add_param_group({"params": [s.gate]})
        s.use = False

        def step(x: Tensor, t: Tensor) -> Tensor:
            out = s.model(x)
            loss = s.loss_fn(out * s.gate if s.use else out, t)
            s.optimizer.zero_grad()
            loss.backward()
            s.optimizer.step()
            return loss

        return step

    def between(s: Setup, i: int) -> None:
        s.use = i in (2, 3, 6)

    compare(make, between, calls=8, specialisations=None)


def test_train_and_eval() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + gf.random.normal(x.shape) if self.training else x

    def with_noise(s: Setup) -> Callable[..., Tensor]:
        s.model.append(Noisy())
        return step_of(s)

    fast = compare(with_noise, lambda s, i: s.model.train(i % 3 == 0), calls=9, specialisations=2)
    assert "training" in fast.explain()


def test_the_grad_mode_of_the_caller() -> None:
    s = Setup()
    f = gf.compile(lambda x: s.model(x))
    x = gf.tensor(BATCHES[0][0])
    for _ in range(2):
        assert f(x).requires_grad
        with gf.no_grad():
            assert not f(x).requires_grad
        with gf.no_grad(), gf.enable_grad():
            assert f(x).requires_grad
    assert count(f) == 2
    step = gf.compile(step_of(s))
    step(*BATCHES[0])
    with gf.no_grad(), pytest.raises(errors.GraphError, match="does not require grad"):
        step(*BATCHES[0])
    reference = Setup()
    for x, t in BATCHES[:1] * 2:
        loss = step_of(reference)(gf.tensor(x), gf.tensor(t))
    same(step(*BATCHES[0]), loss)  # the call that failed changed nothing


def test_the_default_dtype() -> None:
    f = gf.compile(lambda x: x + gf.ones(1))
    x = gf.tensor([1])
    try:
        for dtype in ("float32", "float64", "float32"):
            gf.set_default_dtype(dtype)
            assert f(x).dtype == dtype
    finally:
        gf.set_default_dtype("float32")
    assert count(f) == 2


def test_the_backend_of_the_caller() -> None:
    f = gf.compile(lambda: gf.ones(2) * 2)
    for _ in range(2):
        assert f().tolist() == [2.0, 2.0]
        with gf.use_backend("numpy"):
            assert f().tolist() == [2.0, 2.0]
    assert count(f) == 2


def test_dtypes_shapes_and_requires_grad_of_arguments() -> None:
    f = gf.compile(lambda x: (x * 2).sum(axis=0))
    for x in (gf.ones(2), gf.ones(2, dtype=gf.float64), gf.ones(2, dtype=gf.int64), gf.ones((2, 1)), gf.ones(2)):
        for _ in range(2):
            got = f(x)
            assert got.dtype == x.dtype
            assert not got.requires_grad
            same(got, x.numpy().sum(axis=0) * 2)
    for x in (gf.ones(2, requires_grad=True), gf.ones(2, requires_grad=True) * 1):
        assert f(x).requires_grad
    assert count(f) == 6


# ---------------------------------------------------------------------------------------- what Python holds: containers
def test_closures_and_globals() -> None:
    global SCALE
    factor, box = 3.0, [4.0]

    @gf.compile
    def f(x: Tensor) -> Tensor:
        return x * SCALE * factor * box[0] * TABLE["scale"] * MODULE.scale

    def expected() -> float:
        return SCALE * factor * box[0] * TABLE["scale"] * MODULE.scale

    try:
        assert f(x1()).item() == expected()
        for change in range(5):
            if change == 0:
                SCALE = 5.0
            elif change == 1:
                factor = 7.0
            elif change == 2:
                box[0] = 1.5
            elif change == 3:
                TABLE["scale"] = 3.0
            else:
                MODULE.scale = 0.5
            for _ in range(2):
                assert f(x1()).item() == expected()
        assert count(f) == 6
        SCALE, factor, box[0], TABLE["scale"], MODULE.scale = 2.0, 3.0, 4.0, 2.0, 2.0
        assert f(x1()).item() == expected()
        assert count(f) == 6  # the first one fits again
    finally:
        SCALE, TABLE["scale"], MODULE.scale = 2.0, 2.0, 2.0


def test_an_equal_value_of_another_type_counts() -> None:
    box: list[Any] = [2]
    f = gf.compile(lambda x: x * box[0])
    x = gf.tensor([3])
    for value in (2, 2.0, True, 2, np.int64(2), -0.0, 0.0):
        box[0] = value
        for _ in range(2):
            assert f(x).dtype == (x * value).dtype
            assert repr(f(x)) == repr(x * value)


def test_an_equal_object_counts() -> None:
    class Config:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Config) and other.scale == self.scale

        __hash__ = None  # type: ignore[assignment]

    held = {"config": Config(2.0), "tensor": gf.tensor(1.0), "array": np.ones(1, np.float32), "list": [1.0]}
    f = gf.compile(lambda x: x * held["config"].scale * held["tensor"] * held["array"] * held["list"][0])
    assert f(x1()).item() == 2.0
    held |= {"config": Config(2.0), "tensor": gf.tensor(1.0), "array": np.ones(1, np.float32), "list": [1.0]}
    assert f(x1()).item() == 2.0
    held["config"].scale = 3.0
    assert f(x1()).item() == 3.0
    with gf.no_grad():
        held["tensor"][...] = 10.0
    assert f(x1()).item() == 30.0
    held["array"][...] = 2.0
    assert f(x1()).item() == 60.0
    held["list"].append(0.0)
    held["list"][0] = 0.5
    assert f(x1()).item() == 30.0


CONTAINERS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], float]]] = {
    "list item": ([1.0, 2.0], lambda c: c.__setitem__(0, 5.0), lambda c: sum(c)),
    "list append": ([1.0, 2.0], lambda c: c.append(5.0), lambda c: sum(c)),
    "nested list": ([[1.0], [2.0]], lambda c: c[1].append(5.0), lambda c: sum(map(sum, c))),
    "list order": ([1.0, 2.0], lambda c: c.reverse(), lambda c: c[0] - 2 * c[1]),
    "dict item": ({"a": 1.0}, lambda c: c.update(a=5.0), lambda c: sum(c.values())),
    "dict key": ({"a": 1.0}, lambda c: c.update(b=5.0), lambda c: sum(c.values())),
    "ordered dict": (OrderedDict(a=1.0, b=2.0), lambda c: c.move_to_end("a"), lambda c: next(iter(c.values()))),
    "set": ({1.0}, lambda c: c.add(5.0), lambda c: sum(c)),
    "deque": (deque([1.0]), lambda c: c.append(5.0), lambda c: sum(c)),
    "tuple in list": ([(1.0, [2.0])], lambda c: c[0][1].append(3.0), lambda c: sum(c[0][1])),
    "namespace": (types.SimpleNamespace(a=1.0), lambda c: setattr(c, "a", 5.0), lambda c: c.a),
    "namespace added": (types.SimpleNamespace(), lambda c: setattr(c, "a", 5.0), lambda c: getattr(c, "a", 1.0)),
    "by name": (types.SimpleNamespace(a1=1.0), lambda c: setattr(c, "a1", 5.0), lambda c: getattr(c, f"a{1}")),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_that_change(name: str) -> None:
    made, change, read = CONTAINERS[name]
    f = gf.compile(lambda x: x * read(made))
    assert f(x1()).item() == f(x1()).item() == read(made)
    change(made)
    assert f(x1()).item() == f(x1()).item() == read(made)
    assert count(f) == 2


class Slotted:
    __slots__ = ("scale",)


class Plain:
    factor = 1.0

    def __init__(self) -> None:
        self.scale, self.seen, self.history = 2.0, 0, []

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.scale * self.factor

    @property
    def doubled(self) -> float:
        return self.scale * 2

    def __call__(self, x: Tensor) -> Tensor:
        return self.scaled(x) + self.doubled


def test_attributes_of_objects_and_classes() -> None:
    a, slotted = Plain(), Slotted()
    slotted.scale = 1.0
    f = gf.compile(lambda x: a(x) * slotted.scale)
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: setattr(a, "scale", 3.0),
        lambda: setattr(Plain, "factor", 2.0),
        lambda: setattr(a, "factor", 4.0),
        lambda: setattr(slotted, "scale", 0.5),
        lambda: setattr(Plain, "scaled", lambda self, x: x - 1),
        lambda: setattr(a, "scaled", lambda x: x + 7),
    ]
    kept = Plain.factor, Plain.scaled
    try:
        for i, change in enumerate(changes):
            change()
            for _ in range(2):
                assert f(x1()).item() == (a(x1()) * slotted.scale).item()
            assert count(f) == i + 1
    finally:
        Plain.factor, Plain.scaled = kept


def test_what_the_function_does_not_name_may_change() -> None:
    a = Plain()

    class Net(nn.Module):
        def __init__(self) -> None:
            self.layer, self.steps, self.losses = nn.Linear(1, 1), 0, [0.0]

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    net = Net()
    f = gf.compile(lambda x: a(net(x)))
    for i in range(5):
        f(gf.ones((1, 1)))
        a.seen += 1
        a.history.append(i)
        net.steps += 1
        net.losses.append(0.5)
    assert count(f) == 1


def test_code_that_is_reloaded() -> None:
    def helper(x: Tensor) -> Tensor:
        return x * 2

    def other(x: Tensor) -> Tensor:
        return x * 3

    f = gf.compile(lambda x: helper(x))
    assert f(x1()).item() == 2.0
    helper.__code__ = other.__code__
    assert f(x1()).item() == 3.0


def test_layers_in_lists_and_dicts() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.layers, self.by_name = [nn.Linear(2, 2)], {"a": nn.Linear(2, 2)}

        def forward(self, x: Tensor) -> Tensor:
            for layer in [*self.layers, *self.by_name.values()]:
                x = layer(x)
            return x

    net = Net()
    f = gf.compile(net)
    x = gf.ones((1, 2))
    for i in range(4):
        same(f(x), net(x))
        same(f(x), net(x))
        if i == 0:
            net.layers.append(nn.Linear(2, 2))
        elif i == 1:
            net.by_name["b"] = nn.Linear(2, 2)
        else:
            net.layers[0].weight = gf.Parameter(gf.ones((2, 2)))
    assert count(f) == 4


def test_a_custom_rule_given_anew() -> None:
    @gf.custom_vjp
    def clipped(x: Tensor) -> Tensor:
        return gf.clip(x, -1, 1)

    clipped.defvjp(lambda x: (gf.clip(x, -1, 1), None), lambda r, g: (g,))
    f = gf.compile(gf.grad(lambda x: clipped(x).sum()))
    assert f(x1(5.0)).tolist() == [1.0]
    clipped.defvjp(lambda x: (gf.clip(x, -1, 1), None), lambda r, g: (g * 7,))
    assert f(x1(5.0)).tolist() == [7.0]


# ------------------------------------------------------------------------------------------------- state read by Python
def test_state_that_python_reads_is_compared_at_every_call() -> None:
    scale, s = gf.tensor(2.0), Setup()

    def f(x: Tensor) -> Tensor:
        return x * float(scale) * s.optimizer.lr if scale > 1 else x

    fast = gf.compile(f)
    for value, lr in ((2.0, 0.5), (3.0, 0.5), (3.0, 0.25), (0.5, 0.25), (2.0, 0.5)):
        with gf.no_grad():
            scale[...] = value
        s.optimizer.lr = lr
        for _ in range(2):
            assert fast(x1()).item() == f(x1()).item()


def test_state_that_is_read_and_written_is_refused() -> None:
    calls = nn.Buffer(0)

    @gf.compile
    def f(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x if int(calls) % 2 else x * 2

    @gf.compile
    def g(x: Tensor) -> Tensor:
        nonlocal calls
        odd = int(calls) % 2
        calls += 1
        return x if odd else x * 2

    with pytest.raises(errors.TracedValueError, match="of a traced value"):
        f(x1())
    assert calls.item() == 0  # nothing is half done
    with pytest.raises(errors.TracedValueError, match="Python read"):
        g(x1())
    big = gf.zeros(5000)
    with pytest.raises(errors.TracedValueError, match="a tensor of 5000 elements"):
        gf.compile(lambda x: x * float(big.numpy().sum()))(x1())


READS: dict[str, Callable[[Tensor], Any]] = {
    ".item()": lambda t: t.sum().item(),
    "bool(t)": lambda t: bool(t.sum() > 0),
    "if": lambda t: 1 if t.sum() > 0 else 2,
    "float(t)": lambda t: float(t.sum()),
    "np.asarray": np.asarray,
    ".numpy()": lambda t: t.numpy(),
    ".tolist()": lambda t: t.tolist(),
    "mask": lambda t: t[t > 0],
    "math": lambda t: math.exp(t.sum()),
}


@pytest.mark.parametrize("kind", ["tensor", "array"])
@pytest.mark.parametrize("read", READS)
def test_values_that_are_read_are_refused_and_the_line_is_named(read: str, kind: str) -> None:
    w = gf.Parameter([1.0, 2.0])

    def step(x: Tensor) -> Tensor:
        with gf.no_grad():
            w.__imul__(2.0)
        return (READS[read](x * 2), x)[1]

    fast = gf.compile(step)
    line = READS[read].__code__.co_firstlineno if isinstance(READS[read], types.LambdaType) else ""
    for _ in range(2):
        with pytest.raises(errors.TracedValueError) as caught:
            fast(gf.tensor([1.0, 2.0]) if kind == "tensor" else np.ones(2, np.float32))
        assert f"{__file__}:{line}" in text(caught)
        assert "fix: " in text(caught)
        assert w.tolist() == [1.0, 2.0]  # as if it had not been called
        assert get_mode().interpreter is None
    assert count(fast) == 0


# --------------------------------------------------------------------------------------------------------- side effects
COUNTER = 0
LOG: list[Any] = []


def counts(x: Tensor) -> Tensor:
    global COUNTER
    COUNTER += 1
    return x * 2


def logs(x: Tensor) -> Tensor:
    y = x * 2
    LOG.append(y)
    return y


class Keeps(nn.Module):
    def __init__(self) -> None:
        self.hidden = gf.zeros(1)
        self.calls = 0
        self.sizes = {"a": 1}

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = x * 2
        return self.hidden


def test_side_effects_are_refused_by_name_and_line() -> None:
    module = Keeps()
    cell = 0

    def closes(x: Tensor) -> Tensor:
        nonlocal cell
        cell += 1
        return x

    def deletes(x: Tensor) -> Tensor:
        module.sizes.pop("a", None)
        return x

    for function, name, offset in (
        (counts, "COUNTER was 0 and is 1", 2),
        (logs, "LOG was of length 0", 2),
        (module, "function.hidden was a Tensor and is a Tensor", 1),
        (closes, "cell was 0 and is 1", 2),
        (deletes, "module.sizes['a'] was 1 and is nothing", 1),
    ):
        with pytest.raises(errors.TracedValueError) as caught:
            gf.compile(function)(x1())
        code = (Keeps.forward if function is module else function).__code__
        assert name in text(caught)
        assert f"{__file__}:{code.co_firstlineno + offset}" in text(caught)
        assert "return it instead" in text(caught)


def test_what_is_built_at_first_use_is_built() -> None:
    class Lazy(nn.Module):
        weight: Any = None

        def forward(self, x: Tensor) -> Tensor:
            if self.weight is None:
                self.weight = gf.Parameter(gf.ones((x.shape[1], 2)))
            return x @ self.weight

    model = Lazy()
    f = gf.compile(model)
    for i in range(4):
        assert f(gf.ones((1, 3)) * i).tolist() == [[3.0 * i] * 2]
    assert count(f) == 1
    with gf.no_grad():
        model.weight[...] = 2.0
    assert f(gf.ones((1, 3))).tolist() == [[6.0, 6.0]]

    class Remembers(nn.Module):
        last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = x * 2
            return self.last

    g = gf.compile(Remembers())
    g(x1())
    with pytest.raises(errors.TracedValueError, match="last"):
        g(x1())


def test_random_numbers_of_others_are_refused() -> None:
    own = np.random.default_rng(0)
    for draw in (
        lambda: np.random.rand(),  # noqa: NPY002
        lambda: random.random(),
        lambda: own.normal(),
    ):
        with pytest.raises(errors.TracedValueError, match=r"gf\.random"):
            gf.compile(lambda x, draw=draw: x * draw())(x1())


def test_switches_that_outlive_the_call_are_refused() -> None:
    def off(x: Tensor) -> Tensor:
        gf.set_grad_enabled(False)
        return x

    def wide(x: Tensor) -> Tensor:
        gf.set_default_dtype("float64")
        return x

    with pytest.raises(errors.TracedValueError, match="switched recording"):
        gf.compile(off)(x1())
    assert gf.is_grad_enabled()
    try:
        with pytest.raises(errors.TracedValueError, match="default dtype"):
            gf.compile(wide)(x1())
    finally:
        gf.set_default_dtype("float32")


def test_results_that_a_program_cannot_make() -> None:
    class Output:
        def __init__(self, loss: Tensor) -> None:
            self.loss = loss

    for function in (
        lambda x: Output(x * 2),
        lambda x: (t for t in [x * 2]),
        lambda x: lambda: x * 2,
        lambda x: {1, 2},
    ):
        with pytest.raises(errors.TracedValueError, match="return tensors, in tuples"):
            gf.compile(function)(x1())


def test_a_step_that_rebinds_its_state_runs_eagerly_and_says_so() -> None:
    h = gf.tensor([1.0])
    w = gf.Parameter([2.0])

    @gf.compile
    def f(x: Tensor) -> Tensor:
        h.__imul__(w * x)  # recorded: h takes new memory
        return h

    with pytest.warns(CompileWarning, match="runs eagerly from now on"):
        values = [f(x1()).item() for _ in range(5)]
    assert values == [2.0, 4.0, 8.0, 16.0, 32.0]


# ----------------------------------------------------------------------------------------------------------- exceptions
def test_an_exception_half_way() -> None:
    s = Setup()
    fail = [True]

    def step(x: Tensor, t: Tensor) -> Tensor:
        loss = s.loss_fn(s.model(x), t)
        s.optimizer.zero_grad()
        loss.backward()
        if fail[0]:
            raise KeyError("mine")
        s.optimizer.step()
        return loss

    fast, before = gf.compile(step), get_mode()
    with pytest.raises(KeyError, match="mine"):
        fast(*BATCHES[0])
    assert get_mode() is before
    assert count(fast) == 0
    fail[0] = False
    reference = Setup()
    for x, t in BATCHES:
        same(fast(x, t), step_of(reference)(gf.tensor(x), gf.tensor(t)))
        same_states(s, reference)
    fail[0] = True
    with pytest.raises(KeyError, match="mine"):
        fast(*BATCHES[0])
    fail[0] = False
    same(fast(*BATCHES[1]), s.loss_fn(reference.model(gf.tensor(BATCHES[1][0])), gf.tensor(BATCHES[1][1])))


def test_wrong_arguments_raise_what_eager_raises() -> None:
    s = Setup()
    step = gf.compile(step_of(s))
    step(*BATCHES[0])
    with pytest.raises(errors.ShapeError, match="its last axis must be 4"):
        step(np.ones((2, 3), np.float32), np.zeros(2, np.int64))
    with pytest.raises(errors.GradflowError):
        step(np.ones((2, 4), np.float32), np.array([0, 7]))
    state = state_of(s)
    with pytest.raises(errors.GradflowError):
        step(BATCHES[0][0], np.full(8, 7))  # the right shape: the program itself must refuse the label
    for a, b in zip(state_of(s)[:4], state[:4], strict=True):
        same(a, b)
    step(*BATCHES[0])
    assert count(step) == 1


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("key", ["rows", "columns", "pairs", "along", "written"])
def test_an_index_out_of_range_raises_what_eager_raises_and_stores_nothing(backend: str, key: str) -> None:
    pytest.importorskip(backend)
    with gf.use_backend(backend):
        seen = gf.zeros(2)
        table = gf.Parameter(np.arange(35.0).reshape(7, 5))
        optimizer = optim.SGD([table], lr=0.1)

        def step(x: Tensor, i: Tensor) -> Tensor:
            with gf.no_grad():
                seen[...] = seen + x
            if key == "written":
                chosen = gf.zeros((7, 5))
                chosen[i[:, 0]] = x.sum()
                chosen = chosen * table
            elif key == "along":
                chosen = gf.take_along_axis(table, i, axis=1)
            else:
                chosen = table[{"rows": i, "columns": (slice(None), i), "pairs": (i[:, 0], i[:, 1])}[key]]
            loss = (chosen * chosen).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        compiled, x = gf.compile(step), np.ones(2, np.float32)
        for i in range(3):
            compiled(x, np.full((7, 2), i % 2))
        before = seen.numpy().copy(), table.numpy().copy()
        for wrong in (9, -9):
            kind = IndexError if key == "written" else errors.IndexRangeError
            with pytest.raises(kind, match=f"index {wrong} is out of bounds for axis"):
                compiled(x, np.full((7, 2), wrong))
            assert seen.tolist() == before[0].tolist()
            assert table.tolist() == before[1].tolist()
        assert count(compiled) == 1


# ---------------------------------------------------------------------------------------------- aliases, modes, threads
def test_arguments_that_share_memory() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        with gf.no_grad():
            x += 1.0
        return x * y

    fast = gf.compile(f)
    for _ in range(2):
        a, b, c = gf.tensor([1.0, 2.0]), gf.tensor([1.0, 2.0]), gf.tensor([5.0, 5.0])
        assert fast(a, c).tolist() == [10.0, 15.0]
        assert a.tolist() == [2.0, 3.0]
        assert fast(b, b).tolist() == [4.0, 9.0]
        assert fast(b[:1], b[:1]).tolist() == [9.0]
        assert fast(b[:1], b[1:]).tolist() == [12.0]
        assert b.tolist() == [4.0, 3.0]


def test_an_argument_that_is_a_parameter_of_the_model() -> None:
    w = gf.Parameter([1.0, 2.0])

    def f(x: Tensor) -> Tensor:
        with gf.no_grad():
            w.__iadd__(1.0)
        return w * x

    fast = gf.compile(f)
    assert fast(gf.tensor([1.0, 1.0])).tolist() == [2.0, 3.0]
    assert fast(gf.tensor([1.0, 1.0])).tolist() == [3.0, 4.0]
    for alias in (w, w.detach(), gf.asarray(w.numpy()), w.detach()[::-1]):
        before = w.numpy().copy() + 1
        expected = before * before[::-1] if alias.numpy()[0] != w.numpy()[0] else before * before
        for _ in range(1):
            assert fast(alias).tolist() == expected.tolist()


def test_a_gradient_as_an_argument() -> None:
    w = gf.Parameter([1.0])

    @gf.compile
    def f(x: Tensor) -> Tensor:
        w.grad = None
        (w * w * 3).sum().backward()
        return w.grad + x

    f(x1())
    assert f(x1()).item() == 7.0
    assert f(w.grad).item() == 12.0


def test_anomaly_detection_around_and_inside() -> None:
    f = gf.compile(lambda x: gf.log(x).sum())
    f(gf.tensor([1.0, 2.0]))
    with pytest.raises(errors.AnomalyError, match="log produced -inf"), gf.detect_anomaly():
        f(gf.tensor([0.0, 2.0])).item()

    @gf.compile
    def inside(x: Tensor) -> Tensor:
        with gf.detect_anomaly():
            return x * 2

    with pytest.raises(errors.TracedValueError, match="around the call"):
        inside(x1())
    assert get_mode().interpreter is None


def test_many_specialisations_are_warned_of_once() -> None:
    f = gf.compile(lambda x, k: x * k)
    with pytest.warns(CompileWarning, match="compiled 8 times") as caught:  # noqa: PT031
        for k in range(20):
            assert f(x1(), float(k)).item() == k
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(100, 200):
            assert f(x1(), float(k)).item() == k
    assert count(f) <= 64
    assert f(x1(), 3.0).item() == 3.0


def test_accumulation_meets_everything_that_touches_gradients() -> None:
    def between(s: Setup, i: int) -> None:
        params = list(s.model.parameters())
        if i == 2:
            params[0].grad = None
        if i == 3:
            params[1].grad = gf.ones(8)
        if i == 4:
            with gf.no_grad():
                params[2].grad[...] = 3.0
        if i == 5:
            without_zero(s)(*map(gf.tensor, BATCHES[0]))
        if i == 6:
            nn.utils.clip_grad_norm_(params, 0.1)
        if i == 7:
            s.model.zero_grad()

    compare(without_zero, between, calls=10, specialisations=None)


def test_gradients_set_between_steps_make_no_difference_to_a_step_that_clears_them() -> None:
    def between(s: Setup, i: int) -> None:
        params = list(s.model.parameters())
        if i % 3 == 1:
            params[0].grad = gf.ones(params[0].shape)
        if i % 3 == 2:
            s.optimizer.zero_grad()

    compare(step_of, between, calls=8)


def test_a_model_that_goes_takes_its_programs_along() -> None:
    import weakref

    class Trainer:
        def __init__(self) -> None:
            self.s = Setup()

        @gf.compile
        def step(self, x: Tensor, t: Tensor) -> Tensor:
            return step_of(self.s)(x, t)

    trainer = Trainer()
    for x, t in BATCHES[:3]:
        trainer.step(x, t)
    gone = [weakref.ref(t) for t in (trainer, trainer.s.model, trainer.s.model[0].weight, trainer.s.optimizer)]
    assert count(Trainer.step) == 1
    del trainer
    assert [reference() for reference in gone] == [None] * 4
    assert count(Trainer.step) == 0


def test_the_order_of_a_dict() -> None:
    layers = {"a": nn.Linear(2, 2), "b": nn.Tanh()}
    sequence = nn.Sequential(nn.Linear(2, 2), nn.Tanh())

    def f(x: Tensor) -> Tensor:
        for layer in layers.values():
            x = layer(x)
        return sequence(x)

    fast, x = gf.compile(f), gf.ones((1, 2))
    for change in range(3):
        for _ in range(3):
            same(fast(x), f(x))
        if change == 0:
            layers["a"] = layers.pop("a")
        else:
            vars(sequence)["0"] = vars(sequence).pop("0")
    assert count(fast) == 3


def test_an_attribute_that_comes_to_hide_another() -> None:
    class Base:
        scale = 2.0

        def scaled(self, x: Tensor) -> Tensor:
            return x * self.scale

    class Derived(Base):
        pass

    a = Derived()
    f = gf.compile(a.scaled)
    for place, value in ((Base, 3.0), (Derived, 4.0), (a, 5.0)):
        for _ in range(3):
            assert f(x1()).item() == a.scale
        place.scale = value
    assert f(x1()).item() == 5.0


def test_defaults_of_a_function_that_is_called() -> None:
    def helper(x: Tensor, k: float = 2.0, *, m: float = 1.0) -> Tensor:
        return x * k * m

    f = gf.compile(lambda x: helper(x))
    for _ in range(3):
        assert f(x1()).item() == 2.0
    helper.__defaults__ = (3.0,)
    assert [f(x1()).item() for _ in range(3)] == [3.0] * 3
    helper.__kwdefaults__["m"] = 2.0
    assert [f(x1()).item() for _ in range(3)] == [6.0] * 3


def test_numpy_arrays_that_are_changed_where_they_lie() -> None:
    array, whole = np.ones(2, np.float32), np.ones(2, np.int64)
    f = gf.compile(
        lambda x: (
            x * array * whole,
            gf.tensor(array) * x,
            gf.tensor(whole, dtype=gf.float32) * x,
            gf.asarray(array, dtype=gf.float64) * 1,
            gf.zeros(2).copy() + gf.asarray(whole),
        )
    )
    for value in (1.0, 1.0, 5.0, 7.0):
        array[:] = whole[:] = value
        assert [t.tolist() for t in f(gf.ones(2))] == [[value**2] * 2, *[[value] * 2] * 4]
    assert count(f) == 1


def test_arguments_that_the_function_changes_are_refused() -> None:
    class Held:
        n = 1.0

    def appends(xs: list[Tensor]) -> Tensor:
        xs.append(xs[0] * 2)
        return xs[0]

    def replaces(d: dict[str, Tensor]) -> Tensor:
        d["x"] = d["x"] * 2
        return d["x"]

    def sets(held: Held) -> Tensor:
        held.n = held.n + 1
        return gf.ones(2) * held.n

    for function, argument in ((appends, [x1()]), (replaces, {"x": x1()}), (sets, Held())):
        for _ in range(2):
            with pytest.raises(errors.TracedValueError, match="changed"):
                gf.compile(function)(argument)


def test_hooks_and_iterators_with_effects_are_refused() -> None:
    w, log = gf.Parameter([1.0]), []
    w.register_hook(lambda g: log.append(1))

    def step(x: Tensor) -> None:
        (w * x).sum().backward()

    with pytest.raises(errors.TracedValueError, match="log was of length 0"):
        gf.compile(step)(x1())
    import itertools

    for iterator in (iter([1.0, 2.0]), itertools.count(), (k for k in range(3))):
        with pytest.raises(errors.TracedValueError, match="iterator was at"):
            gf.compile(lambda x, iterator=iterator: x * next(iterator))(x1())


def test_a_schedule_inside_is_refused() -> None:
    s = Setup()

    class Schedule:
        def __init__(self) -> None:
            self.calls = 0

        def step(self) -> None:
            self.calls += 1
            s.optimizer.lr = 0.1 / self.calls

    schedule = Schedule()

    def step(x: Tensor, t: Tensor) -> Tensor:
        loss = step_of(s)(x, t)
        schedule.step()
        return loss

    with pytest.raises(errors.TracedValueError, match=r"schedule\.calls was 0 and is 1"):
        gf.compile(step)(*BATCHES[0])


def test_modes_of_other_threads_are_their_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    s = Setup()
    f, x = gf.compile(lambda x: s.model(x)), gf.tensor(BATCHES[0][0])

    def work(recording: bool) -> bool:
        with gf.set_grad_enabled(recording):
            return all(f(x).requires_grad is recording for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [True, False] * 4))
    assert count(f) == 2


def test_functions_made_in_a_loop() -> None:
    functions = [gf.compile(lambda x, k=k: x * k) for k in range(4)]
    for _ in range(2):
        assert [f(x1()).item() for f in functions] == [0.0, 1.0, 2.0, 3.0]


def test_seeding_inside_a_step_seeds_at_every_call() -> None:
    @gf.compile
    def f() -> Tensor:
        gf.manual_seed(1)
        return gf.random.uniform(2)

    first = f().tolist()
    gf.random.uniform(5)
    assert f().tolist() == first
