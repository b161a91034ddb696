"""What all optimizers share: parameter groups, flat buffers, the step, and the state dict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar, cast, final

import numpy as np

from gradflow.arguments import flag, shown, wrong_kind
from gradflow.errors import ArgumentError, DTypeError, GraphError, StateDictError, explain
from gradflow.mode import NO_GRAD, using
from gradflow.ops.creation import make_tensor, zeros, zeros_like
from gradflow.tensor import OPS, Tensor, no_grad

P = ParamSpec("P")
R = TypeVar("R")


def _unseen(method: Callable[P, R]) -> Callable[P, R]:
    """Run a method without recording, and without an interpreter: where memory lies is no part of a traced step."""

    @wraps(method)
    def unseen(*args: P.args, **kwargs: P.kwargs) -> R:
        with using(NO_GRAD):
            return method(*args, **kwargs)

    return unseen


class _Buffer:
    """All parameters of one dtype in one piece of memory, and the optimizer's state beside it.

    A parameter keeps its shape and its memory order; it becomes a view of the buffer. State is one array per slot
    (a moment), and a count of steps for each parameter.
    """

    def __init__(self, params: list[Tensor], optimizer: Optimizer, hyper: Tensor) -> None:
        self.params, self.hyper, self.settings = params, hyper, optimizer.settings
        backend, dtype = params[0].backend, params[0].dtype
        self.ends = np.cumsum([p.size for p in params]).tolist()
        self.starts = [0, *self.ends[:-1]]
        self.slots = [zeros(self.ends[-1], dtype=dtype, backend=backend) for _ in optimizer.slots]
        self.steps = zeros(len(params), dtype=np.float64, backend=backend)
        self.adopt()

    @_unseen
    def adopt(self) -> None:
        """Move the parameters into a buffer; also when somebody has given one of them other memory since.

        Raises:
            GraphError: a parameter has changed its dtype or backend since the optimizer was built.
        """
        first = self.params[0]
        home = self.slots[0]
        if any(p.dtype != home.dtype or p.backend is not home.backend for p in self.params):
            raise GraphError(
                explain(
                    f"a parameter left {home.dtype} on {home.backend.name} after the optimizer was built.",
                    "the optimizer's state lies where its parameters were.",
                    "model.to(...) first, then optim.Adam(model.parameters())",
                )
            )
        self.flat = zeros(self.ends[-1], dtype=first.dtype, backend=first.backend)
        self.turned = [_is_turned(p) for p in self.params]
        self.data = []
        for p, start, end, turn in zip(self.params, self.starts, self.ends, self.turned, strict=True):
            view = self.flat[start:end].reshape(p.shape[::-1] if turn else p.shape)
            view = view.mT if turn else view
            OPS.assign(view, p)
            p._data = view._data
            self.data.append(view._data)
        self.runs: dict[tuple[bool, ...], list[_Run]] = {}

    def gradients(self) -> tuple[list[Tensor], list[_Run]]:
        """The gradients there are, and the runs of neighbouring parameters that have one and have made equal steps."""
        grads: list[Any] = []
        everyone = True
        for p, data in zip(self.params, self.data):  # noqa: B905  (on the path of every step)
            if p._data is not data:
                self.adopt()
                return self.gradients()
            node = p._node
            grad = None if node is None else node.grad
            if grad is None:
                everyone = False
            grads.append(grad)
        present = () if everyone else tuple(g is not None for g in grads)
        runs = self.runs.get(present)
        if runs is None:
            runs = self._split(present or (True,) * len(grads))
            self.runs = {present: runs}  # alone: when another set of parameters takes part, step counts will differ
        return (grads if everyone else [g for g in grads if g is not None]), runs

    @_unseen
    def _split(self, present: tuple[bool, ...]) -> list[_Run]:
        steps = self.steps.tolist()
        runs: list[_Run] = []
        i = 0
        while i < len(present):
            if not present[i]:
                i += 1
                continue
            j = i + 1
            while j < len(present) and present[j] and steps[j] == steps[i]:
                j += 1
            runs.append(_Run(self, i, j))
            i = j
        return runs


class _Run:
    """Neighbouring parameters that are updated in one call."""

    def __init__(self, buffer: _Buffer, i: int, j: int) -> None:
        start, end = buffer.starts[i], buffer.ends[j - 1]
        self.count = j - i
        state = (slot[start:end] for slot in buffer.slots)
        self.operands = (buffer.flat[start:end], *state, buffer.steps[i:j], buffer.hyper)
        self.settings = {**buffer.settings, "turned": tuple(buffer.turned[i:j])}


def _is_turned(p: Tensor) -> bool:
    flags = getattr(p._data, "flags", None)
    return p.ndim == 2 and flags is not None and bool(flags.f_contiguous) and not bool(flags.c_contiguous)


class ParamGroup(Mapping[str, Any]):
    """Parameters that share hyper-parameters; `group["lr"] = 0.1` is seen by the next step.

    Hyper-parameters live in one array that the update rule reads, so a captured step sees a change too.
    """

    def __init__(self, optimizer: Optimizer, params: list[Tensor], values: dict[str, float]) -> None:
        self.params = params
        self.initial_lr: float | None = None  # the learning rate before any schedule changed it
        self._names = optimizer.hyper
        numbers = np.array([require(name, values[name]) for name in self._names])
        self.hyper = make_tensor(numbers, backend=params[0].backend)
        by_dtype: dict[Any, list[Tensor]] = {}
        for p in params:
            by_dtype.setdefault((p.dtype, p.backend), []).append(p)
        kinds = by_dtype.values() if optimizer.slots else ()  # what keeps no state by parameter lets them lie
        self.buffers = [_Buffer(members, optimizer, self.hyper) for members in kinds]

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return self.params
        if name == "betas" and "beta1" in self._names:
            return self["beta1"], self["beta2"]
        if name not in self._names:
            raise KeyError(name)
        return self.hyper.tolist()[self._names.index(name)]

    def __setitem__(self, name: str, value: Any) -> None:
        values = _apart({name: value}, self._names) if isinstance(name, str) else {repr(name): value}
        if not values.keys() <= set(self._names):
            raise ArgumentError(
                explain(
                    f"a parameter group has no {name!r}.", f"it has {', '.join(self._names)}.", 'group["lr"] = 0.01'
                )
            )
        checked = {key: require(key, number) for key, number in values.items()}
        with no_grad():
            for key, number in checked.items():
                self.hyper[self._names.index(key)] = number

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._names))

    def __len__(self) -> int:
        return 1 + len(self._names)


class Optimizer(ABC):
    """Base of all optimizers: parameter groups, their hyper-parameters, and the state dict.

    The parameters of a dtype move into one piece of memory: each is a view of it from then on, and what shared memory
    with a parameter before (a NumPy array, another parameter, a detached tensor) no longer does.

    Args:
        params: parameters, or dicts with "params" and hyper-parameters that differ from the rest.
        defaults: hyper-parameters of every group that does not say otherwise.

    Raises:
        ArgumentError: no parameters, a parameter named twice, or a hyper-parameter out of range.
        GraphError: a tensor that an operation made.
        DTypeError: something that is no tensor.
    """

    hyper: ClassVar[tuple[str, ...]]  # the hyper-parameters, in the order in which they lie in a group's array
    slots: ClassVar[tuple[str, ...]] = ()  # the names of the arrays that each parameter has as state, PyTorch's
    takes_groups: ClassVar[bool] = True  # whether there may be several
    settings: dict[str, Any]  # what is fixed when the optimizer is built

    @abstractmethod
    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._defaults = {name: require(name, value) for name, value in _apart(defaults, self.hyper).items()}
        self.param_groups: list[ParamGroup] = []
        if isinstance(params, Tensor):
            raise DTypeError(
                explain(
                    f"{type(self).__name__} got one tensor.",
                    "it takes an iterable of parameters.",
                    f"{type(self).__name__}([parameter], lr=...)",
                )
            )
        if hasattr(params, "parameters"):
            raise DTypeError(
                explain(
                    f"{type(self).__name__} got a {type(params).__name__}.",
                    "it takes an iterable of parameters.",
                    f"{type(self).__name__}(model.parameters(), lr=...)",
                )
            )
        if not hasattr(params, "__iter__") or isinstance(params, type):
            name = type(self).__name__
            raise wrong_kind(
                name, "params", params, "it takes an iterable of parameters.", f"{name}(model.parameters())"
            )
        given = list(params)
        groups = given if given and all(isinstance(g, dict) for g in given) else [{"params": given}]
        if len(groups) > 1:
            self._refuse_groups()
        checked = [self._checked_group(group) for group in groups]
        self._refuse_duplicates([p for members, _ in checked for p in members])
        self.param_groups = [ParamGroup(self, members, values) for members, values in checked]

    @abstractmethod
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update the parameters; with a closure, which computes the loss and its gradients, return the loss."""

    @abstractmethod
    def _entries(self) -> dict[int, dict[str, Any]]:
        """A copy of the state by parameter number."""

    @abstractmethod
    def _misfits_of_entries(self, state: Mapping[Any, Any]) -> Iterator[str]:
        """What is wrong with a state for these parameters."""

    @abstractmethod
    def _load_entries(self, state: Mapping[Any, Any]) -> None:
        """Take over a state that fits."""

    @final
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters; with set_to_none=False, fill those there are with zeros."""
        set_to_none = flag("zero_grad", "set_to_none", set_to_none)
        for group in self.param_groups:
            for p in group.params:
                if (node := p._node) is not None and node.grad is not None:
                    node.grad = None if set_to_none else zeros_like(node.grad)

    @final
    def add_param_group(self, group: dict[str, Any]) -> None:
        """Train further parameters, with hyper-parameters of their own where the dict names any."""
        self._refuse_groups()
        members, values = self._checked_group(group)
        self._refuse_duplicates([*(p for g in self.param_groups for p in g.params), *members])
        self.param_groups.append(ParamGroup(self, members, values))

    @property
    def lr(self) -> float:
        """Learning rate of the first group; setting it sets that of all groups."""
        return cast(float, self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    # ------------------------------------------------------------ checks
    def _checked_group(self, group: Any) -> tuple[list[Tensor], dict[str, float]]:
        name = type(self).__name__
        if not isinstance(group, dict) or "params" not in group:
            raise ArgumentError(
                explain(
                    f"{name} got a parameter group without parameters.",
                    'a group is a dict with "params".',
                    '{"params": [w], "lr": 0.1}',
                )
            )
        given = group["params"]
        if not hasattr(given, "__iter__") or isinstance(given, type):
            reason = "a group names its parameters in an iterable."
            raise wrong_kind(name, "params", given, reason, '{"params": [w], "lr": 0.1}')
        params = [given] if isinstance(given, Tensor) else list(given)
        if not params:
            raise ArgumentError(
                explain(
                    f"{name} got no parameters.",
                    "there is nothing to train; an iterator may have been used up.",
                    f"{name}(model.parameters(), lr={self._defaults['lr']})",
                )
            )
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                fix = (
                    f"{name}([p for _, p in model.named_parameters()])"
                    if isinstance(p, tuple)
                    else f"{name}(model.parameters())"
                )
                raise DTypeError(
                    explain(f"{name} got a {type(p).__name__} as parameter {i}.", "parameters are tensors.", fix)
                )
            if not p.is_leaf:
                raise GraphError(
                    explain(
                        f"parameter {i} of {name} was made by an operation.",
                        "only a leaf can be updated in place and collects a gradient.",
                        "w = gf.Parameter(initial_values) and train that",
                    )
                )
            if p.dtype.kind != "f":
                raise DTypeError(
                    explain(
                        f"parameter {i} of {name} has dtype {p.dtype}.",
                        "only real numbers are trained.",
                        "p.astype(gf.float32)",
                    )
                )
        group = _apart(group, self.hyper)
        wrong = set(group) - {"params", *self.hyper}
        if wrong:
            raise ArgumentError(
                explain(
                    f"{name} got a group with {sorted(wrong)}.",
                    f"a group may set {', '.join(self.hyper)}.",
                    '{"params": [w], "lr": 0.1}',
                )
            )
        values = {name: require(name, group.get(name, value)) for name, value in self._defaults.items()}
        return params, values

    def _refuse_groups(self) -> None:
        if not self.takes_groups:
            raise ArgumentError(
                explain(
                    f"a second parameter group of {type(self).__name__}.",
                    "it makes one step for all parameters together.",
                    f"{type(self).__name__}([*model.parameters(), *more])",
                )
            )

    def _refuse_duplicates(self, params: list[Tensor]) -> None:
        seen: dict[int, int] = {}
        for i, p in enumerate(params):
            if id(p) in seen:
                raise ArgumentError(
                    explain(
                        f"{type(self).__name__} got one parameter twice, as number {seen[id(p)]} and {i}.",
                        "it would be updated twice in every step.",
                        f"{type(self).__name__}(model.parameters()) lists tied parameters once",
                    )
                )
            seen[id(p)] = i

    # ------------------------------------------------------------ state
    @final
    def state_dict(self) -> dict[str, Any]:
        """A copy of the state, in PyTorch's form: per parameter number its step and moments, per group its numbers."""
        groups = []
        number = 0
        for group in self.param_groups:
            values = _together({name: group[name] for name in self.hyper})
            numbers = list(range(number, number + len(group.params)))
            number += len(group.params)
            groups.append({**values, **self.settings, "params": numbers})
        with no_grad():
            return {"state": self._entries(), "param_groups": groups}

    @final
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave; everything is checked first, and on an error nothing is changed.

        Raises:
            StateDictError: groups, parameters or shapes that do not match, all of them named.
        """
        wrong = self._misfits(state_dict)
        if wrong:
            raise StateDictError(
                explain(
                    f"this state does not fit {type(self).__name__}: {'; '.join(wrong)}.",
                    "state is loaded by parameter number and shape; nothing was loaded.",
                    "build the optimizer over the same parameters in the same order",
                )
            )
        with no_grad():
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
                for name, value in _apart(saved, self.hyper).items():
                    if name in self.hyper:
                        group[name] = value
            self._load_entries(state_dict["state"])

    @property
    def _params(self) -> list[Tensor]:
        """All parameters, in the order of their numbers."""
        return [p for group in self.param_groups for p in group.params]

    def _misfits(self, state_dict: Any) -> list[str]:
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            return ['it has no "state" and "param_groups"']
        state, saved = state_dict["state"], state_dict["param_groups"]
        if not isinstance(state, Mapping):
            return [f'its "state" is a {type(state).__name__} and no dict']
        if not isinstance(saved, list | tuple) or not all(isinstance(group, Mapping) for group in saved):
            return ['its "param_groups" is no list of dicts']
        if len(saved) != len(self.param_groups):
            return [f"it has {len(saved)} parameter groups, the optimizer {len(self.param_groups)}"]
        wrong = []
        for i, (group, other) in enumerate(zip(self.param_groups, saved, strict=True)):
            given = other.get("params", ())
            if not isinstance(given, list | tuple):
                wrong.append(f'"params" of group {i} is a {type(given).__name__} and no list')
            elif len(group.params) != len(given):
                wrong.append(f"group {i} has {len(given)} parameters, the optimizer's {len(group.params)}")
            wrong += self._wrong_numbers(other)
        params = self._params
        for key in state:
            if not str(key).isdecimal() or int(key) >= len(params):
                wrong.append(f"it has parameter {key} of {len(params)}")
        return [*wrong, *self._misfits_of_entries(state)]

    def _wrong_numbers(self, group: Mapping[str, Any]) -> Iterator[str]:
        try:
            for name, value in _apart(group, self.hyper).items():
                if name in self.hyper:
                    require(name, value)
        except ArgumentError as error:
            yield str(error).split(".\n")[0]
        for name, setting in self.settings.items():
            given = group.get(name, setting)
            is_flag = isinstance(setting, bool) and isinstance(given, bool | int | np.bool_)
            if given is not setting and not (is_flag and bool(given) == setting) and not _same_text(given, setting):
                yield f"it has {name}={shown(given)}, the optimizer {name}={setting}"

    def __repr__(self) -> str:
        groups = [", ".join(f"{name}={group[name]:g}" for name in self.hyper) for group in self.param_groups]
        return f"{type(self).__name__}({'; '.join(groups)})"


class FirstOrder(Optimizer):
    """Base of the optimizers that are an update rule, applied to every parameter that has a gradient.

    The rule is a primitive of flat buffers, so a tracer writes it down like any other and a backend may fuse it.
    """

    rule: ClassVar[str]  # the primitive that updates (parameters, *slots, steps, hyper, *gradients)

    @final
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; with a closure, compute the loss by it first and return it."""
        if closure is not None and not callable(closure):
            reason = "a closure computes the loss and its gradients, and returns the loss."
            raise wrong_kind("step", "closure", closure, reason, "loss.backward(), then optimizer.step()")
        loss = None if closure is None else closure()
        update = getattr(OPS, self.rule)
        for group in self.param_groups:
            for buffer in group.buffers:
                grads, runs = buffer.gradients()
                if len(runs) == 1:
                    update(*runs[0].operands, *grads, **runs[0].settings)
                    continue
                at = 0
                for run in runs:
                    update(*run.operands, *grads[at : at + run.count], **run.settings)
                    at += run.count
        return loss

    @final
    def _entries(self) -> dict[int, dict[str, Any]]:
        entries: dict[int, dict[str, Any]] = {}
        for numbers, buffer in self._buffers():
            for i, number in enumerate(numbers):
                entry = entries[number] = {"step": buffer.steps[i].copy()}
                for name, slot in zip(self.slots, buffer.slots, strict=True):
                    entry[name] = _piece(buffer, slot, i).copy()
        return dict(sorted(entries.items()))

    @final
    def _load_entries(self, state: Mapping[Any, Any]) -> None:
        for numbers, buffer in self._buffers():
            for i, number in enumerate(numbers):
                entry = entry_of(state, number)
                buffer.steps[i] = _steps(entry)
                for name, slot in zip(self.slots, buffer.slots, strict=True):
                    value = entry.get(name, 0.0)
                    if not isinstance(value, Tensor):  # float16 comes in, though gradflow has none
                        value = np.asarray(value).astype(slot.dtype)
                    _piece(buffer, slot, i)[...] = make_tensor(value, backend=slot.backend)
            buffer.runs = {}

    def _buffers(self) -> Iterator[tuple[list[int], _Buffer]]:
        """Every buffer, with the numbers of its parameters."""
        numbers = {id(p): i for i, p in enumerate(self._params)}
        for group in self.param_groups:
            for buffer in group.buffers:
                yield [numbers[id(p)] for p in buffer.params], buffer

    @final
    def _misfits_of_entries(self, state: Mapping[Any, Any]) -> Iterator[str]:
        for i, p in enumerate(self._params):
            for what, how in self._wrong_state(state, i, p.shape):
                yield f"{what} of parameter {i}{how}"

    def _wrong_state(self, state: Mapping[Any, Any], number: int, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        try:
            entry = entry_of(state, number)
            if not 0 <= _steps(entry) < float("inf"):
                yield "step", f" is {entry['step']}"
        except (AttributeError, TypeError, ValueError):
            yield "the state", " is none"
            return
        for name in dict.fromkeys([*entry, *(self.slots if entry else ())]):
            if name not in (*self.slots, "step"):
                yield name, " is none of the optimizer's"
            elif name not in entry:
                yield name, " is missing"
            elif name != "step" and np.shape(entry[name]) != shape:
                yield name, f" has shape {np.shape(entry[name])}, not {shape}"
            elif name != "step" and np.asarray(entry[name]).dtype.kind not in "iuf":
                yield name, f" has dtype {np.asarray(entry[name]).dtype}"


def _same_text(given: Any, setting: Any) -> bool:
    return isinstance(setting, str) and isinstance(given, str) and given == setting


def entry_of(state: Mapping[Any, Any], number: int) -> dict[str, Any]:
    """The state of a parameter, whose number may have become text; PyTorch has None for a buffer not yet there."""
    entry = state.get(number, state.get(str(number), {}))
    return {name: value for name, value in entry.items() if value is not None}


def _steps(entry: dict[str, Any]) -> float:
    """How many steps a parameter has made; PyTorch's SGD does not count, but where it has a velocity it has begun."""
    return float(entry.get("step", 1.0 if entry else 0.0))


def _apart(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Hyper-parameters one by one: PyTorch's `betas` are `beta1` and `beta2` here."""
    apart = dict(values)
    if "beta1" in names and "betas" in apart:
        betas = apart.pop("betas")
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ArgumentError(explain(f"betas={betas!r}.", "there are two, β₁ and β₂.", "betas=(0.9, 0.999)"))
        apart["beta1"], apart["beta2"] = betas
    return apart


def _together(values: dict[str, float]) -> dict[str, Any]:
    """Hyper-parameters as PyTorch writes them."""
    together: dict[str, Any] = dict(values)
    if "beta1" in together:
        together["betas"] = together.pop("beta1"), together.pop("beta2")
    return together


def _piece(buffer: _Buffer, slot: Tensor, i: int) -> Tensor:
    """The part of a state array that belongs to parameter i, in the parameter's shape."""
    shape, turn = buffer.params[i].shape, buffer.turned[i]
    view = slot[buffer.starts[i] : buffer.ends[i]].reshape(shape[::-1] if turn else shape)
    return view.mT if turn else view


_COUNTS = {"max_iter": 20, "max_eval": 25, "history_size": 100}
_TYPICAL = {"lr": 1e-3, "momentum": 0.9, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-4}


def require(name: str, value: Any) -> float:
    """The value of a hyper-parameter as a number: below 1 for a β, whole for a count, ≥ 0 except for dampening.

    Raises:
        ArgumentError: anything else.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if name in _COUNTS and not (1 <= number < 2**53 and number.is_integer()):
        raise ArgumentError(
            explain(f"{name}={shown(value)}.", f"{name} is a positive integer.", f"{name}={_COUNTS[name]}")
        )
    low, high = (-float("inf") if name == "dampening" else 0.0), (1.0 if name.startswith("beta") else float("inf"))
    if not low <= number < high:
        allowed = "a number" if low < 0 else f"in [0, {high:g})" if high == 1 else "at least 0"
        raise ArgumentError(
            explain(f"{name}={shown(value)}.", f"{name} is {allowed}.", f"{name}={_TYPICAL.get(name, low)}")
        )
    return number
