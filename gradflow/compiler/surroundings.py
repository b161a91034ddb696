"""What a function can see: the Python objects it may reach, how they stood, and how they differ now.

A walk starts at the function and goes through its closure, the globals its code names, the objects and containers that
these hold, and the functions and classes of the user's code that it may call. Of a plain object and of a class only
the attributes count that this code names; of a Module all, as the library goes through them by itself. Installed
packages are taken not to change.
"""

from __future__ import annotations

import dis
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from gradflow.backend import Backend
from gradflow.errors import is_ours
from gradflow.primitive import Namespace, Primitive
from gradflow.tensor import Tensor

SIMPLE = frozenset([type(None), bool, int, float, complex, str, bytes])
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()

_FIXED = (Backend, Namespace, Primitive, np.ndarray, np.generic, np.dtype, slice, range, type(Ellipsis))
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_BY_NAME = {"getattr", "setattr", "delattr", "hasattr", "vars", "__dict__", "attrgetter"}


class Entry(NamedTuple):
    """One value in a place: `holder[key]` was `value`; `path` says it in the user's words."""

    holder: Mapping[Any, Any]
    key: Any
    value: Any
    path: str


class Change(NamedTuple):
    """What a place held and holds."""

    path: str
    name: str
    old: Any
    new: Any

    @property
    def is_first(self) -> bool:
        """Whether something was put where nothing was."""
        return self.old is MISSING or self.old is None

    def __str__(self) -> str:
        return f"{self.path} was {_short(self.old)} and is {_short(self.new)}"


class _Cell(Mapping[str, Any]):
    """A closure's variable as a place like any other."""

    def __init__(self, cell: types.CellType) -> None:
        self.cell = cell

    def __getitem__(self, key: str) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter(("cell_contents",))

    def __len__(self) -> int:
        return 1


class _Code(Mapping[str, Any]):
    """A function's code and defaults as places like any other: reloading a module exchanges them."""

    KEYS = ("__code__", "__defaults__", "__kwdefaults__")

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function

    def __getitem__(self, key: str) -> Any:
        return getattr(self.function, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.KEYS)

    def __len__(self) -> int:
        return len(self.KEYS)


class Surroundings:
    """The state of everything that some functions and objects can reach.

    Attributes:
        entries: single places, compared by identity (simple values by type and value).
        containers: lists, dicts, sets and the attributes of Modules, with shallow copies, compared as wholes.
        sizes: the attributes of plain objects and of classes, and how many there were.
        tensors: those met, by id, with a path.
        generators: NumPy's generators of random numbers.
        librarys: ids of the containers that hold attributes of the library's own objects.
    """

    def __init__(self, roots: Mapping[str, Any], is_module: Callable[[Any], bool]) -> None:
        self.entries: list[Entry] = []
        self.containers: list[tuple[str, Any, Any]] = []
        self.sizes: list[tuple[str, Mapping[str, Any], int]] = []
        self.tensors: dict[int, tuple[Tensor, str]] = {}
        self.generators: list[np.random.Generator] = []
        self._iterators: list[tuple[str, Any, str]] = []
        self.librarys: set[int] = set()
        self._attributes: set[int] = set()  # ids of the containers that are attributes of an object
        self._classes: dict[int, type] = {}  # id of an object's attributes -> its class
        self._is_module = is_module
        self._names: set[str] = {"training"}
        self._dynamic = False
        self._seen: dict[Any, Any] = {}
        self._objects: list[tuple[str, Any, Mapping[str, Any], set[str]]] = []  # whose attributes count if named
        self._loose: set[int] = set()  # attributes of the user's Modules: what is simple counts if the code names it
        self._codes: list[types.CodeType] = []
        self._todo: deque[tuple[Any, str]] = deque((value, path) for path, value in roots.items())
        self._walk()

    # ------------------------------------------------------------ the walk
    def _walk(self) -> None:
        while self._todo:
            while self._todo:
                self._visit(*self._todo.popleft())
            for path, what, attributes, taken in self._objects:  # code found since may name more of them
                names = attributes.keys() if self._dynamic and not isinstance(what, type | types.ModuleType) else ()
                for name in sorted((self._names & attributes.keys() | _special(what) | set(names)) - taken):
                    taken.add(name)
                    if name in attributes:
                        self._place(attributes, name, f"{path}.{name}")

    def _place(self, holder: Mapping[Any, Any], key: Any, path: str) -> None:
        value = holder[key]
        self.entries.append(Entry(holder, key, value, path))
        self._todo.append((value, path))

    def _visit(self, value: Any, path: str) -> None:
        kind = type(value)
        if kind in SIMPLE or isinstance(value, _FIXED) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value, path
            self._todo += [(hook, f"a hook of {path}") for hook in getattr(value._node, "hooks", {}).values()]
        elif (progress := _progress(value)) is not None:
            self._iterators.append((path, value, progress))
        elif isinstance(value, np.random.Generator):
            self.generators.append(value)
        elif isinstance(value, types.FunctionType):
            self._visit_function(value, path)
        elif isinstance(value, types.MethodType):
            self._todo += [(value.__self__, path.rpartition(".")[0] or path), (value.__func__, path)]
        elif isinstance(value, types.BuiltinMethodType):
            if not isinstance(value.__self__, types.ModuleType):
                self._todo.append((value.__self__, path))
        elif isinstance(value, partial):
            self._todo += [(value.func, path), (value.args, path), (value.keywords, path)]
        elif isinstance(value, staticmethod | classmethod):
            self._todo.append((value.__func__, path))
        elif isinstance(value, property):
            self._todo += [(f, path) for f in (value.fget, value.fset) if f is not None]
        elif isinstance(value, types.ModuleType):
            if _is_users(getattr(value, "__file__", None) or ""):
                self._objects.append((path, value, vars(value), set()))
        elif isinstance(value, type):
            self._visit_class(value)
        elif isinstance(value, tuple | frozenset):
            self._todo += [(item, f"{path}[{i}]") for i, item in enumerate(value)]
        elif isinstance(value, list | dict | set | deque):
            self._visit_container(value, path)
        else:
            self._visit_object(value, path)

    def _visit_container(self, value: Any, path: str) -> None:
        self.containers.append((path, value, value.copy()))
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        self._todo += [(item, f"{path}[{key!r}]") for key, item in pairs if type(item) not in SIMPLE]

    def _visit_object(self, value: Any, path: str) -> None:
        kind = type(value)
        if _is_librarys(kind) and (kind.__name__.startswith("_") or "_tells_changes" in vars(kind)):
            self._todo.append((getattr(value, "__wrapped__", None), path))
            return  # the structure version tells
        self._visit_class(kind)
        slots = [name for c in kind.__mro__ for name in _slots(c)]
        if slots and not _is_librarys(kind):
            held = _Slots(value, slots)
            self._objects.append((path, value, held, set()))
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict):
            return
        self._classes[id(attributes)] = kind
        if self._is_module(value) or _is_librarys(kind):
            self.containers.append((path, attributes, attributes.copy()))
            self._attributes.add(id(attributes))
            looked_into = {name for name, item in attributes.items() if self._matters(value, item)}
            self._todo += [(attributes[name], f"{path}.{name}") for name in attributes if name in looked_into]
            if _is_librarys(kind):
                self.librarys.add(id(attributes))
            else:
                self._loose.add(id(attributes))
                self._objects.append((path, value, attributes, looked_into))
        else:
            self.sizes.append((path, attributes, len(attributes)))
            self._objects.append((path, value, attributes, set()))

    def _matters(self, module: Any, item: Any) -> bool:
        """Whether to look into what a Module holds: not into a log, which neither it nor the library reads."""
        if not isinstance(item, list | dict | set | deque):
            return type(item) not in SIMPLE
        items = item.values() if isinstance(item, dict) else item
        return any(type(x) not in SIMPLE for x in items)

    def _visit_class(self, value: type) -> None:
        for c in value.__mro__:
            if id(c) in self._seen and c is not value:
                continue
            self._seen[id(c)] = c
            if isinstance(c.__module__, str) and _is_users_module(c.__module__):
                attributes = vars(c)
                self._objects.append((c.__qualname__, c, attributes, set()))
                self.sizes.append((c.__qualname__, attributes, len(attributes)))

    def _visit_function(self, f: types.FunctionType, path: str) -> None:
        if wrapped := vars(f).get("__wrapped__"):
            self._todo.append((wrapped, path))
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            if _is_users(f.__code__.co_filename):
                try:
                    self._place(_Cell(cell), "cell_contents", name)
                except KeyError:
                    continue  # not assigned yet
            else:
                self._todo += [(cell.cell_contents, name)] if _filled(cell) else []
        names = f.__code__.co_varnames[: f.__code__.co_argcount]
        self._todo += zip(reversed(f.__defaults__ or ()), reversed(names), strict=False)
        self._todo.append((f.__kwdefaults__, f"{path}.__kwdefaults__"))
        if not _is_users(f.__code__.co_filename):
            return
        for key in _Code.KEYS:
            if getattr(f, key) is not None:
                self.entries.append(Entry(_Code(f), key, getattr(f, key), f"{f.__qualname__}.{key}"))
        for code in _nested(f.__code__):
            self._codes.append(code)
            self._names.update(code.co_names, (c for c in code.co_consts if type(c) is str and c.isidentifier()))
        self._dynamic |= not _BY_NAME.isdisjoint(self._names)
        namespace = f.__globals__
        for name in sorted(_globals_of(f.__code__)):
            if name in namespace and (id(namespace), name) not in self._seen:
                self._seen[id(namespace), name] = None
                self._place(namespace, name, name)

    def reaches(self, value: Any) -> bool:
        """Whether the walk came to an object."""
        return self._seen.get(id(value)) is value

    def ordered(self) -> Iterator[dict[Any, Any]]:
        """The dicts whose order may matter though `==` ignores it: the user's own, and attributes that hold layers."""
        for _, live, _ in self.containers:
            if type(live) is dict and len(live) > 1:
                layers = sum(self._is_module(item) for item in live.values())
                if layers > 1 or id(live) not in self._attributes:
                    yield live

    # ------------------------------------------------------------ then and now
    def changes(self) -> Iterator[Change]:
        """What differs now."""
        for holder, key, value, path in self.entries:
            now = holder.get(key, MISSING)
            if not same(now, value):
                yield Change(path, _last_name(path), value, now)
        for path, live, copy in self.containers:
            for change in _differences(path, live, copy, id(live) in self._attributes):
                if id(live) not in self._loose or change.name in self._names or not _is_log(change):
                    yield self._by_default(change, live)
        for path, attributes, count in self.sizes:
            if len(attributes) != count:
                known = {e.key for e in self.entries if e.holder is attributes}
                for name in sorted((self._names & attributes.keys()) - known):
                    yield self._by_default(Change(f"{path}.{name}", name, MISSING, attributes[name]), attributes)

    def _by_default(self, change: Change, attributes: Any) -> Change:
        """A change of what was no attribute of the object itself: there was its class's."""
        if change.old is not MISSING or id(attributes) not in self._classes:
            return change
        return change._replace(old=getattr(self._classes[id(attributes)], change.name, MISSING))

    def consumed(self) -> Iterator[Change]:
        """The iterators that have moved on; somebody else may have moved them, so a check does not look at them."""
        for path, value, before in self._iterators:
            if (now := _progress(value)) != before:
                yield Change(path, _last_name(path), f"at {before}", f"at {now}")

    def refresh(self) -> None:
        """Take the present state, in which nothing that counts has changed, for the one to compare with."""
        self.entries = [e._replace(value=e.holder[e.key]) for e in self.entries]
        self.containers = [(path, live, live.copy()) for path, live, _ in self.containers]
        self.sizes = [(path, attributes, len(attributes)) for path, attributes, _ in self.sizes]

    def release(self) -> None:
        """Let go of the objects that were only passed on the way; `reaches` is answered no more."""
        self._seen.clear()
        self._objects.clear()
        self._iterators.clear()

    def lines_about(self, name: str) -> list[str]:
        """Where the user's code changes or uses something of this name, as "file:line"."""
        writing: list[str] = []
        using: list[str] = []
        for code in self._codes:
            line = code.co_firstlineno
            for instruction in dis.get_instructions(code):
                line = instruction.starts_line or line
                if instruction.argval == name and instruction.opname.startswith(("STORE", "DELETE", "LOAD")):
                    lines = using if instruction.opname.startswith("LOAD") else writing
                    lines.append(f"{code.co_filename}:{line}")
        return list(dict.fromkeys(writing or using))


class _Slots(Mapping[str, Any]):
    """The slots of an object as a mapping."""

    def __init__(self, value: Any, names: list[str]) -> None:
        self.value, self.names = value, names

    def __getitem__(self, key: str) -> Any:
        found = getattr(self.value, key, MISSING) if key in self.names else MISSING
        if found is MISSING:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.names if hasattr(self.value, name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def same(a: Any, b: Any) -> bool:
    """Whether two values are one object, or simple, of one type, and equal to the last bit.

    >>> from gradflow.compiler.surroundings import same
    >>> same(1000, 10 * 100), same(1, True), same(0.0, -0.0), same([], [])
    (True, False, False, False)
    """
    if a is b:
        return True
    return type(a) is type(b) and type(a) in SIMPLE and repr(a) == repr(b)


def _differences(path: str, live: Any, copy: Any, is_attributes: bool) -> Iterator[Change]:
    if isinstance(live, dict):
        for key in dict.fromkeys([*copy, *live]):
            old, new = copy.get(key, MISSING), live.get(key, MISSING)
            if not same(old, new):
                where = f"{path}.{key}" if is_attributes else f"{path}[{key!r}]"
                yield Change(where, key if is_attributes else _last_name(path), old, new)
        if list(live) != list(copy):
            yield Change(path, _last_name(path), "in one order", "in another")
    elif isinstance(live, set):
        if live != copy:
            yield Change(path, _last_name(path), copy, live)
    elif len(live) != len(copy):
        yield Change(path, _last_name(path), f"of length {len(copy)}", f"of length {len(live)}")
    else:
        for i, (new, old) in enumerate(zip(live, copy, strict=True)):
            if not same(new, old):
                yield Change(f"{path}[{i}]", _last_name(path), old, new)


def _is_log(change: Change) -> bool:
    """Whether it concerns numbers, texts and containers of such alone."""
    flat = [x for value in (change.old, change.new) for x in (value if isinstance(value, list | deque) else [value])]
    return all(type(x) in SIMPLE or x is MISSING for x in flat)


def _last_name(path: str) -> str:
    return path.partition("[")[0].rpartition(".")[2]


def _short(value: Any) -> str:
    if type(value) in SIMPLE or value is MISSING:
        text = repr(value) if type(value) is not str else value
        return text if len(text) < 60 else f"{text[:57]}..."
    return f"a {type(value).__name__}"


def _progress(value: Any) -> str | None:
    """How far an iterator has come, as far as it tells; None for anything else."""
    if isinstance(value, types.GeneratorType):
        return f"line {value.gi_frame.f_lineno}.{value.gi_frame.f_lasti}" if value.gi_frame is not None else "its end"
    kind = type(value)
    if not hasattr(kind, "__next__") or kind.__module__ not in ("builtins", "itertools"):
        return None
    return f"{value.__length_hint__()} from its end" if hasattr(kind, "__length_hint__") else repr(value)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


@cache
def _globals_of(code: types.CodeType) -> frozenset[str]:
    """The names that code, and code inside it, looks up as globals."""
    return frozenset(
        instruction.argval
        for inner in _nested(code)
        for instruction in dis.get_instructions(inner)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL")
    )


def _special(what: Any) -> set[str]:
    """The attributes of a class that are used without being named: `forward` by the library, operators by Python."""
    if not isinstance(what, type):
        return set()
    return {name for name, value in vars(what).items() if name == "forward" or _is_operator(name, value)}


def _is_operator(name: str, value: Any) -> bool:
    return name.startswith("__") and name != "__init__" and isinstance(value, types.FunctionType)


def _slots(c: type) -> tuple[str, ...]:
    names = vars(c).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(n for n in names if n not in ("__weakref__", "__dict__"))


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@cache
def _is_users(filename: str) -> bool:
    """Whether a file is the user's own, and not of gradflow or an installed package."""
    return not is_ours(filename) and not filename.startswith(_INSTALLED) and not filename.startswith("<frozen")


def _is_librarys(kind: type) -> bool:
    return str(kind.__module__).partition(".")[0] == "gradflow"


@cache
def _is_users_module(name: str) -> bool:
    module = sys.modules.get(name)
    if name in ("builtins", "gradflow") or name.startswith("gradflow."):
        return False
    return module is None or _is_users(getattr(module, "__file__", None) or "")
