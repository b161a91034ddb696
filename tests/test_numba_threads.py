"""The threads of the Numba backend: layer, number, forks, and the choice between serial and parallel."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest

pytest.importorskip("numba")

from gradflow_numba import threads

LOOP = """
import warnings; warnings.simplefilter("error")
import os, signal, numpy as np, numba
from gradflow.backend import usable_cpus
from gradflow_numba import threads

def total():
    @numba.njit(parallel=True)
    def f(x):
        t = 0.0
        for i in numba.prange(len(x)):
            t += x[i]
        return t
    return f(np.ones(1000))
"""


def run(code: str, timeout: float = 60, **environment: str) -> str:
    """What code prints in a process of its own, which inherits no setting of threads."""
    own = ("NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "OMP_NUM_THREADS")
    variables = {k: v for k, v in os.environ.items() if k not in own} | environment
    done = subprocess.run(
        [sys.executable, "-c", LOOP + textwrap.dedent(code)],
        capture_output=True, text=True, env=variables, timeout=timeout, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


several = pytest.mark.skipif(threads._pool < 2 and threads.available() < 2, reason="this machine gives one thread")


# ---------------------------------------------------------------- layer and number
def test_the_layer_is_one_that_is_fast_or_none_and_numba_uses_it() -> None:
    printed = run("print(threads.layer(), threads.available()); total(); print(numba.threading_layer())")
    (layer, count), (used,) = (line.split() for line in printed.splitlines())
    assert layer in ("omp", "tbb", "serial")
    assert used == layer or layer == "serial"
    assert 1 <= int(count) <= (os.cpu_count() or 1)


@pytest.mark.parametrize("asked", ["workqueue", "nonsense"])
def test_the_work_queue_is_never_used(asked: str) -> None:
    code = "print(threads.layer(), threads.available(), threads.parallel_allowed())"
    assert run(code, NUMBA_THREADING_LAYER=asked) == "serial 1 False"


def test_a_layer_that_cannot_be_loaded_is_passed_over_without_a_warning() -> None:
    code = """
    import sys
    sys.modules["numba.np.ufunc.omppool"] = None
    sys.modules["numba.np.ufunc.tbbpool"] = None
    print(threads.layer(), threads.available())
    """
    assert run(code) == "serial 1"


def test_a_work_queue_that_another_library_has_started_is_not_entered() -> None:
    code = "numba.config.THREADING_LAYER = 'workqueue'; total(); print(threads.layer(), threads.available())"
    assert run(code) == "serial 1"


def test_the_number_is_capped_by_the_environment() -> None:
    code = "print(threads.available(), threads.parallel_allowed())"
    assert run(code, NUMBA_NUM_THREADS="1") == "1 False"
    assert run(code, OMP_NUM_THREADS="1,4") == "1 False"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_number_is_capped_by_the_affinity_mask() -> None:
    code = """
    print(threads.available())
    total()
    print(numba.get_num_threads())
    """
    one = min(os.sched_getaffinity(0))
    assert run(f"os.sched_setaffinity(0, {{{one}}})\n" + textwrap.dedent(code)).split() == ["1", "1"]


def test_the_number_is_capped_by_a_quota_of_the_container() -> None:
    code = """
    threads.usable_cpus = lambda: 1
    print(threads.available(), threads.parallel_allowed())
    total()
    print(numba.get_num_threads())
    """
    assert run(code).split() == ["1", "False", "1"]


@several
def test_a_limit_is_set_and_taken_back() -> None:
    code = """
    most = threads.available()
    threads.set_limit(1); print(threads.available(), threads.parallel_allowed(), numba.get_num_threads())
    threads.set_limit(1000); print(threads.available() == most, numba.get_num_threads() == most)
    threads.set_limit(None); print(threads.available() == most, threads.parallel_allowed())
    """
    assert run(code).splitlines() == ["1 False 1", "True True", "True True"]


@several
def test_the_backends_limit_holds_for_parallel_loops_and_for_matrix_products() -> None:
    code = """
    import gradflow as gf
    from gradflow_numpy.blas import blas_threads
    gf.set_backend("numba")
    most = gf.get_num_threads()
    gf.set_num_threads(1); print(gf.get_num_threads(), threads.available(), blas_threads() in (1, None))
    gf.set_num_threads(None); print(gf.get_num_threads() == threads.available() == most)
    """
    assert run(code).splitlines() == ["1 1 True", "True"]


# ---------------------------------------------------------------- forks
FORK = """
def child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a child that hangs is killed, and seen
        work()
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_stays_serial_where_the_parent_has_used_openmp() -> None:
    code = """
    before = threads.layer(), threads.available()
    site = threads.Adaptive(lambda: "one thread", lambda: total())
    total()
    def work():
        serial = threads.layer() == "serial" and threads.available() == 1 and not threads.parallel_allowed()
        alone = [site() for _ in range(10)] == ["one thread"] * 10 and site.chosen == "serial"
        os._exit(0 if (serial and alone) or before[0] == "tbb" else 1)
    print(child(work))
    print((threads.layer(), threads.available()) == before)  # the parent goes on as it was
    """
    assert run(FORK + textwrap.dedent(code)).split() == ["0", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_of_a_parent_that_has_not_yet_used_threads_may_use_them() -> None:
    code = """
    count = threads.available()
    def work():
        os._exit(0 if threads.available() == count and total() == 1000 else 1)
    print(child(work))
    """
    assert run(FORK + textwrap.dedent(code)) == "0"


# ---------------------------------------------------------------- serial or parallel
class Machine:
    """Work whose time is set, on a clock that only this work moves."""

    def __init__(self, serial: float, parallel: float) -> None:
        self.now = 0
        self.cost = {"serial": serial, "parallel": parallel}
        self.ran: list[str] = []
        self.site = threads.Adaptive(lambda: self.work("serial"), lambda: self.work("parallel"), clock=lambda: self.now)

    def work(self, way: str) -> int:
        self.ran.append(way)
        self.now += int(1000 * self.cost[way])
        return len(self.ran)

    def calls(self, n: int) -> list[str]:
        """What the next n calls do."""
        first = len(self.ran)
        for _ in range(n):
            assert self.site() == len(self.ran)  # one function runs, once, and its result is returned
        return self.ran[first:]


@pytest.fixture(autouse=True)
def _threads_for_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_parallel", True)


MEASURED = 2 * threads.ROUNDS


def test_the_faster_way_is_measured_and_kept() -> None:
    machine = Machine(serial=400, parallel=220)
    assert machine.calls(MEASURED) == ["serial", "parallel"] * threads.ROUNDS
    assert machine.site.chosen == "parallel"
    assert set(machine.calls(2000)) == {"parallel"}


def test_parallel_calls_that_win_nothing_are_given_up() -> None:
    machine = Machine(serial=400, parallel=390)
    machine.calls(MEASURED)
    assert machine.site.chosen == "serial"
    assert set(machine.calls(threads.FIRST_REST)) == {"serial"}


def test_long_calls_are_given_up_for_a_time_and_not_for_a_number() -> None:
    machine = Machine(serial=10_000, parallel=9_900)  # 10 ms
    machine.calls(MEASURED)
    rest = threads.FIRST_TIME // 10_000_000
    assert rest < threads.FIRST_REST
    assert set(machine.calls(rest)) == {"serial"}
    assert "parallel" in machine.calls(2)


def test_short_work_never_starts_a_thread() -> None:
    machine = Machine(serial=5, parallel=1)
    assert set(machine.calls(5000)) == {"serial"}


def test_a_first_call_that_compiles_does_not_count() -> None:
    machine = Machine(serial=300_000, parallel=900_000)
    machine.calls(2)
    machine.cost = {"serial": 400, "parallel": 220}
    machine.calls(MEASURED - 2)
    assert machine.site.chosen == "parallel"


def test_one_interruption_is_forgiven_and_a_busy_neighbour_is_not() -> None:
    machine = Machine(serial=400, parallel=220)
    machine.calls(MEASURED)
    machine.cost["parallel"] = 1000  # an interruption of one call
    machine.calls(1)
    machine.cost["parallel"] = 220
    assert set(machine.calls(50)) == {"parallel"}
    machine.cost["parallel"] = 20 * 400
    assert machine.calls(3) == ["parallel", "serial", "serial"]


def test_slow_parallel_calls_add_up() -> None:
    machine = Machine(serial=400, parallel=220)
    machine.calls(MEASURED)
    machine.cost["parallel"] = 700  # loses 300 a call, and may lose 1200
    assert machine.calls(6) == ["parallel"] * 5 + ["serial"]


def test_with_a_neighbour_that_stays_a_call_is_hardly_slower_than_a_serial_one() -> None:
    machine = Machine(serial=400, parallel=220)
    machine.calls(MEASURED)
    machine.cost["parallel"] = 20 * 400
    start = machine.now
    machine.calls(5000)
    assert (machine.now - start) / 5000 < 1.1 * 400_000


def test_when_the_neighbour_has_gone_parallel_calls_come_back() -> None:
    machine = Machine(serial=400, parallel=220)
    machine.calls(MEASURED)
    machine.cost["parallel"] = 20 * 400
    machine.calls(1000)
    machine.cost["parallel"] = 220
    machine.calls(4 * 1000)
    assert machine.site.chosen == "parallel"
    assert set(machine.calls(100)) == {"parallel"}


def test_a_neighbour_who_comes_again_much_later_is_a_new_one() -> None:
    machine = Machine(serial=400, parallel=220)
    rests = []
    for _ in range(3):
        while machine.site.chosen != "parallel":
            machine.calls(1)
        machine.cost["parallel"] = 220
        machine.calls(40_000)
        machine.cost["parallel"] = 20 * 400
        machine.calls(1)
        machine.cost["parallel"] = 220
        rests.append(machine.site._left)
    assert rests == [threads.FIRST_REST] * 3


def test_where_there_is_one_thread_every_call_is_serial(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(serial=400, parallel=220)
    machine.calls(MEASURED)
    monkeypatch.setattr(threads, "_parallel", False)
    assert set(machine.calls(10)) == {"serial"}
    assert machine.site.chosen == "serial"


def test_a_call_that_another_thread_overtakes_is_not_booked() -> None:
    machine = Machine(serial=400, parallel=220)
    work = machine.site.serial

    def overtaken() -> None:
        machine.site.serial = machine.site._next = work
        machine.site()  # what another thread would do meanwhile: it is measured, and the parallel way is next
        work()

    machine.site.serial = machine.site._next = overtaken
    machine.site()
    assert [len(times) for times in machine.site._times] == [1, 0]


def test_two_threads_never_learn_at_once() -> None:
    machine = Machine(serial=400, parallel=220)
    with machine.site._learning:
        assert machine.calls(3) == ["serial"] * 3
    assert machine.calls(MEASURED) == ["serial", "parallel"] * threads.ROUNDS


def test_an_error_passes_and_the_next_call_works() -> None:
    failing = [True]

    def work() -> str:
        if failing.pop() if failing else False:
            raise ValueError("a label out of range")
        return "done"

    site = threads.Adaptive(work, work)
    with pytest.raises(ValueError, match="a label out of range"):
        site()
    assert site() == "done"


def test_the_decision_costs_little() -> None:
    """Measured 40 to 90 ns; the bound is wide, as the machine that runs the tests may be busy."""

    def nothing() -> None: ...

    site = threads.Adaptive(nothing, nothing)
    best = min(_time(site) - _time(nothing) for _ in range(20))
    assert best < 1000


def _time(function) -> float:
    start = time.perf_counter_ns()
    for _ in range(1000):
        function()
    return (time.perf_counter_ns() - start) / 1000
