"""Time what a compiled call takes beside its program: the check that the program fits, and what is around it.

The same call of a training step, once as it is and once with an executable that does nothing. See benchmarks/README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.common import Neighbours, Table, hold_threads, interleave, parser, recorded, timer, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGET = 1.0  # µs


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=15)
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)
    with recorded("dispatch", threads, args.rounds, args.json) as results:
        table = Table({"µs a call": 46, "median (min–max)": 24, "target": 24})
        for backend in ("numba", "numpy"):
            calls = {kind: compiled_call(backend, is_empty=kind == "empty") for kind in ("whole", "empty")}
            neighbours = Neighbours()
            times = interleave({kind: timer("step(x, t)", **names) for kind, names in calls.items()}, args.rounds)
            others = neighbours.cpus()
            table.row([f"step of tiny, {backend}", times["whole"], ""])
            judged = verdict(times["empty"].median, TARGET, others)
            table.row([f"guard and dispatch, {backend}", times["empty"], judged])
            results[backend] = {"target": TARGET, "times": times, "cpus used by others": others}


def compiled_call(backend: str, *, is_empty: bool) -> dict[str, Any]:
    """A compiled training step of the smallest network, and the two tensors that it is called with."""
    import gradflow as gf
    from benchmarks.workloads import WORKLOADS, gradflow_function, gradflow_training

    training = gradflow_training(WORKLOADS["tiny"], backend)
    step, x, t = gf.compile(gradflow_function(training)), training.x, training.t
    step(x, t)
    if is_empty:
        program = step._latest.program
        results = program.executable.run((x._data, t._data))
        program._run = lambda arrays: results
    return {"step": step, "x": x, "t": t}


if __name__ == "__main__":
    main()
