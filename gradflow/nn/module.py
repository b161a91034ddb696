"""The module: a function with parameters, buffers and submodules, found wherever its attributes hold them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from types import GeneratorType, NoneType
from typing import Any, ClassVar, NamedTuple, Self, final

import numpy as np

from gradflow import structure
from gradflow.anomaly.report import calls_modules, name_modules
from gradflow.arguments import flag, wrong_kind
from gradflow.backend import Backend
from gradflow.errors import DTypeError, GradflowError, StateDictError, explain
from gradflow.ops.creation import DTYPES, check_dtype, tensor
from gradflow.tensor import Parameter, Tensor, no_grad


class Buffer(Tensor):
    """A Tensor that belongs to a module's state but is not trained, such as a running mean.

    Plain Tensors among a module's attributes are no part of its state, so that it may keep an intermediate result.
    Write new values into a buffer, ``self.mean[...] = mean`` or ``self.mean += step``: the assignment
    ``self.mean = mean`` puts a plain Tensor in its place.

    Args:
        data: a Tensor (its memory is shared) or anything `gf.tensor` takes (copied).
        persistent: whether `Module.state_dict` has it.

    >>> class Counter(gf.nn.Module):
    ...     def __init__(self):
    ...         self.calls = gf.nn.Buffer(0)
    ...     def forward(self, x):
    ...         self.calls += 1
    ...         return x
    >>> counter = Counter()
    >>> _ = counter(counter(gf.ones(3)))
    >>> counter.state_dict()
    {'calls': tensor(2)}
    """

    __slots__ = ()
    persistent: ClassVar[bool] = True

    def __new__(cls, data: Any, *, persistent: bool = True) -> Self:  # noqa: D102
        return object.__new__(cls if flag("Buffer", "persistent", persistent) else _TransientBuffer)  # type: ignore[return-value]

    def __init__(self, data: Any, *, persistent: bool = True) -> None:
        source = data if isinstance(data, Tensor) else tensor(data)
        self._data, self._xp, self._node = source._data, source._xp, None


class _TransientBuffer(Buffer):
    """A buffer that is not saved. A class, not a flag, because copies and pickles of a Tensor keep its class."""

    __slots__ = ()
    persistent = False


class LoadResult(NamedTuple):
    """What `Module.load_state_dict` left alone when it was not strict; an entry that did not fit is in both."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A function with parameters: the base class of layers, networks and losses.

    A subclass defines `forward`. Whatever it keeps in its attributes is found, also in lists, tuples and dicts, nested
    as one likes: each `Parameter` is trained, each `Buffer` is saved, each Module is a submodule. There is nothing to
    register and no ``super().__init__()`` to call. Names are attribute names, indices and keys joined by dots, as in
    ``layers.0.weight``. Something held twice counts once in `parameters`, and is saved under both names.

    A module is trained or evaluated according to `training`, which `train` and `eval` set in the whole tree.

    >>> class MLP(gf.nn.Module):
    ...     def __init__(self, n1=10, nIn=2, nOut=1):
    ...         self.l1 = gf.nn.Linear(nIn, n1)
    ...         self.l2 = gf.nn.Linear(n1, nOut)
    ...     def forward(self, x):
    ...         h = gf.sigmoid(self.l1(x))
    ...         return self.l2(h)
    >>> model = MLP()
    >>> model(gf.zeros((5, 2))).shape
    (5, 1)
    >>> model
    MLP(
      (l1): Linear(in_features=2, out_features=10)
      (l2): Linear(in_features=10, out_features=1)
    )
    """

    training: bool = True

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's output; every concrete module defines it."""
        name = type(self).__name__
        raise DTypeError(
            explain(
                f"{name} has no forward().",
                "calling a module runs its forward method.",
                f"class {name}(nn.Module): def forward(self, x): return ...",
            )
        )

    @final
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`; an exception on its way out learns the path of the module it came from."""
        try:
            return self.forward(*args, **kwargs)
        except Exception as error:
            tell_where(self, error)
            raise

    # ------------------------------------------------------------ what it holds
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Iterate over (name, parameter), each parameter once.

        >>> [name for name, _ in gf.nn.Sequential(gf.nn.Linear(3, 2), gf.nn.ReLU()).named_parameters()]
        ['0.weight', '0.bias']
        """
        return ((slot.path, slot.value) for slot in slots(self) if isinstance(slot.value, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """Iterate over the parameters, each once."""
        return (slot.value for slot in slots(self) if isinstance(slot.value, Parameter))

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Iterate over (name, buffer), each buffer once."""
        return ((slot.path, slot.value) for slot in slots(self) if isinstance(slot.value, Buffer))

    def buffers(self) -> Iterator[Buffer]:
        """Iterate over the buffers, each once."""
        return (slot.value for slot in slots(self) if isinstance(slot.value, Buffer))

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Iterate over (name, module) for the module itself, named ``""``, and all modules below it, each once."""
        yield "", self
        yield from ((slot.path, slot.value) for slot in slots(self) if isinstance(slot.value, Module))

    def modules(self) -> Iterator[Module]:
        """Iterate over the module itself and all modules below it, each once."""
        return (module for _, module in Module.named_modules(self))

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Iterate over (name, module) for the submodules it holds itself, in lists, tuples and dicts or not."""
        return ((slot.path, slot.value) for slot in slots(self, below=False) if isinstance(slot.value, Module))

    def children(self) -> Iterator[Module]:
        """Iterate over the submodules it holds itself."""
        return (module for _, module in Module.named_children(self))

    def num_parameters(self) -> int:
        """Count the trained and frozen weights: the length of all parameters as one vector.

        >>> gf.nn.MLP([2, 10, 10, 1]).num_parameters()
        151
        """
        return sum(parameter.size for parameter in Module.parameters(self))

    # ------------------------------------------------------------ what is done to all of it
    def train(self, mode: bool = True) -> Self:
        """Set ``training`` here and in every module below, and return the module."""
        mode = flag("train", "mode", mode)
        for module in Module.modules(self):
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set ``training`` to False here and in every module below, and return the module.

        >>> gf.nn.Linear(3, 2).eval().training
        False
        """
        return Module.train(self, False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in Module.parameters(self):
            parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze all parameters (False) or have them trained (True), and return the module."""
        for parameter in Module.parameters(self):
            parameter.requires_grad_(requires_grad)
        return self

    def apply(self, function: Callable[[Module], object]) -> Self:
        """Call ``function`` on the module itself and then on every module below, and return the module."""
        if not callable(function):
            raise wrong_kind("apply", "function", function, "it is called with each module.", "model.apply(initialise)")
        for module in list(Module.modules(self)):
            function(module)
        return self

    def to(self, target: Any) -> Self:
        """Move all parameters and buffers to a backend, or give the floating-point ones another dtype; in place.

        The Parameters stay the same objects, so an optimizer that has them keeps them. Gradients move too, and hooks
        stay on.

        Args:
            target: a backend or its name, or float32 or float64 as a dtype.

        Raises:
            DTypeError: a dtype that is not floating-point.

        >>> gf.nn.Linear(3, 2).to(gf.float64).weight.dtype
        dtype('float64')
        """
        to_backend = isinstance(target, Backend) or (isinstance(target, str) and target not in DTYPES)
        if not to_backend and check_dtype(target).kind != "f":
            raise DTypeError(
                explain(f"a module cannot become {np.dtype(target)}.", "weights are real numbers.", "to(gf.float64)")
            )
        for slot in slots(self):
            held = slot.value
            if isinstance(held, Parameter | Buffer) and (to_backend or held.dtype.kind == "f"):
                grad, requires_grad = held.grad, held.requires_grad
                hooks = getattr(held._node, "hooks", None)
                moved = held.detach().to(target)
                held.requires_grad_(False)
                held._data, held._xp = moved._data, moved._xp
                held.requires_grad_(requires_grad)
                held.grad = None if grad is None else grad.detach().to(target)
                if held._node is not None and hooks is not None:
                    held._node.hooks = hooks
        structure.changed()
        return self

    # ------------------------------------------------------------ its state
    def state_dict(self) -> dict[str, Tensor]:
        """Return a snapshot: a copy of every parameter and persistent buffer by name.

        Names and shapes are those of the same architecture in PyTorch. A tied parameter is there under each of its
        names, as one and the same Tensor.

        >>> gf.nn.Linear(3, 2).state_dict().keys()
        dict_keys(['weight', 'bias'])
        """
        copies: dict[int, Tensor] = {}
        state = {}
        for name, held in _state(self).items():
            if id(held) not in copies:
                copies[id(held)] = held.detach().copy()
            state[name] = copies[id(held)]
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Write saved values into the parameters and persistent buffers, in place and in their dtypes.

        Everything is checked first: if anything is wrong nothing is loaded. A tied parameter may come under one of
        its names or under all of them.

        Args:
            state: name -> Tensor, NumPy array, or anything else with ``__array__`` (a PyTorch state dict will do).
            strict: False loads what fits and returns the names of the rest.

        Returns:
            ``(missing_keys, unexpected_keys)``: names that were not loaded, entries that were not used.

        Raises:
            StateDictError: missing, unexpected, misshapen or non-numeric entries, all of them named; or (whether strict
                or not) different values for one tied parameter.

        >>> model = gf.nn.Linear(2, 1)
        >>> model.load_state_dict({"weight": [[1.0, 2.0]], "bias": [0.5]})
        LoadResult(missing_keys=[], unexpected_keys=[])
        >>> model(gf.ones(2)).item()
        3.5
        """
        return _load(self, state, strict)

    @final
    def __repr__(self) -> str:
        tree = [(0, type(self).__name__, self)]
        depths = {"": 0}
        for slot in slots(self, every_name=True):
            if isinstance(slot.value, Module):
                depths[slot.path] = depths[slot.owner] + 1
                name = slot.path.removeprefix(f"{slot.owner}.")
                tree.append((depths[slot.path], f"({name}): {type(slot.value).__name__}", slot.value))
        lines = []
        for (depth, head, module), (next_depth, *_) in pairwise([*tree, (0, "", self)]):
            shown = [f"{k}={v!r}" for k, v in vars(module).items() if _is_setting(v) and k != "training"]
            settings = ", ".join(setting for setting in shown if not setting.startswith("_"))
            if next_depth > depth:
                lines += [f"{'  ' * depth}{head}(", *([f"{'  ' * next_depth}{settings}"] if settings else [])]
            else:
                lines += [
                    f"{'  ' * depth}{head}({settings})",
                    *("  " * d + ")" for d in range(depth - 1, next_depth - 1, -1)),
                ]
        return "\n".join(lines)


_SETTING = (bool, int, float, str)


def _is_setting(value: object) -> bool:
    """Whether an attribute is shown: a number, a flag, a text, or several integers, such as a shape."""
    return isinstance(value, _SETTING) or (isinstance(value, tuple) and all(type(n) is int for n in value))


# ---------------------------------------------------------------- the walk through a tree of modules
class Slot(NamedTuple):
    """A place that holds a Tensor or a Module.

    Attributes:
        path: its name from the root, such as ``layers.0.weight``.
        value: what is there.
        holder: the attributes, list, tuple or dict that it is an item of.
        key: under which key or index.
        owner: the path of the module whose attribute that is.
    """

    path: str
    value: Any
    holder: Any
    key: Any
    owner: str


def slots(root: Module, *, every_name: bool = False, below: bool = True) -> Iterator[Slot]:
    """Walk through everything that a module holds, in the order of PyTorch: of each module or container its parameters,
    its buffers, then what is nested in it.

    The walk does not recurse, so a deep tree is as good as a flat one. Modules that hold one another in a circle are no
    harm: each of them has one name.

    Args:
        root: where to begin; it is no slot itself.
        every_name: visit what is held in several places in each of them, not only in the first.
        below: whether to enter submodules.
    """
    entered = {id(root)}  # with every_name: what is open now
    circular: set[int] = set()
    stack: list[tuple[Any, Iterator[Slot]]] = [(root, _entries(root, "", ""))]
    while stack:
        node, entries = stack[-1]
        for slot in entries:
            value = slot.value
            if id(value) in entered and every_name:
                opened = [id(node) for node, _ in stack]
                circular.update(opened[opened.index(id(value)) :])
            if id(value) in entered or id(value) in circular:
                continue
            is_module = isinstance(value, Module)
            if is_module or isinstance(value, Tensor):
                yield slot
            if not every_name or not isinstance(value, Tensor):
                entered.add(id(value))
            if (is_module and below) or isinstance(value, _CONTAINERS):
                stack.append((value, _entries(value, slot.path, slot.path if is_module else slot.owner)))
                break
        else:
            stack.pop()
            if every_name:
                entered.discard(id(node))


_CONTAINERS = (list, tuple, dict)
_SEARCHED = (Tensor, Module, *_CONTAINERS)
_PLAIN = frozenset([bool, int, float, str, NoneType])  # told by type alone, since a vocabulary may have 100,000 of them
_ONE_SHOT = (GeneratorType, map, filter, zip)
_UNORDERED = (set, frozenset)


def _entries(node: Any, path: str, owner: str) -> Iterator[Slot]:
    holder = vars(node) if isinstance(node, Module) else node
    prefix = f"{path}." if path else ""
    parameters: list[Slot] = []
    others: list[Slot] = []
    nested: list[Slot] = []
    pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for key, value in [(key, value) for key, value in pairs if type(value) not in _PLAIN]:
        if isinstance(value, _SEARCHED):
            kind = parameters if isinstance(value, Parameter) else others if isinstance(value, Tensor) else nested
            kind.append(Slot(f"{prefix}{key}", value, holder, key, owner))
        elif isinstance(value, _ONE_SHOT) or (
            isinstance(value, _UNORDERED) and any(isinstance(item, Tensor | Module) for item in value)
        ):
            raise DTypeError(
                explain(
                    f"model.{prefix}{key} is a {type(value).__name__}, in which parameters cannot be found.",
                    "a set has no order to name them by, and a generator can be read only once.",
                    f"self.{key} = [...] with a list (or tuple, or dict)",
                )
            )
    return chain(parameters, others, nested)


# ---------------------------------------------------------------- where an exception came from
def label(module: Module) -> str:
    """Name a module by its class and, if it has them, its sizes.

    >>> gf.nn.module.label(gf.nn.Linear(128, 10))
    'Linear 128→10'
    """
    sizes = vars(module)
    if "in_features" in sizes and "out_features" in sizes:
        return f"{type(module).__name__} {sizes['in_features']}→{sizes['out_features']}"
    if "num_embeddings" in sizes and "embedding_dim" in sizes:
        return f"{type(module).__name__} {sizes['num_embeddings']}→{sizes['embedding_dim']}"
    return type(module).__name__


def _place_in(root: Module, module: Module) -> str | None:
    """The path of a module from a root that called it, with its label; None if the root does not hold it."""
    path = next((path for path, held in Module.named_modules(root) if held is module), None)
    return None if path is None else f"model.{path} ({label(module)})" if path else label(module)


def place(passed: Sequence[Module]) -> str:
    """Where the first of the modules is that a call went through, from the inside out: its path from the outermost one.

    >>> model = gf.nn.MLP([2, 3, 1])
    >>> gf.nn.module.place([model[0], model])
    'model.0 (Linear 2→3)'
    """
    return next(found for root in reversed(passed) if (found := _place_in(root, passed[0])) is not None)


calls_modules(Module.__call__.__code__, "self")
name_modules(place)


def tell_where(module: Module, error: Exception) -> None:
    """Write into an error which module it came from: before a message that begins with its label, else into a note.

    Each module that the error passes through, from the inside out, writes the path anew; what remains is the path from
    the outermost one. The error itself carries their list: the frames it went through would hold it in a cycle.
    """
    if isinstance(error, RecursionError):
        return  # there is no room on the stack for a search, and no one module to blame
    passed = vars(error).setdefault("_passed", [])
    passed.append(module)
    new = _place_in(module, passed[0])
    if new is None:
        return  # what the modules below wrote stays
    old = vars(error).get("_place", label(passed[0]))
    vars(error)["_place"] = new
    message = error.args[0] if error.args else None
    if isinstance(error, GradflowError) and isinstance(message, str) and message.startswith(f"{old} "):
        error.args = (new + message.removeprefix(old), *error.args[1:])
    else:
        error.__notes__ = [note for note in getattr(error, "__notes__", []) if note != f"in {old}"]
        error.add_note(f"in {new}")


# ---------------------------------------------------------------- the state dict
def _state(root: Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers by name, tied ones under every name."""
    state: dict[str, Tensor] = {}
    for slot in slots(root, every_name=True):
        held = slot.value
        is_state = isinstance(held, Parameter) or (isinstance(held, Buffer) and held.persistent)
        if is_state and state.setdefault(slot.path, held) is not held:
            raise StateDictError(
                explain(
                    f"two tensors of {type(root).__name__} are both named {slot.path!r}.",
                    "a name is made of attributes, keys and indices joined by dots.",
                    "use dict keys without dots, and not both 0 and '0'",
                )
            )
    return state


def _load(root: Module, state: Mapping[str, Any], strict: bool) -> LoadResult:
    if not isinstance(state, Mapping):
        raise DTypeError(
            explain(
                f"load_state_dict got a {type(state).__name__}.",
                "a state dict maps names to arrays.",
                "model.load_state_dict(gf.load(path))",
            )
        )
    strict = flag("load_state_dict", "strict", strict)
    held = _state(root)
    misfits: dict[str, str] = {}
    new: dict[int, tuple[str, Tensor]] = {}  # id of what is held -> the first of its names that came, the value
    conflicts = []
    for name, target in held.items():
        if name in state:
            value = _fitted(state[name], target)
            if isinstance(value, str):
                misfits[name] = value
            elif not _equal(value, new.setdefault(id(target), (name, value))[1]):
                conflicts.append(f"{name} differs from {new[id(target)][0]}, to which it is tied")
    missing = [name for name, target in held.items() if id(target) not in new and name not in misfits]
    unexpected = [str(name) for name in state if name not in held]
    if conflicts or (strict and (missing or unexpected or misfits)):
        raise _mismatch(root, held, missing, unexpected, misfits, conflicts)
    with no_grad():
        for target in {id(target): target for target in held.values() if id(target) in new}.values():
            target[...] = new[id(target)][1]
    return LoadResult([*missing, *misfits], [*unexpected, *misfits])


def _fitted(value: Any, target: Tensor) -> Tensor | str:
    """A copy of `value` as it can be written into `target`, or what is wrong with it."""
    if not isinstance(value, Tensor):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            return f"cannot be read as an array: {error}"
    if not np.can_cast(value.dtype, target.dtype, "same_kind"):
        return f"holds {value.dtype} where the model has {target.dtype}"
    if tuple(value.shape) != target.shape:
        return f"has shape {tuple(value.shape)} where the model has {target.shape}"
    return tensor(value.astype(target.dtype), backend=target.backend)  # float16 comes in, though gradflow has none


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


def _mismatch(
    root: Module,
    held: dict[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misfits: dict[str, str],
    conflicts: list[str],
) -> StateDictError:
    lines = [f"the state dict does not fit {type(root).__name__}; nothing was loaded."]
    lines += [f"  missing: {', '.join(missing)}"] if missing else []
    lines += [f"  unexpected: {', '.join(unexpected)}"] if unexpected else []
    lines += [f"  {name} {what}" for name, what in misfits.items()]
    lines += [f"  {what}" for what in conflicts]
    reason = "each parameter and persistent buffer needs one entry of its name and shape, and nothing may be left over."
    fix = "model.load_state_dict(state, strict=False) loads the entries that fit and returns the names of the others"
    prefixes = {name.removesuffix(own) for name in unexpected[:1] for own in missing if name.endswith(f".{own}")}
    if conflicts:
        fix = "tie them before saving, or load into a model in which they are two parameters"
    elif prefixes and all(name.startswith(prefix := min(prefixes, key=len)) for name in unexpected):
        fix = f"load_state_dict({{name.removeprefix({prefix!r}): value for name, value in state.items()}})"
    elif any(isinstance(held[name], Buffer) for name in missing):
        fix = "if a buffer was lost by an assignment, write into it instead: self.mean[...] = mean"
    return StateDictError(explain("\n".join(lines), reason, fix))
