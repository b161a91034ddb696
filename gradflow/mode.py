"""The mode of execution: recording, not recording, or handing every operation to an interpreter. One ContextVar.

An operation asks `get_mode()` once. RECORD and NO_GRAD are the two ordinary modes and are compared by identity;
every other mode belongs to an interpreter (tracing, anomaly hunting), which is handed the operation instead.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import Any, Protocol


class Interpreter(Protocol):
    """Runs operations in place of the engine's own fast path.

    Attributes:
        on_tensors: whether a backward sweep runs on Tensors, so that the operations of each rule come here too.
    """

    on_tensors: bool

    def apply(self, primitive: Any, operands: tuple[Any, ...], settings: dict[str, Any], recording: bool) -> Any:
        """Run one operation; `recording` says whether a derivative may be wanted."""

    def read(self, tensor: Any, how: str) -> None:
        """Called where a value leaves the graph: `.item()`, `bool(t)`, `np.asarray(t)`; may refuse."""

    def sweep(self, root: Any, run: Callable[..., Any], lift: Any, hooks: Any, retain: bool) -> Any:
        """Run a backward sweep from `root`: `run(lift, hooks, retain)`, with others in the place of these if needed."""

    def gradient(self, leaf: Any, *, replaced: bool = False) -> None:
        """Called before the gradient that a leaf holds is looked at, or is replaced without a look."""
        return

    def depends(self, probe: Callable[[], Any], /) -> None:
        """Called where a fact about the library's own state decides what runs; `probe()` gives the fact again."""
        return

    def refuse(self, what: str) -> None:
        """Called where something begins that only running Python can do; may raise."""
        return


class Mode:
    """How operations run now."""

    __slots__ = ("interpreter", "recording")

    def __init__(self, recording: bool, interpreter: Interpreter | None = None) -> None:
        self.recording = recording
        self.interpreter = interpreter


RECORD, NO_GRAD = Mode(True), Mode(False)
_MODE: ContextVar[Mode] = ContextVar("gradflow_mode", default=RECORD)
get_mode = _MODE.get


class using:  # noqa: N801  (reads as a statement: `with using(mode):`)
    """Run a block in a mode; the mode before comes back, also after an exception."""

    __slots__ = ("mode", "token")

    def __init__(self, mode: Mode) -> None:
        self.mode = mode

    def __enter__(self) -> Mode:
        self.token: Token[Mode] = _MODE.set(self.mode)
        return self.mode

    def __exit__(self, *_: object) -> None:
        _MODE.reset(self.token)


def grad_mode(recording: bool) -> Mode:
    """The mode that differs from the present one only in whether it records."""
    mode = get_mode()
    if mode.interpreter is not None:
        return Mode(recording, mode.interpreter)
    return RECORD if recording else NO_GRAD


def set_mode(mode: Mode) -> None:
    """Switch for the rest of the context (a thread, a task)."""
    _MODE.set(mode)


def resumed(generator: Generator[Any, Any, Any], block: Callable[[], AbstractContextManager[Any]]) -> Any:
    """The same generator, which runs inside a block (a new one each time it is resumed) while its caller does not."""
    resume: Callable[[Any], Any] = generator.send
    sent: Any = None
    while True:
        with block():
            try:
                item = resume(sent)
            except StopIteration as end:
                return end.value
        try:
            resume, sent = generator.send, (yield item)
        except GeneratorExit:
            with block():
                generator.close()
            raise
        except BaseException as error:
            resume, sent = generator.throw, error
