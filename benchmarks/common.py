"""What the benchmarks share: the thread count, interleaved timing, tables, and the record of where they ran.

Only the standard library is imported here: thread counts must be set before NumPy is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from timeit import Timer
from typing import Any

REST = 0.15  # seconds: OpenBLAS's idle threads spin for 0.11 s after a product and would slow whoever comes next
QUIET = 0.05  # CPUs: with one busy neighbour, threads that wait for each other take up to fifty times as long


# ---------------------------------------------------------------- timing
class Timing:
    """Microseconds per call, one figure for each round."""

    def __init__(self, rounds: list[float]) -> None:
        self.median, self.min, self.max = median(rounds), min(rounds), max(rounds)
        self.rounds = rounds

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.min)}–{number(self.max)})"


class Ratio:
    """How long one takes in units of another: by the medians, and as the median of the ratios within each round."""

    def __init__(self, ours: Timing, theirs: Timing) -> None:
        self.of_medians = ours.median / theirs.median
        self.per_round = median(a / b for a, b in zip(ours.rounds, theirs.rounds, strict=True))

    def __str__(self) -> str:
        return f"{self.of_medians:.3f} ({self.per_round:.3f})"


def timer(statement: str, setup: str = "pass", **names: Any) -> Timer:
    """A timer of a statement that leaves the garbage collector on, as it is in a user's program.

    Args:
        statement: what is timed.
        setup: what is run, untimed, before every series of calls.
        names: what both may use.
    """
    return Timer(statement, f"import gc; gc.enable(); {setup}", globals=names)


def interleave(timers: Mapping[str, Timer], rounds: int, *, slot: float = 0.1, rest: float = REST) -> dict[str, Timing]:
    """Time programs round by round, each round beginning with another one.

    In its turn a program rests until the threads of the one before are asleep, runs a tenth of its calls untimed, then
    all of them.

    Args:
        timers: the programs.
        rounds: turns of each.
        slot: seconds that one turn should take.
        rest: seconds before each turn.
    """
    calls = {name: calls_to_fill(program, slot) for name, program in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(rest)
            timers[name].timeit(1 + calls[name] // 10)
            times[name].append(timers[name].timeit(calls[name]) / calls[name] * 1e6)
    return {name: Timing(found) for name, found in times.items()}


def calls_to_fill(program: Timer, slot: float) -> int:
    """How many calls fill a slot; finding out warms the program up."""
    calls = 1
    while (seconds := program.timeit(calls)) < slot / 10:
        calls *= 4
    return max(1, round(calls * slot / seconds))


# ---------------------------------------------------------------- whole processes
def start_fresh(program: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """Run a program of the folder `fresh` in a process of its own.

    Args:
        program: its name.
        arguments: its command line.
        environment: settings beside ours.

    Returns:
        What it says at its end, and `seconds` from the start of the process to that word.
    """
    path = Path(__file__).parent / "fresh" / f"{program}.py"
    command = [sys.executable, str(path), *map(str, arguments)]
    started = time.time()
    done = subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"seconds": found["now"] - started}


# ---------------------------------------------------------------- neighbours
class Neighbours:
    """How many CPUs other processes have used on average since this object was made; 0 where that is not known."""

    def __init__(self) -> None:
        self.since, self.used = time.perf_counter(), self._used()

    def cpus(self) -> float:
        return max(0.0, self._used() - self.used) / (time.perf_counter() - self.since)

    @staticmethod
    def _used() -> float:
        """Seconds of CPU time less our own and that of our finished children; time stolen by other machines counts."""
        try:
            ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return 0.0
        user, nice, system, _, _, *rest = map(int, ticks)
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


# ---------------------------------------------------------------- output
def number(x: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def verdict(found: float, target: float | None, others: float = 0) -> str:
    """Whether a figure that should be small has reached its target; no answer where others used the CPUs meanwhile."""
    if target is None:
        return ""
    if others > QUIET:
        return f"≤ {target:g} not quiet"
    met = "reached" if found <= target else f"short by {found / target - 1:.0%}"
    return f"≤ {target:g} {met}"


class Table:
    """Rows of text, printed as they come: the first column flush left, the others flush right."""

    def __init__(self, columns: Mapping[str, int]) -> None:
        self.widths = list(columns.values())
        print()
        self.row(columns)

    def row(self, cells: Iterable[object]) -> None:
        first, *rest = map(str, cells)
        aligned = (cell.rjust(width) for cell, width in zip(rest, self.widths[1:], strict=True))
        print("  ".join([first.ljust(self.widths[0]), *aligned]).rstrip(), flush=True)


# ---------------------------------------------------------------- one run
def parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="how often each program has its turn (%(default)s)")
    made.add_argument("--threads", type=int, help="threads of NumPy, Numba and PyTorch (default: the usable CPUs)")
    made.add_argument("--json", type=Path, help="where to write the figures")
    return made


def hold_threads(threads: int | None) -> int:
    """Set the thread count of BLAS and OpenMP libraries that are not loaded yet; return it."""
    threads = threads or _usable_cpus()
    for library in ("OPENBLAS", "OMP", "MKL", "NUMBA"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return threads


def _usable_cpus() -> int:
    """The count gradflow itself uses, asked of another process, as it loads NumPy."""
    code = "from gradflow.backend import usable_cpus; print(usable_cpus())"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@contextmanager
def recorded(benchmark: str, threads: int, rounds: int, path: Path | None) -> Iterator[dict[str, Any]]:
    """Say where figures are measured and how loaded the machine is before and after; write them as JSON if asked to."""
    cpu, cpus = _cpu(), os.cpu_count()
    versions = {
        "python": platform.python_version(),
        **_versions("gradflow", "numpy", "numba", "torch", "jax", "jaxlib"),
    }
    print(f"{cpu}, {cpus} CPUs; {', '.join(f'{name} {v}' for name, v in versions.items())}")
    print(f"threads: {threads}; rounds: {rounds}; figures are medians (min–max)")
    before, neighbours = os.getloadavg(), Neighbours()
    results: dict[str, Any] = {}
    yield results
    after = os.getloadavg()
    others = neighbours.cpus()
    print(f"\nload average (1, 5, 15 min): {_load(before)} before, {_load(after)} after")
    print(f"other processes used {others:.2f} CPUs meanwhile", end="")
    print(": NOT A QUIET MACHINE, the figures do not count" if others > QUIET else "")
    if path is not None:
        record = {
            "benchmark": benchmark,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "system": platform.platform(),
            "cpu": cpu,
            "cpus": cpus,
            "versions": versions,
            "threads": threads,
            "rounds": rounds,
            "load_before": before,
            "load_after": after,
            "cpus_used_by_others": others,
            "results": results,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=vars) + "\n")


def _load(averages: tuple[float, float, float]) -> str:
    return " ".join(f"{load:.2f}" for load in averages)


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
