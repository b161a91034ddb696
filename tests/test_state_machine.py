"""Model and optimizer through any sequence of what users do to them, with a PyTorch model as their shadow.

A rule does one thing on both sides; after each, everything that can be seen of the two must agree: names and their
order, values, gradients, what is frozen, training flags, hyper-parameters, optimizer state, a prediction. The last
part of the file plants faults in gradflow and demands that the machine finds each of them.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import gradflow as gf
from gradflow import errors, nn, optim
from gradflow.nn import utils
from gradflow.nn.module import slots
from gradflow.optim import Optimizer
from gradflow.optim.optimizer import FirstOrder
from gradflow.tensor import Tensor

torch = pytest.importorskip("torch")

WIDTH = 3  # of every layer's input and output, so that layers may stand in any order
ROWS = 4  # of a batch
TOLERANCE = 1e-9
Array = np.ndarray
State = dict[str, Any]


# ---------------------------------------------------------------- layers, by their PyTorch counterparts
class Network(nn.Module):
    """Layers in a list, which rules lengthen, shorten and reorder."""

    def __init__(self) -> None:
        self.layers: list[nn.Module] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class TorchNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class TorchResidual(torch.nn.Module):
    def __init__(self, *modules: Any, shortcut: Any = None) -> None:
        super().__init__()
        self.body = modules[0] if len(modules) == 1 else torch.nn.Sequential(*modules)
        self.shortcut = shortcut

    def forward(self, x: Any) -> Any:
        return (x if self.shortcut is None else self.shortcut(x)) + self.body(x)


def affine(lib: Any) -> Any:
    return lib.Linear(WIDTH, WIDTH)


# layer -> ways to make it, of `nn` or `torch.nn`; those that are not called the same have a maker for each
LAYERS: dict[str, list[Callable[[Any], Any]]] = {
    "Dropout": [lambda lib: lib.Dropout(0.0)],  # PyTorch's random numbers are others
    "Embedding": [],  # it takes integers; tests/test_nn_layers.py has it
    "Flatten": [lambda lib: lib.Flatten()],
    "GELU": [lambda lib: lib.GELU(), lambda lib: lib.GELU("tanh")],
    "Identity": [lambda lib: lib.Identity()],
    "LayerNorm": [
        lambda lib: lib.LayerNorm(WIDTH),
        lambda lib: lib.LayerNorm(WIDTH, 0.1, bias=False),
        lambda lib: lib.LayerNorm(WIDTH, elementwise_affine=False),
    ],
    "Linear": [affine, lambda lib: lib.Linear(WIDTH, WIDTH, bias=False)],
    "LogSoftmax": [lambda lib: lib.LogSoftmax(-1)],
    "MLP": [
        lambda lib: (
            nn.MLP([WIDTH, 5, WIDTH], nn.Tanh)
            if lib is nn
            else lib.Sequential(lib.Linear(WIDTH, 5), lib.Tanh(), lib.Linear(5, WIDTH))
        )
    ],
    "ReLU": [lambda lib: lib.ReLU()],
    "Residual": [
        lambda lib: (nn.Residual if lib is nn else TorchResidual)(affine(lib), lib.Tanh()),
        lambda lib: (nn.Residual if lib is nn else TorchResidual)(lib.Tanh(), shortcut=affine(lib)),
    ],
    "Sequential": [lambda lib: lib.Sequential(affine(lib), lib.Sigmoid()), lambda lib: lib.Sequential()],
    "SiLU": [lambda lib: lib.SiLU()],
    "Sigmoid": [lambda lib: lib.Sigmoid()],
    "Softmax": [lambda lib: lib.Softmax(-1)],
    "Tanh": [lambda lib: lib.Tanh()],
}
MAKERS = [maker for makers in LAYERS.values() for maker in makers]
TRAINED = [maker for maker in MAKERS if any(True for _ in maker(nn).parameters())]


# ---------------------------------------------------------------- losses
class LossCase(NamedTuple):
    options: dict[str, st.SearchStrategy[Any]]
    target: Callable[[np.random.Generator], Array]
    of_probabilities: bool = False


def labels(rng: np.random.Generator) -> Array:
    """Class indices, of which never all are 1, the one that may be ignored: the mean of nothing is NaN."""
    return np.array([0, 2, *rng.integers(0, WIDTH, ROWS - 2)])


def shares(rng: np.random.Generator) -> Array:
    return rng.uniform(0.1, 0.9, (ROWS, WIDTH))


WEIGHTS = st.sampled_from([None, np.array([0.5, 2.0, 1.0])])
LOSSES: dict[str, LossCase] = {
    "CrossEntropyLoss": LossCase(
        {
            "weight": WEIGHTS,
            "ignore_index": st.sampled_from([-100, 1]),
            "label_smoothing": st.sampled_from([0.0, 0.1]),
        },
        labels,
    ),
    "BCEWithLogitsLoss": LossCase({"weight": WEIGHTS, "pos_weight": WEIGHTS}, shares),
    "BCELoss": LossCase({"weight": WEIGHTS}, shares, of_probabilities=True),
    "MSELoss": LossCase({}, shares),
}
REDUCTIONS = st.sampled_from(["mean", "sum", "none"])
DRAWN_LOSSES = st.one_of(
    [
        st.tuples(st.just(name), st.fixed_dictionaries({"reduction": REDUCTIONS, **case.options}))
        for name, case in LOSSES.items()
    ]
)

# ---------------------------------------------------------------- optimizers
RATES = st.sampled_from([0.01, 0.1])
DECAYS = st.sampled_from([0.0, 0.1])
BETAS = st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.9)])
ADAM = {"lr": RATES, "betas": BETAS, "eps": st.sampled_from([1e-8, 1e-3]), "weight_decay": DECAYS}
# optimizer -> its hyper-parameters, which may change midway; and what is settled when it is built
HYPER: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "SGD": {
        "lr": RATES,
        "momentum": st.sampled_from([0.0, 0.9]),
        "dampening": st.sampled_from([0.0, 0.3]),
        "weight_decay": DECAYS,
    },
    "Adam": ADAM,
    "AdamW": ADAM,
}
SETTLED: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "SGD": {"nesterov": st.booleans(), "maximize": st.booleans()},
    "Adam": {"maximize": st.booleans()},
    "AdamW": {"maximize": st.booleans()},
}
OURS_ALONE = {"eps_inside_root"}  # held in tests/test_optim.py
WITH_CLOSURES = {"LBFGS"}  # it steps in no other way; tests/test_lbfgs.py has it


def settle(options: dict[str, Any]) -> dict[str, Any]:
    """Nesterov's variant needs an undamped velocity."""
    return {**options, "momentum": 0.9, "dampening": 0.0} if options.get("nesterov") else options


DRAWN_OPTIMIZERS = st.one_of(
    [st.tuples(st.just(name), st.fixed_dictionaries({**HYPER[name], **SETTLED[name]}).map(settle)) for name in HYPER]
)


# ---------------------------------------------------------------- nothing new escapes
def exported(module: Any, base: type) -> set[str]:
    found = {name: getattr(module, name) for name in module.__all__}
    return {name for name, held in found.items() if isinstance(held, type) and issubclass(held, base)} - {base.__name__}


def test_every_layer_has_a_counterpart() -> None:
    assert exported(nn, nn.Module) - exported(nn, nn.Loss) - {"Loss"} == set(LAYERS)


def test_every_loss_has_a_case_with_all_its_options() -> None:
    assert exported(nn, nn.Loss) == set(LOSSES)
    for name, case in LOSSES.items():
        assert set(inspect.signature(getattr(nn, name)).parameters) == {"reduction", *case.options}


def test_every_optimizer_has_a_case_with_all_its_options() -> None:
    assert exported(optim, Optimizer) - WITH_CLOSURES == set(HYPER) == set(SETTLED)
    for name, hyper in HYPER.items():
        options = {"params", *hyper, *SETTLED[name]}
        assert set(inspect.signature(getattr(optim, name)).parameters) - OURS_ALONE == options


# ---------------------------------------------------------------- all that can be seen of either side
class Side(NamedTuple):
    """A model, its optimizers, and a namespace-free way to look at them."""

    model: Any
    optimizers: list[Any]


def host(t: Any) -> Array:
    return np.array(t.numpy() if isinstance(t, Tensor) else t.detach().numpy())


def ours_seen(side: Side) -> State:
    model = side.model
    seen = _model_seen(model, {id(p): name for name, p in model.named_parameters()})
    seen["number of weights"] = model.num_parameters()
    with gf.no_grad():
        seen["prediction"] = host(model(gf.tensor(PROBE)))
    for i, optimizer in enumerate(side.optimizers):
        seen[f"optimizer {i}"] = type(optimizer).__name__
        state = optimizer.state_dict()["state"]
        for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            entry = dict(state[number])
            steps = float(entry.pop("step"))
            seen |= _trained_seen(f"optimizer {i}, parameter {number}", p)
            seen |= _slots_seen(f"optimizer {i}, parameter {number}", type(optimizer).__name__, steps, entry)
        seen |= _hyper_seen(i, optimizer)
    return seen


def theirs_seen(side: Side) -> State:
    model = side.model
    seen = _model_seen(model, {id(p): name for name, p in model.named_parameters()})
    seen["number of weights"] = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        seen["prediction"] = host(model(torch.tensor(PROBE)))
    for i, optimizer in enumerate(side.optimizers):
        name = type(optimizer).__name__
        seen[f"optimizer {i}"] = name
        for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            entry = dict(optimizer.state.get(p, {}))
            entry = {slot: value for slot, value in entry.items() if value is not None}
            steps = float(entry.pop("step", 1.0 if entry else 0.0))  # SGD does not count
            slots = {slot: entry.get(slot, torch.zeros_like(p)) for slot in getattr(optim, name).slots}
            seen |= _trained_seen(f"optimizer {i}, parameter {number}", p)
            seen |= _slots_seen(f"optimizer {i}, parameter {number}", name, steps, slots)
        seen |= _hyper_seen(i, optimizer)
    return seen


PROBE = np.random.default_rng(0).normal(size=(2, WIDTH))


def _model_seen(model: Any, names: dict[int, str]) -> State:
    """The names in order, tied ones once and in the state dict under each; what is under them; the training flags."""
    seen: State = {"parameters": list(names.values()), "state dict": list(model.state_dict())}
    for name, p in model.named_parameters():
        seen |= _trained_seen(name, p)
    for name, value in model.state_dict().items():
        seen[f"{name} in the state dict"] = host(value)
    for name, module in model.named_modules():
        if name != "layers":  # the list is a module in PyTorch
            seen[f"training of {name}"] = module.training
    return seen


def _trained_seen(name: str, p: Any) -> State:
    grad = None if p.grad is None else host(p.grad)
    return {name: host(p), f"{name} requires grad": p.requires_grad, f"{name} has a gradient": grad is not None} | (
        {} if grad is None else {f"gradient of {name}": grad}
    )


def _slots_seen(place: str, name: str, steps: float, slots: dict[str, Any]) -> State:
    seen: State = {f"{place}: {slot}": host(value) for slot, value in slots.items()}
    return seen | {f"{place}: steps": steps > 0 if name == "SGD" else steps}


def _hyper_seen(i: int, optimizer: Any) -> State:
    return {
        f"optimizer {i}, group {j}: {name}": np.array(group[name])
        for j, group in enumerate(optimizer.param_groups)
        for name in HYPER[type(optimizer).__name__]
    }


def differences(a: State, b: State, tolerance: float = 0.0) -> list[str]:
    """What one has and the other has not, or has otherwise."""
    wrong = [f"{key} is on one side alone" for key in a.keys() ^ b.keys()]
    for key in a.keys() & b.keys():
        x, y = a[key], b[key]
        if not isinstance(x, Array):
            if x != y:
                wrong.append(f"{key}: {x} and {y}")
        elif x.dtype != y.dtype or x.shape != y.shape:
            wrong.append(f"{key}: {x.dtype}{x.shape} and {y.dtype}{y.shape}")
        elif not _close(x, y, tolerance):
            wrong.append(f"{key}: {x} and {y}")
    return sorted(wrong)


def _close(x: Array, y: Array, tolerance: float) -> bool:
    if np.array_equal(x, y):
        return True
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return np.array_equal(np.isfinite(x), np.isfinite(y)) and np.allclose(x, y, tolerance, tolerance, True)
    return bool((np.abs(x - y) <= tolerance * (1 + np.abs(y))).all())


# ---------------------------------------------------------------- the machine
SEEDS = st.integers(0, 99)
AT = st.integers(0, 99)  # which of several things: modulo their number
MISTAKES = ["target", "label", "hook", "state", "moments", "rate", "parameter", "gradient"]
MANY_LAYERS, MANY_OPTIMIZERS = 4, 2


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = Side(Network(), []), Side(TorchNetwork(), [])
        self.apart: list[tuple[Side, State]] = []  # a copy that nothing done later may reach
        self.saved: tuple[Any, Any, list[Any]] | None = None
        self.removers: list[tuple[Callable[[], None], Any, Any]] = []

    # ------------------------------------------------------------ what the rules are made of
    def both(self, function: Callable[[Any], object]) -> None:
        function(self.ours)
        function(self.theirs)

    def made(self, maker: Callable[[Any], Any], seed: int) -> tuple[Any, Any]:
        """A layer and its counterpart, in float64, with equal weights."""
        ours, theirs = maker(nn).to(gf.float64), maker(torch.nn).double()
        rng = np.random.default_rng(seed)
        state = {name: rng.uniform(-0.8, 0.8, value.shape) for name, value in theirs.state_dict().items()}
        ours.load_state_dict(state)
        theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        return ours, theirs

    def layer(self, at: int) -> tuple[Any, Any]:
        i = at % len(self.ours.model.layers)
        return self.ours.model.layers[i], self.theirs.model.layers[i]

    def parameters(self) -> list[tuple[Any, Any]]:
        return list(zip(self.ours.model.parameters(), self.theirs.model.parameters(), strict=True))

    def parameter(self, at: int) -> tuple[Any, Any]:
        pairs = self.parameters()
        return pairs[at % len(pairs)]

    def affines(self) -> list[tuple[Any, Any]]:
        ours = [m for m in self.ours.model.modules() if isinstance(m, nn.Linear)]
        theirs = [m for m in self.theirs.model.modules() if isinstance(m, torch.nn.Linear)]
        return list(zip(ours, theirs, strict=True))

    def optimizer(self, at: int) -> tuple[Any, Any]:
        i = at % len(self.ours.optimizers)
        return self.ours.optimizers[i], self.theirs.optimizers[i]

    def leave(self, side: Side) -> None:
        """From now on this side must stay as it is."""
        self.apart = [(side, ours_seen(side))]

    def unhook(self) -> None:
        for ours, theirs, _ in self.removers:
            ours()
            theirs.remove()
        self.removers = []

    @contextlib.contextmanager
    def refused(self, *kinds: type[Exception]) -> Iterator[None]:
        """What runs here must raise and leave everything as it was."""
        before = ours_seen(self.ours)
        try:
            yield
        except kinds:
            pass
        else:
            raise AssertionError(f"nothing was raised where {kinds} is due")
        assert differences(before, ours_seen(self.ours)) == []

    # ------------------------------------------------------------ what always holds
    @invariant()
    def both_sides_agree(self) -> None:
        wrong = differences(ours_seen(self.ours), theirs_seen(self.theirs), TOLERANCE)
        assert wrong == [], "\n".join(wrong)

    @invariant()
    def copies_stay_as_they_were(self) -> None:
        for side, state in self.apart:
            assert differences(ours_seen(side), state) == []

    # ------------------------------------------------------------ layers come and go
    @initialize(seed=SEEDS, drawn=DRAWN_OPTIMIZERS)
    def begin(self, seed: int, drawn: tuple[str, dict[str, Any]]) -> None:
        for i, maker in enumerate((affine, LAYERS["Tanh"][0], affine)):
            self.insert(i, maker, seed + i)
        self.build(drawn, 0, 0.01)

    @rule(
        how=st.sampled_from(["insert", "remove", "replace", "hold twice"]),
        at=AT,
        maker=st.sampled_from(MAKERS),
        seed=SEEDS,
    )
    def change_layers(self, how: str, at: int, maker: Callable[[Any], Any], seed: int) -> None:
        number = len(self.ours.model.layers)
        if how == "insert" or not number:
            self.insert(at, maker, seed)
        elif how == "remove":
            self.both(lambda side: side.model.layers.pop(at % number))
        elif how == "replace":
            self.ours.model.layers[at % number], self.theirs.model.layers[at % number] = self.made(maker, seed)
        elif number < MANY_LAYERS:
            self.both(lambda side: side.model.layers.append(side.model.layers[at % number]))

    def insert(self, at: int, maker: Callable[[Any], Any], seed: int) -> None:
        if len(self.ours.model.layers) >= MANY_LAYERS:
            self.both(lambda side: side.model.layers.pop(at % MANY_LAYERS))
        i = at % (len(self.ours.model.layers) + 1)
        ours, theirs = self.made(maker, seed)
        self.ours.model.layers.insert(i, ours)
        self.theirs.model.layers.insert(i, theirs)

    # ------------------------------------------------------------ tied, frozen, edited
    @precondition(lambda self: self.affines())
    @rule(a=AT, b=AT, name=st.sampled_from(["weight", "bias"]))
    def tie(self, a: int, b: int, name: str) -> None:
        found = self.affines()
        (ours, theirs), (other, their_other) = found[a % len(found)], found[b % len(found)]
        if getattr(getattr(other, name), "shape", 0) == getattr(getattr(ours, name), "shape", None):
            setattr(ours, name, getattr(other, name))
            setattr(theirs, name, getattr(their_other, name))

    @precondition(lambda self: self.affines())
    @rule(at=AT)
    def untie(self, at: int) -> None:
        """The layer gets a weight of its own; whoever has the old one keeps it."""
        ours, theirs = self.affines()[at % len(self.affines())]
        ours.weight = nn.Parameter(ours.weight.detach().copy())
        theirs.weight = torch.nn.Parameter(theirs.weight.detach().clone())

    @precondition(lambda self: self.parameters())
    @rule(at=AT, whole_layer=st.booleans())
    def freeze_or_thaw(self, at: int, whole_layer: bool) -> None:
        """Frozen, a parameter forgets its gradient and its hooks; PyTorch keeps both."""
        if whole_layer:
            layer, their_layer = self.layer(at)
            pairs = list(zip(layer.parameters(), their_layer.parameters(), strict=True))
            trained = not all(p.requires_grad for p, _ in pairs)
            layer.requires_grad_(trained)
        else:
            pairs = [self.parameter(at)]
            trained = not pairs[0][0].requires_grad
            pairs[0][0].requires_grad_(trained)
        for _, q in pairs:
            q.requires_grad_(trained)
            q.grad = q.grad if trained else None
        gone = [] if trained else [entry for entry in self.removers if any(entry[2] is q for _, q in pairs)]
        for entry in gone:
            entry[1].remove()
            self.removers.remove(entry)

    @precondition(lambda self: self.parameters())
    @rule(at=AT, seed=SEEDS, how=st.sampled_from(["all", "a row", "scaled", "as a vector"]))
    def edit(self, at: int, seed: int, how: str) -> None:
        p, q = self.parameter(at)
        values = np.random.default_rng(seed).uniform(-0.8, 0.8, p.shape)
        with gf.no_grad(), torch.no_grad():
            if how == "all":
                p[...] = gf.tensor(values)
                q[...] = torch.tensor(values)
            elif how == "a row":
                p[0] = gf.tensor(values[0])
                q[0] = torch.tensor(values[0])
            elif how == "scaled":
                p *= 0.5
                q *= 0.5
            else:
                self.write_a_vector(seed)

    def write_a_vector(self, seed: int) -> None:
        vector = utils.parameters_to_vector(self.ours.model.parameters())
        theirs = torch.nn.utils.parameters_to_vector(self.theirs.model.parameters())
        np.testing.assert_allclose(host(vector), host(theirs), TOLERANCE, TOLERANCE)
        values = np.random.default_rng(seed).uniform(-0.8, 0.8, vector.shape)
        utils.vector_to_parameters(gf.tensor(values), self.ours.model.parameters())
        torch.nn.utils.vector_to_parameters(torch.tensor(values), self.theirs.model.parameters())

    @precondition(lambda self: self.parameters())
    @rule(away=st.sampled_from(["float32", "float64"]), drawn=DRAWN_LOSSES, seed=SEEDS, hooked=st.none() | AT)
    def move_away_and_back(self, away: str, drawn: tuple[str, Any], seed: int, hooked: int | None) -> None:
        """To another dtype and back; exact where both sides are equal bit for bit, which they are made before."""
        if hooked is not None and any(p.requires_grad for p, _ in self.parameters()):
            self.hook(hooked, -2.0)
        with torch.no_grad():
            for p, q in pairs_of(self.ours, self.theirs):
                q.copy_(torch.tensor(host(p)))
                if p.grad is not None:
                    q.grad.copy_(torch.tensor(host(p.grad)))
        self.ours.model.to(away).to(gf.float64)
        self.theirs.model.to(getattr(torch, away)).double()
        self.backward(drawn, seed, 1)

    @rule(at=st.none() | AT)
    def train_or_evaluate(self, at: int | None) -> None:
        """The model, or one of its layers, from the one mode into the other."""
        whole = at is None or not self.ours.model.layers
        module, their_module = (self.ours.model, self.theirs.model) if whole else self.layer(at)
        change = "eval" if module.training else "train"
        getattr(module, change)()
        getattr(their_module, change)()

    # ------------------------------------------------------------ gradients
    def losses(self, drawn: tuple[str, dict[str, Any]], seed: int) -> tuple[Any, Any]:
        """The loss of both models on one batch."""
        name, options = drawn
        case, rng = LOSSES[name], np.random.default_rng(seed)
        x, target = rng.normal(size=(ROWS, WIDTH)), case.target(rng)
        ours, theirs = self.ours.model(gf.tensor(x)), self.theirs.model(torch.tensor(x))
        if case.of_probabilities:  # clear of 0 and 1, where the last digit of p decides
            ours, theirs = 0.1 + 0.8 * gf.sigmoid(ours), 0.1 + 0.8 * torch.sigmoid(theirs)
        their_options = {k: torch.tensor(v) if isinstance(v, Array) else v for k, v in options.items()}
        loss = getattr(nn, name)(**options)(ours, gf.tensor(target))
        their_loss = getattr(torch.nn, name)(**their_options)(theirs, torch.tensor(target))
        np.testing.assert_allclose(host(loss), host(their_loss), TOLERANCE, TOLERANCE)
        return loss, their_loss

    @rule(drawn=DRAWN_LOSSES, seed=SEEDS, times=st.integers(1, 3))
    def backward(self, drawn: tuple[str, dict[str, Any]], seed: int, times: int) -> None:
        for i in range(times):
            loss, their_loss = self.losses(drawn, seed + i)
            if not their_loss.requires_grad:
                with self.refused(errors.GraphError):
                    loss.backward(gf.ones_like(loss))
                return
            loss.backward(gf.ones_like(loss))
            their_loss.backward(torch.ones_like(their_loss))

    @precondition(lambda self: any(p.grad is not None for p, _ in self.parameters()))
    @rule(bound=st.sampled_from([0.0, 0.1, 10.0]), norm=st.sampled_from([1.0, 2.0, float("inf"), "value"]))
    def clip_gradients(self, bound: float, norm: Any) -> None:
        ours, theirs = list(self.ours.model.parameters()), list(self.theirs.model.parameters())
        if norm == "value":
            utils.clip_grad_value_(ours, bound)
            torch.nn.utils.clip_grad_value_(theirs, bound)
        else:
            found = utils.clip_grad_norm_(ours, bound, norm)
            right = torch.nn.utils.clip_grad_norm_(theirs, bound, norm)
            np.testing.assert_allclose(host(found), host(right), TOLERANCE, TOLERANCE)

    @precondition(lambda self: any(p.requires_grad for p, _ in self.parameters()))
    @rule(at=AT, factor=st.sampled_from([0.0, -2.0]))
    def hook(self, at: int, factor: float) -> None:
        pairs = [(p, q) for p, q in self.parameters() if p.requires_grad]
        p, q = pairs[at % len(pairs)]
        remover = p.register_hook(lambda g: g * factor)
        self.removers.append((remover, q.register_hook(lambda g: g * factor), q))

    @precondition(lambda self: self.removers)
    @rule(at=AT)
    def take_a_hook_off(self, at: int) -> None:
        ours, theirs, _ = self.removers.pop(at % len(self.removers))
        ours()
        theirs.remove()

    @precondition(lambda self: self.parameters())
    @rule(at=AT, seed=SEEDS)
    def call_with_other_weights(self, at: int, seed: int) -> None:
        """functional_call: the result and its derivative are those of other weights, and the model keeps its own."""
        names = [name for name, _ in self.ours.model.named_parameters()]
        names = names[: 1 + at % len(names)]
        held = dict(self.ours.model.named_parameters())
        rng = np.random.default_rng(seed)
        values = {name: rng.uniform(-0.8, 0.8, held[name].shape) for name in names}
        x = rng.normal(size=(ROWS, WIDTH))
        ours = {name: gf.tensor(value, requires_grad=True) for name, value in values.items()}
        theirs = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
        y = gf.functional_call(self.ours.model, ours, gf.tensor(x))
        right = torch_functional_call(self.theirs.model, theirs, torch.tensor(x))
        np.testing.assert_allclose(host(y), host(right), TOLERANCE, TOLERANCE)
        y.sum().backward()
        right.sum().backward()
        for name in names:
            found, known = ours[name].grad, theirs[name].grad
            assert (found is None) == (known is None)
            if found is not None:
                np.testing.assert_allclose(host(found), host(known), TOLERANCE, TOLERANCE)

    # ------------------------------------------------------------ optimizers
    @precondition(lambda self: self.parameters())
    @rule(drawn=DRAWN_OPTIMIZERS, mask=SEEDS, second_rate=RATES)
    def build(self, drawn: tuple[str, dict[str, Any]], mask: int, second_rate: float) -> None:
        """An optimizer over all parameters, or over some; where it may be, in two groups."""
        name, options = drawn
        pairs = self.parameters()
        pairs = [pair for i, pair in enumerate(pairs) if not mask >> i & 1] or pairs
        cut = mask % len(pairs) if mask > 50 else 0
        parts = [(pairs[:cut], {"lr": second_rate}), (pairs[cut:], {})] if cut else [(pairs, {})]
        for side, lib, index in ((self.ours, optim, 0), (self.theirs, torch.optim, 1)):
            groups = [{"params": [pair[index] for pair in part], **extra} for part, extra in parts]
            del side.optimizers[: len(side.optimizers) + 1 - MANY_OPTIMIZERS]
            side.optimizers.append(getattr(lib, name)(groups, **options))

    @precondition(lambda self: self.ours.optimizers)
    @rule(at=AT, without=st.none() | AT)
    def step(self, at: int, without: int | None) -> None:
        """One step; a parameter that has no gradient, because it was taken away, is passed over."""
        if without is not None and self.parameters():
            for p in self.parameter(without):
                p.grad = None
        for optimizer in self.optimizer(at):
            optimizer.step()
        self.keep_small()

    def keep_small(self) -> None:
        """Scale down what a climb, or a long step, has made large: rounding would decide the rest."""
        with gf.no_grad(), torch.no_grad():
            for p, q in pairs_of(self.ours, self.theirs):
                largest = max(float(abs(p).max()), 1.0)
                p /= largest
                q /= largest

    @precondition(lambda self: self.ours.optimizers)
    @rule(at=AT, drawn=DRAWN_LOSSES, seed=SEEDS, times=st.integers(1, 3), without=st.none() | AT)
    def train(self, at: int, drawn: tuple[str, dict[str, Any]], seed: int, times: int, without: int | None) -> None:
        for i in range(times):
            self.zero_gradients(at, "an optimizer's, to None")
            self.backward(drawn, seed + i, 1)
            self.step(at, None if i else without)

    @rule(at=AT, how=st.sampled_from(["the model's", "an optimizer's, to None", "an optimizer's, to zeros"]))
    def zero_gradients(self, at: int, how: str) -> None:
        if how == "the model's" or not self.ours.optimizers:
            self.both(lambda side: side.model.zero_grad())
        else:
            for optimizer in self.optimizer(at):
                optimizer.zero_grad(set_to_none=how.endswith("None"))

    @precondition(lambda self: self.ours.optimizers)
    @rule(at=AT, data=st.data())
    def change_a_hyper_parameter(self, at: int, data: st.DataObject) -> None:
        ours, theirs = self.optimizer(at)
        group = at % len(ours.param_groups)
        name = data.draw(st.sampled_from(sorted(HYPER[type(ours).__name__])))
        if theirs.defaults.get("nesterov") and name in ("momentum", "dampening"):
            return
        value = data.draw(HYPER[type(ours).__name__][name])
        if name == "lr" and not group:
            ours.lr = value  # of all groups
        else:
            ours.param_groups[group][name] = value
        for their_group in theirs.param_groups if name == "lr" and not group else [theirs.param_groups[group]]:
            their_group[name] = value

    @precondition(lambda self: self.ours.optimizers)
    @rule(at=AT, maker=st.sampled_from(TRAINED), seed=SEEDS, rate=RATES)
    def add_a_layer_and_its_group(self, at: int, maker: Callable[[Any], Any], seed: int, rate: float) -> None:
        ours, theirs = self.optimizer(at)
        if len(ours.param_groups) < 3:
            self.insert(at, maker, seed)
            known = {id(p) for group in ours.param_groups for p in group["params"]}
            new = [(p, q) for p, q in self.parameters() if id(p) not in known]
            ours.add_param_group({"params": [p for p, _ in new], "lr": rate})
            theirs.add_param_group({"params": [q for _, q in new], "lr": rate})

    # ------------------------------------------------------------ saved and copied
    @rule(through_a_file=st.booleans())
    def save(self, through_a_file: bool) -> None:
        """What is saved now must not change by what comes."""
        ours: Any = {
            "model": self.ours.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.ours.optimizers],
        }
        ours = through_file(ours) if through_a_file else ours
        theirs = {"model": self.theirs.model, "optimizers": self.theirs.optimizers}
        theirs = {
            key: copy.deepcopy([m.state_dict() for m in (held if isinstance(held, list) else [held])])
            for key, held in theirs.items()
        }
        self.saved = ours, theirs, [fitting(o) for o in self.ours.optimizers]

    @precondition(lambda self: self.saved is not None)
    @rule(at=AT)
    def restore(self, at: int) -> None:
        """Where the architecture has changed since, ours must refuse; so it does two values for a tied parameter."""
        ours, theirs, were = self.saved
        if not loads(self.ours.model, ours["model"]):
            with self.refused(errors.StateDictError):
                self.ours.model.load_state_dict(ours["model"])
            return
        result = self.ours.model.load_state_dict(ours["model"])
        assert result == ([], [])
        self.theirs.model.load_state_dict(theirs["model"][0], strict=False)  # wants every name of a tied parameter
        found = zip(
            self.ours.optimizers, self.theirs.optimizers, ours["optimizers"], theirs["optimizers"], were, strict=False
        )
        for optimizer, their_optimizer, state, their_state, was in found:
            if fitting(optimizer) == was:
                optimizer.load_state_dict(state)
                their_optimizer.load_state_dict(copy.deepcopy(their_state))
        if self.ours.optimizers:
            self.step(at, None)

    @precondition(lambda self: self.ours.optimizers)
    @rule(at=AT, drawn=DRAWN_LOSSES, seed=SEEDS, through_a_file=st.booleans())
    def train_and_go_back(self, at: int, drawn: tuple[str, dict[str, Any]], seed: int, through_a_file: bool) -> None:
        self.save(through_a_file)
        self.train(at, drawn, seed, 1, None)
        self.restore(at)

    @rule(how=st.sampled_from(["theirs", "theirs through a file", "ours"]), at=AT, drawn=DRAWN_LOSSES, seed=SEEDS)
    def exchange(self, how: str, at: int, drawn: tuple[str, dict[str, Any]], seed: int) -> None:
        """State dicts of one library load in the other as they are, whatever was there before."""
        if self.ours.optimizers:
            self.train(at, drawn, seed, 2, at)
        if how == "ours":
            self.give_our_state()
            return
        begin_anew(self.ours, self.theirs.optimizers)
        state = self.theirs.model.state_dict()
        if how.endswith("file"):
            state = through_file({name: host(value) for name, value in state.items()})
        self.ours.model.load_state_dict(state)
        for ours, theirs in zip(self.ours.optimizers, self.theirs.optimizers, strict=True):
            ours.load_state_dict(theirs.state_dict())
        if self.ours.optimizers:
            self.step(at, None)

    def give_our_state(self) -> None:
        with torch.no_grad():
            for q in self.theirs.model.parameters():
                q.mul_(3.0)
        state = {name: torch.tensor(host(value)) for name, value in self.ours.model.state_dict().items()}
        self.theirs.model.load_state_dict(state)
        for ours, theirs in zip(self.ours.optimizers, self.theirs.optimizers, strict=True):
            given = ours.state_dict()
            groups = zip(theirs.state_dict()["param_groups"], given["param_groups"], strict=True)
            begun = {n: entry for n, entry in given["state"].items() if float(entry["step"])}  # no velocity before
            theirs.load_state_dict(
                {
                    "state": {n: {k: torch.tensor(host(v)) for k, v in e.items()} for n, e in begun.items()},
                    "param_groups": [{**group, **saved} for group, saved in groups],
                }
            )

    @rule(how=st.sampled_from(["all", "all, and back to the original", "the model", "through a pickle"]), at=AT)
    def copy(self, how: str, at: int) -> None:
        """Make a step with a copy or with the original; the other one must stay as it is.

        PyTorch's copies of a Parameter lose its gradient, and so do pickles in both.
        """
        self.unhook()
        if how == "through a pickle":
            ours, theirs = pickle.loads(pickle.dumps((self.ours, self.theirs)))
        elif how == "the model":
            ours, theirs = Side(copy.deepcopy(self.ours.model), []), Side(copy.deepcopy(self.theirs.model), [])
        else:
            ours, theirs = copy.deepcopy(self.ours), copy.deepcopy(self.theirs)
        if how != "through a pickle":
            for (_, old), (_, new) in zip(pairs_of(self.ours, self.theirs), pairs_of(ours, theirs), strict=False):
                new.grad = None if old.grad is None else old.grad.clone()
        assert differences(ours_seen(ours), theirs_seen(theirs), TOLERANCE) == []
        if how.endswith("original"):
            self.leave(ours)
        else:
            self.leave(self.ours)
            self.ours, self.theirs = ours, theirs
        if self.ours.optimizers:
            self.step(at, None)

    # ------------------------------------------------------------ mistakes change nothing
    @precondition(lambda self: self.ours.optimizers and any(p.requires_grad for p, _ in self.parameters()))
    @rule(at=AT, mistakes=st.lists(st.sampled_from(MISTAKES), min_size=1, max_size=4, unique=True))
    def make_mistakes(self, at: int, mistakes: list[str]) -> None:
        for mistake in mistakes:
            self.make_a_mistake(at, mistake)

    def make_a_mistake(self, at: int, mistake: str) -> None:
        optimizer, _ = self.optimizer(at)
        p, _ = self.parameter(at)
        x = gf.tensor(np.random.default_rng(at).normal(size=(ROWS, WIDTH)))
        if mistake == "target":
            with self.refused(errors.ShapeError):
                optimizer.step(lambda: gf.mse_loss(self.ours.model(x), gf.zeros(ROWS)))
        elif mistake == "label":
            with self.refused(errors.ArgumentError):
                optimizer.step(lambda: gf.cross_entropy(self.ours.model(x), gf.full(ROWS, WIDTH, dtype=gf.int64)))
        elif mistake == "hook":
            self.fail_in_a_hook(x)
        elif mistake == "state":
            state = self.ours.model.state_dict()
            name = sorted(state)[at % len(state)]
            with self.refused(errors.StateDictError):
                self.ours.model.load_state_dict({n: v + 1 for n, v in state.items()} | {name: gf.zeros((7, 7))})
        elif mistake == "moments":
            given = optimizer.state_dict()
            for group in given["param_groups"]:
                group["lr"] = 3.0
            given["state"][0][optimizer.slots[0]] = gf.zeros((7, 7))
            with self.refused(errors.StateDictError):
                optimizer.load_state_dict(given)
        elif mistake == "rate":
            with self.refused(errors.ArgumentError):
                optimizer.param_groups[0]["lr"] = -1.0
        elif mistake == "parameter":
            known = optimizer.param_groups[0]["params"][0]
            with self.refused(errors.ArgumentError):
                optimizer.add_param_group({"params": [nn.Parameter(gf.zeros(2)), known]})
        elif p.requires_grad:
            with self.refused(errors.ShapeError):
                p.grad = gf.zeros((7, 7), dtype=gf.float64)

    def fail_in_a_hook(self, x: Tensor) -> None:
        """An exception in the middle of a sweep leaves no gradient half-way."""

        def stop(_: Tensor) -> None:
            raise KeyError("stop")

        loss = self.ours.model(x).sum()
        if loss.requires_grad:
            removers = [loss.register_hook(lambda g: g), loss.register_hook(stop)]
            with self.refused(KeyError):
                loss.backward()
            for remove in removers:
                remove()

    def teardown(self) -> None:
        self.unhook()


def pairs_of(ours: Side, theirs: Side) -> list[tuple[Any, Any]]:
    """Parameters of both sides, those of the model first, then the optimizers'."""
    pairs = list(zip(ours.model.parameters(), theirs.model.parameters(), strict=True))
    for mine, other in zip(ours.optimizers, theirs.optimizers, strict=True):
        for a, b in zip(mine.param_groups, other.param_groups, strict=True):
            pairs += zip(a["params"], b["params"], strict=True)
    return pairs


def torch_functional_call(model: Any, weights: State, x: Any) -> Any:
    """PyTorch's, which leaves the new weights in a layer that the model holds twice unless each place is named once."""
    new = {id(p): weights[name] for name, p in model.named_parameters() if name in weights}
    places = {
        f"{prefix}.{name}": new[id(p)]
        for prefix, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if id(p) in new
    }
    return torch.func.functional_call(model, places, (x,), tie_weights=False)


def through_file(state: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        gf.save(Path(folder) / "state.safetensors", state)
        return gf.load(Path(folder) / "state.safetensors")


def fitting(optimizer: Optimizer) -> Any:
    """What two optimizers must have in common to take over each other's state."""
    shapes = [[p.shape for p in group.params] for group in optimizer.param_groups]
    return type(optimizer), optimizer.settings, shapes


def loads(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether a state has one value for each parameter, under one or more of its names, and nothing else."""
    held = {slot.path: slot.value for slot in slots(model, every_name=True) if isinstance(slot.value, Tensor)}
    if not all(name in held and held[name].shape == value.shape for name, value in state.items()):
        return False
    first: dict[int, Array] = {}
    agree = [np.array_equal(first.setdefault(id(held[name]), host(v)), host(v)) for name, v in state.items()]
    return all(agree) and first.keys() == {id(value) for value in held.values()}


def begin_anew(side: Side, shadows: list[Any]) -> None:
    """Other weights, and new optimizers in place of the old, which have made a step.

    Parameters that an optimizer alone still has keep their values: nothing loads them.
    """
    held = {id(p) for p in side.model.parameters()}
    for i, (old, shadow) in enumerate(zip(side.optimizers, shadows, strict=True)):
        name = type(old).__name__
        groups = [{"params": group.params} for group in old.param_groups]
        new = type(old)(groups, **{option: shadow.defaults[option] for option in (*HYPER[name], *SETTLED[name])})
        others = [p for group in groups for p in group["params"] if id(p) not in held]
        values = [p.detach().copy() for p in others]
        new.step()
        side.optimizers[i] = new
        with gf.no_grad():
            for p, value in zip(others, values, strict=True):
                p[...] = value
    with gf.no_grad():
        for p in side.model.parameters():
            p += 1.0


Machine.TestCase.settings = hypothesis.settings(stateful_step_count=25)
TestModelAndOptimizer = Machine.TestCase


# ---------------------------------------------------------------- the tester, tested: faults that it must find
Patch = Callable[[Any, str, Any], None]


def forgetting(patch: Patch, **hyper: float) -> None:
    """Every step is made with these hyper-parameters, whatever the groups say."""
    right = FirstOrder.step

    def step(self: FirstOrder, closure: Any = None) -> Any:
        found = [{name: group[name] for name in hyper if name in group} for group in self.param_groups]
        for group, values in zip(self.param_groups, found, strict=True):
            for name in values:
                group[name] = hyper[name]
        result = right(self, closure)
        for group, values in zip(self.param_groups, found, strict=True):
            for name, value in values.items():
                group[name] = value
        return result

    patch(FirstOrder, "step", step)


def weight_decay_is_forgotten(patch: Patch) -> None:
    forgetting(patch, weight_decay=0.0)


def one_learning_rate_is_kept(patch: Patch) -> None:
    forgetting(patch, lr=0.1)


def moments_are_lost_on_the_way_to_a_file(patch: Patch) -> None:
    right = Optimizer.load_state_dict

    def load_state_dict(self: Optimizer, state: Any) -> None:
        right(self, {**state, "state": {}})

    patch(Optimizer, "load_state_dict", load_state_dict)


def step_counts_begin_anew(patch: Patch) -> None:
    patch(optim.optimizer, "_steps", lambda entry: 1.0 if entry else 0.0)


def runs_outlive_a_loaded_state(patch: Patch) -> None:
    """The update goes on in the groups of equal step counts that held before."""
    right = Optimizer.load_state_dict

    def load_state_dict(self: Optimizer, state: Any) -> None:
        buffers = [buffer for group in self.param_groups for buffer in group.buffers]
        runs = [buffer.runs for buffer in buffers]
        right(self, state)
        for buffer, before in zip(buffers, runs, strict=True):
            buffer.runs = before

    patch(Optimizer, "load_state_dict", load_state_dict)


def new_memory_of_a_parameter_is_not_noticed(patch: Patch) -> None:
    """The flat buffer is updated, and the parameter lies elsewhere by now."""

    def gradients(self: Any) -> Any:
        grads = [p.grad for p in self.params]
        return [g for g in grads if g is not None], self._split(tuple(g is not None for g in grads))

    patch(optim.optimizer._Buffer, "gradients", gradients)


def a_parameter_without_a_gradient_is_updated_too(patch: Patch) -> None:
    right = FirstOrder.step

    def step(self: FirstOrder, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group.params:
                if p.requires_grad and p.grad is None:
                    p.grad = gf.zeros_like(p)
        return right(self, closure)

    patch(FirstOrder, "step", step)


def freezing_is_ignored(patch: Patch) -> None:
    right = Tensor.requires_grad_
    patch(Tensor, "requires_grad_", lambda self, requires_grad=True: right(self, True))


def freezing_reaches_only_the_first_parameter(patch: Patch) -> None:
    def requires_grad_(self: nn.Module, requires_grad: bool = True) -> nn.Module:
        for parameter in list(self.parameters())[:1]:
            parameter.requires_grad_(requires_grad)
        return self

    patch(nn.Module, "requires_grad_", requires_grad_)


def modes_stay_at_the_top(patch: Patch) -> None:
    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        self.training = mode
        return self

    patch(nn.Module, "train", train)


def tied_parameters_count_twice(patch: Patch) -> None:
    def num_parameters(self: nn.Module) -> int:
        return sum(value.size for value in self.state_dict().values())

    patch(nn.Module, "num_parameters", num_parameters)


def tied_names_are_left_out_of_the_state(patch: Patch) -> None:
    right = nn.Module.state_dict

    def kept(self: nn.Module) -> Any:
        state = right(self)
        first: dict[int, str] = {}
        return {name: value for name, value in state.items() if first.setdefault(id(value), name) == name}

    patch(nn.Module, "state_dict", kept)


def a_state_dict_shares_memory(patch: Patch) -> None:
    patch(nn.Module, "state_dict", lambda self: {n: v.detach() for n, v in nn.module._state(self).items()})


def half_of_a_wrong_state_is_loaded(patch: Patch) -> None:
    right = nn.Module.load_state_dict

    def load_state_dict(self: nn.Module, state: Any, strict: bool = True) -> Any:
        right(self, dict(state), strict=False)
        return right(self, state, strict)

    patch(nn.Module, "load_state_dict", load_state_dict)


def a_copy_shares_memory(patch: Patch) -> None:
    right = Tensor.__deepcopy__

    def deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
        copied = right(self, memo)
        copied._data = self._data
        return copied

    patch(Tensor, "__deepcopy__", deepcopy)


def hooks_fall_off_on_a_move(patch: Patch) -> None:
    right = nn.Module.to

    def to(self: nn.Module, target: Any) -> nn.Module:
        right(self, target)
        for p in self.parameters():
            if p.requires_grad:
                grad = p.grad
                p.requires_grad_(False).requires_grad_()
                p.grad = grad
        return self

    patch(nn.Module, "to", to)


def gradients_replace_one_another(patch: Patch) -> None:
    right = Tensor.backward

    def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
        leaves = [node for node in gf.tape.reachable(self._node)[1] if not node.edges] if self._node else []
        for leaf in leaves:
            leaf.grad = None
        right(self, *args, **kwargs)

    patch(Tensor, "backward", backward)


def clipping_forgets_one_parameter(patch: Patch) -> None:
    right = utils._grads
    patch(utils, "_grads", lambda function, parameters: right(function, list(parameters)[1:]))


def weights_given_for_a_call_stay(patch: Patch) -> None:
    def functional_call(model: nn.Module, weights: Any, *args: Any) -> Any:
        held = dict(model.named_parameters())
        with gf.no_grad():
            for name, value in weights.items():
                held[name][...] = value
        return right(model, weights, *args)

    right = gf.functional_call
    patch(gf, "functional_call", functional_call)


FAULTS = [
    weight_decay_is_forgotten,
    one_learning_rate_is_kept,
    moments_are_lost_on_the_way_to_a_file,
    step_counts_begin_anew,
    runs_outlive_a_loaded_state,
    new_memory_of_a_parameter_is_not_noticed,
    a_parameter_without_a_gradient_is_updated_too,
    freezing_is_ignored,
    freezing_reaches_only_the_first_parameter,
    modes_stay_at_the_top,
    tied_parameters_count_twice,
    tied_names_are_left_out_of_the_state,
    a_state_dict_shares_memory,
    half_of_a_wrong_state_is_loaded,
    a_copy_shares_memory,
    hooks_fall_off_on_a_move,
    gradients_replace_one_another,
    clipping_forgets_one_parameter,
    weights_given_for_a_call_stay,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found(fault: Callable[[Patch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    search = hypothesis.settings(
        max_examples=400,
        stateful_step_count=25,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
    )
    fault(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=search)
