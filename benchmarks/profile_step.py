"""Say where the time of a gradflow training step goes: which part of the step, and how much of it in array kernels.

Parts are timed with a clock between them; the kernels in steps of their own, by wrapping the functions of the backend's
namespace, less the measured cost of the wrapping. What is left is the engine: Python, checks, recording, the sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchmarks.common import Table, Timing, calls_to_fill, hold_threads, number, parser, recorded, timer

if TYPE_CHECKING:
    from benchmarks.workloads import Training

PARTS = ("forward", "loss", "zero_grad", "backward", "optimizer")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=7)
    arguments.add_argument("name", help="workload: tiny, wide, mnist, deep, big or residual")
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)
    with recorded("profile_step", threads, args.rounds, args.json) as results:
        results[args.name] = report(args.name, args.rounds)


def report(name: str, rounds: int) -> dict[str, Any]:
    """Print and return the account of one workload."""
    from benchmarks.workloads import WORKLOADS, begun, gradflow_training

    work = WORKLOADS[name]
    unobserved = timer("step()", "step = begun('gradflow-numpy', work)", begun=begun, work=work)
    steps = calls_to_fill(unobserved, 0.1)
    clock, kernel_clock = PartClock(), KernelClock()
    times = []
    for _ in range(rounds):
        times.append(unobserved.timeit(steps) / steps * 1e6)
        training = gradflow_training(work)
        _run(training, 3, lambda part: None)  # finds every kernel
        _run(training, steps, clock.enter)
        with kernel_clock.watching(training.x._xp):
            _run(training, steps, kernel_clock.enter)
    whole, parts, spent, calls = Timing(times), clock.medians(), kernel_clock.medians(), kernel_clock.calls

    table = Table({f"{name}, µs": 24, "all": 10, "kernels": 10, "engine": 10, "of the step": 12})
    total = sum(parts.values())
    for part in PARTS:
        inside = sum(us for (where, _), us in spent.items() if where == part)
        figures = (parts[part], inside, parts[part] - inside)
        table.row([part, *map(number, figures), f"{parts[part] / total:.0%}"])
    inside = sum(spent.values())
    table.row(["sum", *map(number, (total, inside, total - inside)), "100%"])
    table.row(["step, unobserved", number(whole.median), "", "", ""])

    table = Table({"kernel": 36, "in": 10, "calls": 8, "µs": 10, "of the step": 12})
    ranked = sorted(spent, key=lambda key: -spent[key])
    for part, kernel in ranked[:12]:
        us = spent[part, kernel]
        table.row([kernel, part, calls[part, kernel], number(us), f"{us / total:.0%}"])
    return {
        "step": whole,
        "parts": parts,
        "kernels": [{"kernel": k, "part": p, "calls": calls[p, k], "us": spent[p, k]} for p, k in ranked],
    }


def _run(training: Training, steps: int, enter: Callable[[str], None]) -> None:
    """Train, announcing each part of a step as it begins."""
    model, loss_fn, optimizer, x, t = training

    def step() -> None:
        enter("forward")
        out = model(x)
        enter("loss")
        loss = loss_fn(out, t)
        enter("zero_grad")
        optimizer.zero_grad()
        enter("backward")
        loss.backward()
        enter("optimizer")
        optimizer.step()
        enter("")

    for _ in range(steps):
        step()


class PartClock:
    """How long each part of a step takes."""

    def __init__(self) -> None:
        self.part, self.since = "", 0
        self.spent: dict[str, list[int]] = {part: [] for part in PARTS}

    def enter(self, part: str) -> None:
        now = perf_counter_ns()
        if self.part:
            self.spent[self.part].append(now - self.since)
        self.part, self.since = part, perf_counter_ns()

    def medians(self) -> dict[str, float]:
        """Microseconds a step."""
        return {part: median(found) / 1000 for part, found in self.spent.items()}


class KernelClock:
    """How long the array kernels take, by part of the step and name; a kernel called by another counts as the other."""

    def __init__(self) -> None:
        self.part, self.busy = "", False
        self.calls: Counter[tuple[str, str]] = Counter()  # of the present step
        self.spent: Counter[tuple[str, str]] = Counter()
        self.steps: list[Counter[tuple[str, str]]] = []

    def enter(self, part: str) -> None:
        if part == PARTS[0]:
            self.calls.clear()
        if not part:
            self.steps.append(self.spent)
            self.spent = Counter()
        self.part = part

    def wrap(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arrays: Any, **settings: Any) -> Any:
            if self.busy:
                return kernel(*arrays, **settings)
            self.busy = True
            start = perf_counter_ns()
            try:
                return kernel(*arrays, **settings)
            finally:
                took = perf_counter_ns() - start
                self.busy = False
                self.calls[self.part, name] += 1
                self.spent[self.part, name] += took

        return timed

    @contextmanager
    def watching(self, namespace: Any) -> Iterator[None]:
        """Time every function that a backend's namespace has found so far."""
        kept = {name: kernel for name, kernel in vars(namespace).items() if callable(kernel)}
        for name, kernel in kept.items():
            setattr(namespace, name, self.wrap(name, kernel))
        try:
            yield
        finally:
            for name, kernel in kept.items():
                setattr(namespace, name, kernel)

    def medians(self) -> dict[tuple[str, str], float]:
        """Microseconds a step, less what the clock itself adds."""
        probe = KernelClock()
        nothing = probe.wrap("", lambda: None)
        costs = []
        for _ in range(2000):
            nothing()
            costs.append(probe.spent.pop(("", "")))
        cost = median(costs)
        return {
            key: max(0.0, median(step[key] for step in self.steps) - cost * self.calls[key]) / 1000
            for key in self.calls
        }


if __name__ == "__main__":
    main()
