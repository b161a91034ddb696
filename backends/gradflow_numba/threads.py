"""Threads of compiled code: which layer runs them, how many there are, and when one thread is better.

Numba runs parallel loops on OpenMP, on TBB, or on a work queue of its own. The last takes 70 to 110 µs for an empty
region, where the others take 1 to 5, and aborts the process when two Python threads enter it: it is never used, and
where nothing else can be loaded compiled code stays on one thread.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from gradflow.backend import usable_cpus

SERIAL: Final = "serial"
_MODULES = {"omp": "omppool", "tbb": "tbbpool"}
# What NUMBA_THREADING_LAYER may ask for, and which layers answer to it, best first. GNU OpenMP does not survive a fork.
_ALLOWED: dict[str, tuple[str, ...]] = {
    "default": ("omp", "tbb"),
    "omp": ("omp",),
    "tbb": ("tbb",),
    "threadsafe": ("omp", "tbb"),
    "forksafe": ("tbb",),
    "safe": ("tbb",),
}

_lock = threading.Lock()
_layer: str | None = None  # chosen at the first question
_pool = 1  # threads that the layer starts
_limit: int | None = None  # of set_limit()
_parallel = True  # read at every call of an Adaptive: False where one thread is all there is


# ---------------------------------------------------------------- which, and how many
def layer() -> str:
    """The threading layer: "omp", "tbb", or "serial" where neither can be used.

    The first question decides it, and tells Numba, which starts the threads when it compiles the first parallel loop.
    """
    if _layer is None:
        with _lock:
            if _layer is None:
                _choose()
    assert _layer is not None
    return _layer


def available() -> int:
    """How many threads a parallel loop may use; 1 when serial is all there is.

    At most the usable CPUs (affinity mask and cgroup quota), NUMBA_NUM_THREADS, OMP_NUM_THREADS, and what `set_limit`
    allows.
    """
    if layer() == SERIAL:
        return 1
    return _pool if _limit is None else min(_limit, _pool)


def parallel_allowed() -> bool:
    """Whether a parallel loop may be entered now: there are several threads, and they live in this process."""
    return available() > 1


def set_limit(n: int | None) -> None:
    """Use at most n threads; None takes the limit back. There are never more than at the start."""
    global _limit
    layer()
    _limit = n
    _settle()


def _settle() -> None:
    global _parallel
    _parallel = available() > 1
    if _layer != SERIAL:
        import numba

        config: Any = numba.config
        numba.set_num_threads(min(available(), config.NUMBA_NUM_THREADS))


def _choose() -> None:
    """Pick the layer and the size of its pool, and leave both where Numba reads them."""
    global _layer, _pool, _parallel
    import numba

    parallel: Any = import_module("numba.np.ufunc.parallel")

    config: Any = numba.config
    if parallel._is_initialized:  # somebody else's parallel loop came first
        found = str(parallel.threading_layer())
        _layer = found if found in _MODULES else SERIAL
    else:
        asked = _ALLOWED.get(str(config.THREADING_LAYER).strip().lower(), ())
        _layer = next((name for name in asked if _loads(name)), SERIAL)
    _pool = max(1, min(usable_cpus(), config.NUMBA_NUM_THREADS, _stated("OMP_NUM_THREADS")))
    if _layer != SERIAL and not parallel._is_initialized:
        config.THREADING_LAYER = _layer
        if "NUMBA_NUM_THREADS" not in os.environ:
            # or a container's share of a large machine gets a thread for each CPU
            config.NUMBA_NUM_THREADS = parallel.NUM_THREADS = _pool
    _parallel = _layer != SERIAL and _pool > 1


def _loads(name: str) -> bool:
    """Whether the library of a threading layer can be loaded; Numba would warn of a TBB that is too old."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name == "tbb":
                import_module("numba.np.ufunc.parallel")._check_tbb_version_compatible()
            import_module(f"numba.np.ufunc.{_MODULES[name]}")
    except (ImportError, OSError):
        return False
    return True


def _stated(variable: str) -> int:
    """The number of threads that a variable allows; OpenMP's may be a list, a number for each level of nesting."""
    first = os.environ.get(variable, "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else sys.maxsize


def _in_child() -> None:
    """After a fork: the threads stayed in the parent, and GNU OpenMP waits for them without end."""
    global _lock, _layer, _parallel
    _lock = threading.Lock()  # the parent may have held it
    running = sys.modules.get("numba.np.ufunc.parallel")
    if running is not None and running._is_initialized and _layer != "tbb":
        _layer, _parallel = SERIAL, False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


# ---------------------------------------------------------------- when
WORTH = 10_000  # ns: below, a parallel region costs more than it saves
ROUNDS = (
    3  # timed calls of either kind before a decision; the best of each counts, so a first call that compiles does not
)
GAIN = 0.9  # parallel is chosen where it takes at most this share of the serial time
PATIENCE = 3  # serial calls' worth of time that parallel calls may lose in all before they are given up
LEAST_REST = 4  # serial calls at least, however long they take
FIRST_TIME, LONGEST_TIME = 50_000_000, 2_000_000_000  # ns: a long call does not wait for 100 of its kind
FIRST_REST, LONGEST_REST = 100, 12_800  # serial calls before parallel ones are tried again; doubled at every failure


class Adaptive:
    """A call that runs serially or in parallel, whichever is faster here and now.

    Both ways are timed at first. A parallel call is always timed (it is a long one), and what it loses against the
    serial time is booked until later calls have won it back. With a busy neighbour on a CPU the threads wait for each
    other and a call may take 20 times as long: the account is overdrawn at once, and the call is serial for a while.

    Args:
        serial, parallel: do the same; exactly one of them runs at each call.
        clock: returns nanoseconds.

    Raises:
        What the functions raise.
    """

    __slots__ = (
        "_clock", "_debt", "_learning", "_left", "_next", "_rest", "_serial_time", "_since", "_times", "parallel",
        "serial",
    )  # fmt: skip

    def __init__(
        self,
        serial: Callable[..., Any],
        parallel: Callable[..., Any],
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.serial, self.parallel, self._clock = serial, parallel, clock
        self._rest = FIRST_REST
        self._left = 0  # calls that are serial without a look at the clock
        self._since = 0  # when the present run of parallel calls began
        self._learning = threading.Lock()
        self._measure()

    def __call__(self, *args: Any) -> Any:
        """Run one of the two functions."""
        if self._left:
            self._left -= 1
            return self.serial(*args)
        if not _parallel:
            return self.serial(*args)
        clock = self._clock
        start = clock()
        ran = self._next
        out = ran(*args)
        took = clock() - start
        if took > self._serial_time or self._debt:
            self._learn(took, ran)
        return out

    @property
    def chosen(self) -> str:
        """What the next call does: "serial", "parallel", or "measuring"."""
        if self._left or not _parallel:
            return SERIAL
        return "measuring" if self._serial_time < 0 else "parallel"

    def _measure(self) -> None:
        """Time both from the next call on."""
        self._times: tuple[list[int], list[int]] = ([], [])
        self._next = self.serial
        self._serial_time = -1  # every call is looked at
        self._debt = 0

    def _learn(self, took: int, ran: Callable[..., Any]) -> None:
        """Take a time into account, but for one that another thread has overtaken, or overtakes now."""
        if not self._learning.acquire(blocking=False):
            return
        try:
            if ran is self._next:
                self._judge(took)
        finally:
            self._learning.release()

    def _judge(self, took: int) -> None:
        if self._serial_time >= 0:
            self._book(took)
            return
        serial, parallel = self._times
        if self._next is self.serial:
            serial.append(took)
            self._next = self.parallel
            if took < WORTH:
                self._give_up()
            return
        parallel.append(took)
        self._next = self.serial
        tried_before = self._rest > FIRST_REST
        if tried_before and min(parallel) > PATIENCE * min(serial):
            self._give_up()
        elif len(parallel) == ROUNDS:
            if min(parallel) <= GAIN * min(serial):
                self._serial_time, self._since, self._next = min(serial), self._clock(), self.parallel
            else:
                self._give_up()

    def _book(self, took: int) -> None:
        """Add what a parallel call lost to the account, or take off what it won; nothing is saved up."""
        self._debt = max(0, self._debt + took - self._serial_time)
        if self._debt > PATIENCE * self._serial_time:
            good_for = (self._clock() - self._since) // self._serial_time
            if good_for > 10 * self._rest:
                self._rest = FIRST_REST
            self._give_up()

    def _give_up(self) -> None:
        """Be serial for a while, then measure again: so many calls, but no longer than a time that grows with them."""
        serial = self._serial_time if self._serial_time > 0 else min(self._times[0], default=0)
        most = min(FIRST_TIME * self._rest // FIRST_REST, LONGEST_TIME) // max(serial, 1)
        self._left = min(self._rest, max(most, LEAST_REST))
        self._rest = min(2 * self._rest, LONGEST_REST)
        self._measure()
