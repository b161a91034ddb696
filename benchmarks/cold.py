"""Time the start of a training that this machine has never seen, in fresh processes: to the loss of the second step.

gradflow starts with caches that other networks have filled, and with bare ones. See benchmarks/README.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from benchmarks.common import Neighbours, Table, Timing, hold_threads, parser, recorded, start_fresh, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGETS = {"gradflow-numba-filled": 1.0, "gradflow-numba-bare": 6.0}  # seconds
PROGRAMS = (*TARGETS, "gradflow-numpy", "torch", "jax")
TOLERANCE = 1e-3  # of the second loss


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS, help="what to start")
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)
    with recorded("cold", threads, args.rounds, args.json) as results, tempfile.TemporaryDirectory() as folder:
        neighbours = Neighbours()
        found = starts(args.programs, args.rounds, Path(folder))
        others = neighbours.cpus()
        table = Table({"seconds to the second loss": 32, "whole": 24, "after the imports": 24, "target": 24})
        for program, (whole, after) in found.items():
            table.row([program, whole, after, verdict(whole.median, TARGETS.get(program), others)])
            results[program] = {"whole": whole, "after the imports": after, "target": TARGETS.get(program)}
        results["cpus used by others"] = others


def starts(programs: Sequence[str], rounds: int, folder: Path) -> dict[str, tuple[Timing, Timing]]:
    """Seconds of each program: all, and those after the imports; every round has another network."""
    rng, filled = Random(0), caches(folder / "filled")
    if "gradflow-numba-filled" in programs:
        for sizes in ((784, 120, 10), (32, 64, 64, 64, 4)):
            start_fresh("cold_gradflow", *sizes, GRADFLOW_BACKEND="numba", **filled)
    seconds: dict[str, list[tuple[float, float]]] = {}
    for i in range(rounds):
        sizes = (rng.randint(200, 800), *(rng.randint(30, 200) for _ in range(3)), 10)
        ends = {}
        for name in programs:
            framework, *rest = name.split("-")
            environment = {"GRADFLOW_BACKEND": rest[0]} if rest else {}
            environment |= filled if name.endswith("filled") else caches(folder / f"bare {i}")
            ends[name] = end = start_fresh(f"cold_{framework}", *sizes, **environment)
            seconds.setdefault(name, []).append((end["seconds"], end["now"] - end["imported"]))
        check(sizes, {name: end["loss"] for name, end in ends.items()})
    return {name: (Timing([w for w, _ in found]), Timing([a for _, a in found])) for name, found in seconds.items()}


def caches(folder: Path) -> dict[str, str]:
    """Settings that keep everything compiled in a folder."""
    return {"GRADFLOW_CACHE_DIR": str(folder / "gradflow"), "NUMBA_CACHE_DIR": str(folder / "numba")}


def check(sizes: Sequence[int], losses: dict[str, float]) -> None:
    """Refuse programs that do not compute the same."""
    first = next(iter(losses.values()))
    if not all(abs(loss - first) <= TOLERANCE * first for loss in losses.values()):
        raise RuntimeError(f"the second losses of {sizes} differ: {losses}. There is nothing to compare.")


if __name__ == "__main__":
    main()
