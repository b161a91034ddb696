"""Array backends: what one offers, how plug-ins are found, and which one a new tensor gets.

A new tensor's backend is the first of these that is given: the ``backend=`` argument, the innermost ``with
use_backend()``, the last ``set_backend()``, the environment variable ``GRADFLOW_BACKEND``, ``numpy``.
"""

from __future__ import annotations

import functools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, final

from gradflow.arguments import integer
from gradflow.config import env_text
from gradflow.errors import ArgumentError, BackendUnavailableError, DTypeError, UnknownBackendError, explain

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import numpy as np

Array: TypeAlias = Any
"""A raw array of some backend; each library has its own type."""

GROUP = "gradflow.backends"
VARIABLE = "GRADFLOW_BACKEND"

# The backends that gradflow speaks of, best first (the order in which `auto` tries them), and the pip extra of each.
_KNOWN: dict[str, str | None] = {"cupy": "cuda12|cuda13", "numba": "numba", "numpy": None}


# -------------------------------------------------------------------------------------------- what a plug-in implements
class Backend(ABC):
    """One device of one array library, and the functions that compute on its arrays.

    Attributes:
        name: the entry point's name, such as ``"numpy"``.
        device: such as ``"cpu"`` or ``"cuda:0"``; `Plugin.create` takes it back.
        kernels: primitive name -> function on raw arrays.
        residual_kernels: primitive name -> function that returns (out, residual), used where a derivative is wanted.
        vjps: (primitive, argument) -> a first-order derivative faster than the primitive's own rule.
    """

    name: str
    device: str
    kernels: Mapping[str, Callable[..., Any]]
    residual_kernels: Mapping[str, Callable[..., Any]]
    vjps: Mapping[tuple[str, str], Callable[..., Any]]

    @abstractmethod
    def asarray(self, obj: Any, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        """Make this library's array of a number, a nested list or an array.

        Args:
            obj: the data.
            dtype: None keeps the data's own dtype.
            copy: True copies, None copies only if it must, False raises ValueError if it would have to.
        """

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the array's values as an ndarray, which shares memory with it where that is possible."""

    @abstractmethod
    def extent(self, array: Array) -> tuple[Any, int, int]:
        """Return (owner, low, high): the weakly referenceable owner of the memory, the bytes [low, high) touched."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that compute, by name."""

    @abstractmethod
    def num_threads(self) -> int:
        """Return the number of threads that a large operation uses."""

    @abstractmethod
    def code_generator(self) -> Any:
        """Return the `gradflow.compiler.generator.CodeGenerator` for these arrays; None if there is none."""

    @abstractmethod
    def set_num_threads(self, n: int | None) -> None:
        """Let large operations use at most n threads, n ≥ 1; None takes the limit back.

        Raises:
            BackendUnavailableError: the library has no way to be told.
        """

    @final
    def __repr__(self) -> str:
        return f"<backend {self.name} on {self.device}>"

    # One instance per device: copies of a tensor or a model, and pickles in this process, keep the instance they had.
    @final
    def __deepcopy__(self, memo: object) -> Backend:
        return self

    @final
    def __reduce__(self) -> tuple[Callable[[str], Backend], tuple[str]]:
        return resolve, (f"{self.name}:{self.device}",)


class Plugin(ABC):
    """What an entry point of the group ``gradflow.backends`` names: an instance that makes the backends of one library.

    Importing it must be cheap and must not need the array library; `unavailable` is where that is looked for.

    Attributes:
        name: the backend's name, equal to the entry point's.
        extra: the pip extra that installs what it needs (``"a|b"`` if one of two does), None if nothing more is needed.
    """

    name: str
    extra: str | None

    @abstractmethod
    def unavailable(self) -> str | None:
        """Return why the backend cannot be used on this machine, None if it can."""

    @abstractmethod
    def create(self, device: str | None) -> Backend:
        """Make the backend of one device; None is the library's default device.

        Raises:
            ArgumentError: there is no such device.
        """


# -------------------------------------------------------------------------------------------------------- index arrays
ARRAY = "array"
"""Stands in the static part of an indexing key where an index array belongs."""


def filled(key: tuple[Any, ...], indices: tuple[Array, ...]) -> tuple[Any, ...]:
    """Put the index arrays, which a kernel gets as operands, back into the key it gets as a setting.

    >>> from gradflow.backend import ARRAY, filled
    >>> filled((slice(None), ARRAY), ([0, 2],))
    (slice(None, None, None), [0, 2])
    """
    found = iter(indices)
    return tuple(next(found) if isinstance(part, str) else part for part in key)


# ----------------------------------------------------------------------------------------------------------- the choice
_override: ContextVar[Backend | None] = ContextVar("gradflow_backend", default=None)
_current: Backend | None = None  # of set_backend(), or of the environment once that has been read
_current_source = ""
_by_text: dict[str, Backend] = {}  # what users write -> backend: the fast path of `backend="numpy"`
_instances: dict[tuple[str, str | None], Backend] = {}
_lock = threading.RLock()


def resolve(backend: str | Backend | None = None) -> Backend:
    """Return the backend of a new tensor; ``backend`` is the argument of the function that makes the tensor.

    Raises:
        UnknownBackendError: a name that nothing offers.
        BackendUnavailableError: a backend that cannot be used on this machine.
        DTypeError: neither a name nor a Backend.

    >>> from gradflow.backend import resolve
    >>> resolve("NumPy") is resolve("numpy:cpu")
    True
    """
    if backend is None:
        override = _override.get()
        if override is not None:
            return override
        return _current if _current is not None else _from_environment()
    if isinstance(backend, str):
        found = _by_text.get(backend)
        return found if found is not None else _named(backend, 'backend="{}"')
    if not isinstance(backend, Backend):
        raise DTypeError(
            explain(
                f"a {type(backend).__name__} as a backend.",
                "a backend is chosen by its name, or is a Backend that gradflow made.",
                'backend="numpy"',
            )
        )
    return backend


@contextmanager
def use_backend(backend: str | Backend) -> Iterator[Backend]:
    """Choose the backend of the tensors made inside a ``with`` block, or inside a decorated function.

    The choice belongs to the context (thread or asyncio task) that makes it and ends with the block, however it ends.

    Raises:
        UnknownBackendError: a name that nothing offers.
        BackendUnavailableError: a backend that cannot be used on this machine.
        DTypeError: neither a name nor a Backend.

    >>> with gf.use_backend("numpy") as backend:
    ...     print(backend.name, gf.tensor([1.0]).backend is backend)
    numpy True
    """
    chosen = resolve(backend)
    token = _override.set(chosen)
    try:
        yield chosen
    finally:
        _override.reset(token)


def set_backend(backend: str | Backend | None) -> None:
    """Choose the backend of new tensors in the whole process; None takes the choice back.

    Raises:
        UnknownBackendError: a name that nothing offers.
        BackendUnavailableError: a backend that cannot be used on this machine.
        DTypeError: neither a name nor a Backend.

    >>> gf.set_backend("numpy")
    >>> gf.get_backend().name
    'numpy'
    >>> gf.set_backend(None)
    """
    global _current, _current_source
    if backend is None:
        _current, _current_source = None, ""
    else:
        _current, _current_source = resolve(backend), "set_backend()"


def get_backend() -> Backend:
    """Return the backend that a new tensor would get here and now.

    Raises:
        UnknownBackendError: ``GRADFLOW_BACKEND`` holds a name that nothing offers.
        BackendUnavailableError: the backend it names cannot be used on this machine.

    >>> gf.get_backend().device
    'cpu'
    """
    return resolve(None)


def choice_source() -> str:
    """Say where the choice of `get_backend` comes from.

    >>> from gradflow.backend import choice_source
    >>> with gf.use_backend("numpy"):
    ...     choice_source()
    'use_backend()'
    """
    if _override.get() is not None:
        return "use_backend()"
    resolve(None)
    return _current_source


class BackendInfo(NamedTuple):
    """One row of `backends`."""

    name: str
    available: bool
    reason: str | None
    """Why it cannot be used; None if it can."""
    device: str | None
    versions: dict[str, str]
    is_default: bool
    """Whether a new tensor would get it here and now."""

    def __str__(self) -> str:
        if not self.available:
            return f"{self.name}: not available: {self.reason}"
        versions = ", ".join(f"{library} {version}" for library, version in self.versions.items())
        return f"{self.name}: available on {self.device} ({versions})" + ", the default" * self.is_default


def backends() -> list[BackendInfo]:
    """List the backends that are known or installed, with the reason where one cannot be used.

    >>> [info.name for info in gf.backends() if info.is_default]
    ['numpy']
    """
    try:
        default: Backend | None = resolve(None)
    except (UnknownBackendError, BackendUnavailableError, ArgumentError):
        default = None  # a wrong GRADFLOW_BACKEND must not hide the list that helps to mend it
    rows = []
    for name in sorted({*_KNOWN, *_entry_points()}):
        chosen = default is not None and default.name == name
        try:
            backend = default if chosen and default is not None else _instance(name, None)
        except _UnusableError as unusable:
            rows.append(BackendInfo(name, False, unusable.reason, None, {}, False))
        else:
            rows.append(BackendInfo(name, True, None, backend.device, backend.versions(), chosen))
    return rows


def _from_environment() -> Backend:
    """Make the choice that nothing in the program has made, and keep it."""
    global _current, _current_source
    text = env_text(VARIABLE)
    if text is None:
        backend, source = resolve("numpy"), "default"
    else:
        backend, source = _named(text, VARIABLE + "={}"), f"{VARIABLE}={text}"
    _current, _current_source = backend, source
    return backend


def _named(text: str, form: str) -> Backend:
    """Find the backend that ``text`` names; ``form`` is how the user said it, for the messages."""
    name, _, device = (part.strip() for part in text.lower().partition(":"))
    if name == "auto":
        if device:
            raise ArgumentError(
                explain(
                    f"{form.format(text)} names a device of no backend.",
                    "`auto` chooses the backend; a device belongs to a backend named beside it.",
                    form.format(f"cupy:{device}"),
                )
            )
        backend = _best()
    else:
        valid = sorted({"auto", *_KNOWN, *_entry_points()})
        if name not in valid:
            from difflib import get_close_matches

            near = get_close_matches(name, valid, 1)
            installed = ", ".join(sorted(_entry_points())) or "none"
            raise UnknownBackendError(
                explain(
                    f"{form.format(text)} names no backend" + (f"; did you mean {near[0]!r}?" if near else "."),
                    f"valid names are {', '.join(valid)}; installed here: {installed}.",
                    form.format(near[0] if near else "numpy"),
                )
            )
        try:
            backend = _instance(name, device or None)
        except _UnusableError as unusable:
            raise BackendUnavailableError(
                explain(f"{form.format(text)} cannot be used on this machine.", unusable.reason, unusable.fix)
            ) from unusable.__cause__
    _by_text[text] = backend
    return backend


@functools.cache
def _best() -> Backend:
    """Make the best usable one of the known backends, and log once which and why."""
    import logging

    skipped = []
    for name in _KNOWN:
        try:
            backend = _instance(name, None)
        except _UnusableError as unusable:
            skipped.append(f"{name}: {unusable.reason}")
        else:
            because = f" (not {'; not '.join(skipped)})" if skipped else ""
            logging.getLogger("gradflow").info("backend auto: chose %s on %s%s", name, backend.device, because)
            return backend
    raise BackendUnavailableError(
        explain("backend auto finds nothing to choose from.", "; ".join(skipped) + ".", "pip install gradflow")
    )


# -------------------------------------------------------------------------------------------------------------- threads
def set_num_threads(n: int | None) -> None:
    """Let large operations of the current backend use at most n threads; None takes the limit back.

    There are never more than there are usable CPUs, whatever is asked for.

    Raises:
        ArgumentError: a number below 1.
        DTypeError: not an integer.
        BackendUnavailableError: the library that computes cannot be told.

    >>> gf.set_num_threads(1)
    >>> gf.get_num_threads()
    1
    >>> gf.set_num_threads(None)
    """
    if n is not None:
        n = integer("set_num_threads", "n", n, least=1, why="at least one thread computes.")
    get_backend().set_num_threads(n)


def get_num_threads() -> int:
    """Return how many threads a large operation of the current backend uses.

    >>> gf.get_num_threads() >= 1
    True
    """
    return get_backend().num_threads()


# ------------------------------------------------------------------------------------------------------------- plug-ins
class _UnusableError(Exception):
    """Why a known or installed backend cannot be used, and the command that mends it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


@functools.cache
def _entry_points() -> dict[str, list[EntryPoint]]:
    """Find the installed plug-ins, by name, without importing any."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name.lower(), []).append(entry)
    return found


def _instance(name: str, device: str | None) -> Backend:
    """Return the one backend of a device, made at its first use."""
    with _lock:
        backend = _instances.get((name, device))
        if backend is None:
            made = _create(name, device)
            backend = _instances.setdefault((name, made.device), made)  # None and "cpu" may be the same device
            _instances[name, device] = backend
        return backend


def _create(name: str, device: str | None) -> Backend:
    entries = _entry_points().get(name, [])
    if not entries:
        absent = "no installed package offers it (gradflow comes with numpy and numba)."
        raise _UnusableError(absent, _pip("gradflow", _KNOWN[name]))
    origins = {entry.value: entry.dist.name if entry.dist is not None else entry.value for entry in entries}
    if len(origins) > 1:
        packages = " and ".join(sorted(origins.values()))
        raise _UnusableError(f"{packages} both offer it.", f"pip uninstall {min(origins.values())}  (or the other)")
    (package,) = origins.values()
    extra = _KNOWN.get(name)
    try:
        plugin = entries[0].load()
        if not isinstance(plugin, Plugin):
            raise TypeError(f"{entries[0].value} is {plugin!r}, not an instance of gradflow.backend.Plugin")
        extra = plugin.extra
        reason = plugin.unavailable()
        if reason is None:
            return plugin.create(device)
    except Exception as error:  # a plug-in may fail in any way; the others go on and its cause is told
        if device is not None and isinstance(error, ArgumentError):
            raise  # there is no such device
        raise _UnusableError(f"its plug-in failed: {type(error).__name__}: {error}", _pip(package, extra)) from error
    raise _UnusableError(reason, _pip(package, extra))


def _pip(package: str, extra: str | None) -> str:
    """Write the command that installs what a backend needs."""
    if extra is None:
        return f"pip install --force-reinstall {package}"
    return " or ".join(f'pip install "{package}[{name}]"' for name in extra.split("|"))


# ----------------------------------------------------------------------------------------------------------- processors
def usable_cpus() -> int:
    """Return how many CPUs this process may use: its affinity mask, capped by its cgroup's quota.

    A quota is rounded down, as a thread beyond it is put to sleep while the others wait for it; the least is 1.

    >>> from gradflow.backend import usable_cpus
    >>> usable_cpus() >= 1
    True
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no such mask
        count = os.cpu_count() or 1
    return max(1, int(min(count, _cgroup_quota("/"))))


def _cgroup_quota(root: str) -> float:
    """Return the smallest CPU quota of the process's cgroups and their ancestors; inf where there is none.

    Source: the Linux kernel's admin-guide/cgroup-v2 (cpu.max) and scheduler/sched-bwc (cpu.cfs_quota_us).
    """
    quota = float("inf")
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = f"{root}/sys/fs/cgroup" + "/cpu" * bool(controllers)
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            group = "/".join([mount, *parts[:depth]])
            if controllers:
                limit = f"{_read(f'{group}/cpu.cfs_quota_us')} {_read(f'{group}/cpu.cfs_period_us')}".split()
            else:
                limit = _read(f"{group}/cpu.max").split()
            if len(limit) == 2 and limit[0].isdigit() and int(limit[1]) > 0:  # "max" and -1 mean no limit
                quota = min(quota, int(limit[0]) / int(limit[1]))
    return quota


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
