"""Arguments and results: what is handed to a program and back, checked and put together by generated code.

Tensors and NumPy arrays are dynamic, and a program gets their arrays; everything else is part of the signature, simple
values by value, containers by structure, other objects by identity.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gradflow import tape
from gradflow.compiler.recording import Recording
from gradflow.compiler.surroundings import SIMPLE
from gradflow.errors import TracedValueError, explain
from gradflow.ops.creation import DTYPES, make_tensor
from gradflow.tape import Leaf, Node
from gradflow.tensor import Tensor, wrap


class Signature:
    """The arguments of one call, as the source of a check for the next ones and as values to record with.

    Attributes:
        lines: statements that return NO from a function of (args, kwargs) unless they fit; names in `scope`.
        scope: the constants that the lines name.
        tensors: what stands for the dynamic arguments while recording.
        arrays: for each of them the variable in `lines` that holds its array.
        leaves: for each argument that is a leaf, what stands for it and the variable that holds its Tensor.
        nodes: the variables that hold Tensors which require grad.
        objects: what was taken by identity, with a path.
        references: weak ones, to those of them that take such; `on_death` is called when one goes.
        text: in the user's words.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reachable: Iterable[int],
        on_death: Callable[[Any], None],
    ) -> None:
        self.references: list[weakref.ref[Any]] = []
        self._on_death = on_death
        self.lines: list[str] = []
        self.scope: dict[str, Any] = {"Tensor": Tensor, "Node": Node, "Leaf": Leaf, "ndarray": np.ndarray}
        self.tensors: list[Tensor] = []
        self.arrays: list[str] = []
        self.gradients: list[Tensor] = []
        self.leaves: list[tuple[Leaf, str]] = []
        self.nodes: list[str] = []
        self.objects: list[tuple[Any, str]] = []
        self._given: dict[int, tuple[Any, str]] = {}
        self._with_gradient: list[str] = []
        self._containers: list[tuple[str, Any, Any]] = []
        self._reachable = set(reachable)
        shown: list[str] = []
        self.lines.append(f"if len(args) != {len(args)} or {self._keys('kwargs', kwargs)}: return NO")
        if args:
            self.lines.append(f"{''.join(f'a{i}, ' for i in range(len(args)))} = args")
        self.args = tuple(self._take(value, f"a{i}", shown) for i, value in enumerate(args))
        self.kwargs = {key: self._take(value, f"kwargs[{key!r}]", shown) for key, value in kwargs.items()}
        for i, (_, one) in enumerate(self.leaves):
            for _, other in self.leaves[:i]:
                self._refuse_unless(f"{one} is not {other}")
        self.text = ", ".join(shown)

    def changed_container(self) -> str:
        """The type of a container among the arguments that the function has changed, or an empty text."""
        for _, made, before in self._containers:
            now = list(made.items()) if isinstance(made, dict) else made
            flat, was = [
                [x for item in items for x in (item if isinstance(made, dict) else (item,))] for items in (now, before)
            ]
            if len(flat) != len(was) or any(a is not b for a, b in zip(flat, was, strict=True)):
                return type(made).__name__
        return ""

    def release(self) -> None:
        """Let go of the arguments and of what stood for them."""
        self.args, self.kwargs = (), {}
        self._given.clear()
        self._containers.clear()
        self.tensors.clear()
        self.gradients.clear()
        self.objects.clear()

    def source_of_gradients(self) -> list[str]:
        """Expressions of the gradients that leaves among the arguments come with."""
        return [f"{name}._node.grad._data" for name in self._with_gradient]

    def _constant(self, value: Any) -> str:
        name = f"k{len(self.scope)}"
        self.scope[name] = value
        return name

    def _keys(self, expression: str, value: dict[Any, Any]) -> str:
        if not value:
            return expression
        return f"[*{expression}] != {self._constant(list(value))}"

    def _local(self, value: Any, expression: str) -> str:
        name = f"x{len(self._given)}_{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        return name

    def _refuse_unless(self, condition: str) -> None:
        self.lines.append(f"if not ({condition}): return NO")

    # ------------------------------------------------------------ by kinds
    def _take(self, value: Any, expression: str, shown: list[str]) -> Any:
        kind = type(value)
        if id(value) in self._given and not (kind in SIMPLE or isinstance(value, np.generic)):
            made, first = self._given[id(value)]
            self._refuse_unless(f"{expression} is {first}")
            shown.append("the same")
            return made
        if kind in SIMPLE:
            return self._take_simple(value, expression, shown)
        name = self._local(value, expression)
        made = self._take_other(value, name, shown)
        self._given[id(value)] = made, name
        return made

    def _take_other(self, value: Any, name: str, shown: list[str]) -> Any:
        kind = type(value)
        if kind is Tensor and id(value) not in self._reachable and not getattr(value._node, "hooks", None):
            return self._take_tensor(value, name, shown)
        if kind is np.ndarray and value.dtype.isnative and value.dtype.name in DTYPES:
            return self._take_array(value, name, shown)
        if kind is dict:
            self._refuse_unless(f"type({name}) is dict and not ({self._keys(name, value) if value else name})")
            taken = {key: self._take(item, f"{name}[{self._constant(key)}]", shown) for key, item in value.items()}
            self._containers.append((name, taken, list(taken.items())))
            return taken
        if kind in (tuple, list) or isinstance(value, tuple) and hasattr(kind, "_fields"):
            self._refuse_unless(f"type({name}) is {self._constant(kind)} and len({name}) == {len(value)}")
            items = [self._take(item, f"{name}[{i}]", shown) for i, item in enumerate(value)]
            if kind is list:
                self._containers.append((name, items, items.copy()))
                return items
            return kind(*items) if hasattr(kind, "_fields") else kind(items)
        if _is_record(value):
            self._refuse_unless(f"type({name}) is {self._constant(kind)}")
            names = [field.name for field in dataclasses.fields(value)]
            taken = {f: self._take(getattr(value, f), f"{name}.{f}", shown) for f in names}
            made = _remade(value, taken)
            if hasattr(made, "__dict__"):
                self._containers.append((name, vars(made), list(vars(made).items())))
            return made
        if isinstance(value, np.generic):
            constant = self._constant(value)
            self._refuse_unless(f"type({name}) is {self._constant(kind)} and repr({name}) == repr({constant})")
            shown.append(repr(value))
            return value
        return self._take_object(value, name, shown)

    def _take_simple(self, value: Any, expression: str, shown: list[str]) -> Any:
        shown.append(repr(value))
        if value is None or type(value) is bool:
            self._refuse_unless(f"{expression} is {value!r}")
            return value
        constant = self._constant(value)
        equal = f"{expression} == {constant}" if value == value and value else f"repr({expression}) == repr({constant})"
        self._refuse_unless(f"type({expression}) is {self._constant(type(value))} and {equal}")
        return value

    def _take_object(self, value: Any, name: str, shown: list[str]) -> Any:
        try:
            self.references.append(weakref.ref(value, self._on_death))
            self._refuse_unless(f"{self._constant(self.references[-1])}() is {name}")
        except TypeError:
            self._refuse_unless(f"{name} is {self._constant(value)}")
        self.objects.append((value, f"<{type(value).__name__}>"))
        shown.append(f"this {type(value).__name__}")
        return value

    def _take_tensor(self, value: Tensor, name: str, shown: list[str]) -> Tensor:
        array, node = f"{name}_data", value._node
        xp, dtype = self._constant(value._xp), self._constant(value.dtype)
        self.lines += [f"if type({name}) is not Tensor: return NO", f"{array} = {name}._data"]
        self.lines.append(
            f"if {name}._xp is not {xp} or {array}.dtype is not {dtype} or {array}.shape != {value.shape}: return NO"
        )
        made = wrap(value._xp.alias(value._data), value._xp)
        shown.append(f"{value.dtype}{list(value.shape)}{'' if node is None else ' requires grad'}")
        if node is None:
            self.lines.append(f"if {name}._node is not None: return NO")
        elif type(node) is Leaf:
            without = "is None" if node.grad is None else "is not None"
            self._refuse_unless(f"type({name}._node) is Leaf and {name}._node.grad {without}")
            self._refuse_unless(f"not getattr({name}._node, 'hooks', None)")
            made.requires_grad_()
            if node.grad is not None:
                made._node.grad = wrap(value._xp.alias(node.grad._data), value._xp)  # type: ignore[union-attr]
                self.gradients.append(made._node.grad)  # type: ignore[union-attr]
                self._with_gradient.append(name)
            self.leaves.append((made._node, name))  # type: ignore[arg-type]
            self.nodes.append(name)
        else:
            self._refuse_unless(f"type({name}._node) is Node")
            made._node = tape.edge_node(value.shape, value.dtype, (node,))
            self.nodes.append(name)
        self.tensors.append(made)
        self.arrays.append(array)
        return made

    def _take_array(self, value: np.ndarray, name: str, shown: list[str]) -> Tensor:
        made = make_tensor(value, copy=None)
        dtype = self._constant(value.dtype)
        self._refuse_unless(f"type({name}) is ndarray and {name}.dtype == {dtype} and {name}.shape == {value.shape}")
        shown.append(f"array {value.dtype}{list(value.shape)}")
        if made._data is value:
            made._data = made._xp.alias(value)
            self.arrays.append(name)
        else:  # another library's memory, or a dtype object that is not the usual one
            convert = self._constant(lambda array: make_tensor(array, copy=None)._data)
            self.lines.append(f"{name}_data = {convert}({name})")
            self.arrays.append(f"{name}_data")
        self.tensors.append(made)
        return made


def as_recorded(value: Any) -> Any:
    """An argument as a compiled function gets it: NumPy arrays as Tensors, wherever they stand in containers.

    >>> from gradflow.compiler.signature import as_recorded
    >>> as_recorded({"x": [np.ones(2)], "k": 3})
    {'x': [tensor([1., 1.], dtype=float64)], 'k': 3}
    """
    kind = type(value)
    if kind is np.ndarray and value.dtype.isnative and value.dtype.name in DTYPES:
        return make_tensor(value, copy=None)
    if kind is dict:
        return {key: as_recorded(item) for key, item in value.items()}
    if kind in (tuple, list) or isinstance(value, tuple) and hasattr(kind, "_fields"):
        items = [as_recorded(item) for item in value]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    if _is_record(value):
        return _remade(value, {f.name: as_recorded(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def _is_record(value: Any) -> bool:
    """Whether a value is a dataclass of data, to be looked into."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and not _is_callable(value)


def _is_callable(value: Any) -> bool:
    return callable(value) or hasattr(value, "__dict__") and any(map(callable, vars(value).values()))


# ---------------------------------------------------------------- results
class Results:
    """What a function returned, as the source of the expression that puts it together again.

    Attributes:
        tensors: those that the program computes.
        expression: of `r`, the tuple of fresh arrays, and of the argument variables; names in `scope`.
        shared: statements before it.
        gradients: statements that hand out the gradients of arguments.
    """

    def __init__(self, out: Any, signature: Signature, recording: Recording, known: Callable[[Any], bool]) -> None:
        self.tensors: list[Tensor] = []
        self.scope: dict[str, Any] = {"Tensor": Tensor}
        self._signature, self._recording, self._known = signature, recording, known
        self._taken: dict[int, str] = {}
        self._arguments = {id(made): name for made, name in signature._given.values()}
        self.shared: list[str] = []
        self.expression = self._take(out, "the result")
        self.gradients = self._gradients()

    def take_tensors(self) -> list[Tensor]:
        """What the program computes, results and gradients of arguments; they are not held any longer."""
        taken, self.tensors = self.tensors, []
        return taken

    def _gradients(self) -> list[str]:
        """Statements that give the leaves among the arguments the gradients that the program computes."""
        entry = {id(t) for t in self._signature.gradients}
        lines = []
        for leaf, name in self._signature.leaves:
            final = leaf.grad
            if final is None and leaf in self._recording.leaves:
                lines.append(f"{name}._node.grad = None")
            elif final is not None and id(final) not in entry:
                self.scope["wrap"] = wrap
                lines.append(f"{name}._node.grad = wrap(r[{len(self.tensors)}], {name}._xp)")
                self.tensors.append(final)
        return [*lines, "structure.changed()"] if lines else []

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.scope)}"
        self.scope[name] = value
        return name

    def _take(self, value: Any, path: str) -> str:
        kind = type(value)
        if isinstance(value, Tensor):
            return self._take_tensor(value)
        if kind in SIMPLE:
            return self._constant(value)
        if kind is dict:
            items = (f"{self._constant(k)}: {self._take(v, f'{path}[{k!r}]')}" for k, v in value.items())
            return "{" + ", ".join(items) + "}"
        if kind in (tuple, list):
            inside = "".join(f"{self._take(item, f'{path}[{i}]')}, " for i, item in enumerate(value))
            return f"({inside})" if kind is tuple else f"[{inside}]"
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            inside = ", ".join(self._take(item, f"{path}.{f}") for f, item in zip(kind._fields, value, strict=True))
            return f"{self._constant(kind)}({inside})"
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and not self._known(value):
            fields = (
                f"{f.name!r}: {self._take(getattr(value, f.name), f'{path}.{f.name}')}"
                for f in dataclasses.fields(value)
            )
            self.scope["remade"] = _remade
            return f"remade({self._constant(value)}, {{{', '.join(fields)}}})"
        if kind is np.ndarray:
            return f"{self._constant(value.copy())}.copy()"
        if isinstance(value, np.generic | np.dtype | type | enum.Enum | slice | range) or self._known(value):
            return self._constant(value)
        if isinstance(value, types.FunctionType) and value.__closure__ is None:
            return self._constant(value)
        raise TracedValueError(
            explain(
                f"{path} of the compiled function is a {kind.__name__}.",
                "a program computes tensors; it cannot make this object anew, with other tensors in it, at every call.",
                "return tensors, in tuples, lists, dicts, named tuples or dataclasses",
            )
        )

    def _take_tensor(self, t: Tensor) -> str:
        if id(t) in self._arguments:
            return self._arguments[id(t)]
        if self._known(t):
            return self._constant(t)
        if id(t) in self._taken:
            return self._taken[id(t)]
        i = len(self.tensors)
        self.tensors.append(t)
        name = self._taken[id(t)] = f"t{i}"
        node = None
        if t._node is not None:  # one node for all calls, unless they bring nodes of their own
            hidden = [node for _, _, node in self._recording.met_so_far() if node is not None]
            node = tape.edge_node(t.shape, t.dtype, hidden)
        xp = self._constant(t._xp)
        self.shared.append(f"{name} = Tensor(); {name}._data = r[{i}]; {name}._xp = {xp}")
        self.shared.append(f"{name}._node = {self._constant(node)}")
        if node is not None and self._signature.nodes:
            self.scope["edge_node"] = tape.edge_node
            nodes = ", ".join(f"{argument}._node" for argument in self._signature.nodes)
            shape, dtype = self._constant(t.shape), self._constant(t.dtype)
            self.shared.append(f"{name}._node = edge_node({shape}, {dtype}, (*{self._constant(hidden)}, {nodes}))")
        return name


def _remade(value: Any, fields: dict[str, Any]) -> Any:
    made = copy.copy(value)
    for name, item in fields.items():
        object.__setattr__(made, name, item)
    return made
