"""Time the start of a training that this machine has never seen, in fresh processes: to the loss of the second step.

gradflow starts with caches that other networks have filled, and with bare ones. See benchmarks/README.md.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from benchmarks.common import Neighbours, Table, Timing, hold_threads, parser, recorded, start_fresh, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGETS = {"gradflow numba, caches filled": 1.0, "gradflow numba, bare": 6.0}  # seconds
PEERS = {"PyTorch": "torch", "JAX": "jax"}
TOLERANCE = 1e-3  # of the second loss


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=5)
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)
    with recorded("cold", threads, args.rounds, args.json) as results, tempfile.TemporaryDirectory() as folder:
        neighbours = Neighbours()
        found = starts(args.rounds, Path(folder))
        others = neighbours.cpus()
        table = Table({"seconds to the second loss": 32, "whole": 24, "after the imports": 24, "target": 24})
        for program, (whole, after) in found.items():
            table.row([program, whole, after, verdict(whole.median, TARGETS.get(program), others)])
            results[program] = {"whole": whole, "after the imports": after, "target": TARGETS.get(program)}
        results["cpus used by others"] = others


def starts(rounds: int, folder: Path) -> dict[str, tuple[Timing, Timing]]:
    """Seconds of each program: all, and those after the imports; every round has another network."""
    filled, rng = caches(folder / "filled"), Random(0)
    start_fresh("cold_gradflow", 784, 120, 10, GRADFLOW_BACKEND="numba", **filled)  # fills the caches
    start_fresh("cold_gradflow", 32, 64, 64, 64, 4, GRADFLOW_BACKEND="numba", **filled)
    whole: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    for i in range(rounds):
        sizes = [rng.randint(200, 800), *(rng.randint(30, 200) for _ in range(3)), 10]
        programs: dict[str, tuple[str, dict[str, str]]] = {
            "gradflow numba, caches filled": ("gradflow", {"GRADFLOW_BACKEND": "numba", **filled}),
            "gradflow numba, bare": ("gradflow", {"GRADFLOW_BACKEND": "numba", **caches(folder / f"bare{i}")}),
            "gradflow numpy": ("gradflow", {"GRADFLOW_BACKEND": "numpy"}),
            **{name: (peer, {}) for name, peer in PEERS.items() if find_spec(peer)},
        }
        ends = {name: start_fresh(f"cold_{program}", *sizes, **env) for name, (program, env) in programs.items()}
        check(sizes, ends)
        for name, end in ends.items():
            whole.setdefault(name, []).append(end["seconds"])
            after.setdefault(name, []).append(end["now"] - end["imported"])
    return {name: (Timing(whole[name]), Timing(after[name])) for name in whole}


def caches(folder: Path) -> dict[str, str]:
    """Settings that keep everything compiled in a folder."""
    return {"GRADFLOW_CACHE_DIR": str(folder / "gradflow"), "NUMBA_CACHE_DIR": str(folder / "numba")}


def check(sizes: Sequence[int], ends: dict[str, dict[str, Any]]) -> None:
    """Refuse programs that do not compute the same."""
    losses = {name: end["loss"] for name, end in ends.items()}
    least, most = min(losses.values()), max(losses.values())
    if not most <= least * (1 + TOLERANCE):
        raise RuntimeError(f"the second losses of {sizes} differ: {losses}. There is nothing to compare.")


if __name__ == "__main__":
    main()
