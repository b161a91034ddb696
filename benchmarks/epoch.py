"""Time an epoch of MNIST as a whole process, imports and compilation included, and its memory at the highest.

The images are those of GRADFLOW_DATA_DIR if that is set, else random ones of the same shape. See benchmarks/README.md.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Neighbours, Ratio, Table, Timing, hold_threads, parser, recorded, start_fresh

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

PROGRAMS = ("gradflow-numba", "gradflow-numpy", "torch", "jax", "sklearn")
LEARNT = 0.9  # accuracy on the test images of MNIST, which each reaches in an epoch


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--images", type=int, default=60_000, help="how many to train on (%(default)s)")
    arguments.add_argument("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS, help="what to run")
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)
    with recorded("epoch", threads, args.rounds, args.json) as results, tempfile.TemporaryDirectory() as folder:
        is_real = write_data(Path(folder), args.images)
        print(f"data: {'MNIST' if is_real else 'random images shaped as those of MNIST'}, {args.images:,} to train on")
        neighbours = Neighbours()
        ends = epochs(args.programs, args.rounds, folder)
        others = neighbours.cpus()
        if is_real and args.images == 60_000:
            check(ends)
        seconds = {name: Timing([end["seconds"] for end in runs]) for name, runs in ends.items()}
        table = Table({"an epoch, whole process": 24, "seconds": 22, "to the first": 16, "peak MB": 10, "accuracy": 10})
        for name, timing in seconds.items():
            memory, accuracy = (max(end[key] for end in ends[name]) for key in ("peak", "accuracy"))
            ratio = Ratio(timing, seconds[args.programs[0]])
            table.row([name, timing, ratio, f"{memory / 1e6:.0f}", f"{accuracy:.3f}"])
            results[name] = {"seconds": timing, "ratio": ratio, "peak": memory, "accuracy": accuracy}
        print("\nratios: of the medians (median of the ratios within each round)")
        results["cpus used by others"] = others


def epochs(programs: Sequence[str], rounds: int, folder: str) -> dict[str, list[dict[str, Any]]]:
    """What each program says at its end, in turns; the first turn, which fills file and kernel caches, is left out."""
    ends: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for i in range(-1, rounds):
        for name in programs:
            framework, *backend = name.split("-")
            environment = {"GRADFLOW_BACKEND": backend[0]} if backend else {}
            end = start_fresh(f"epoch_{framework}", EPOCH_DATA=folder, **environment)
            if i >= 0:
                ends[name].append(end)
    return ends


def check(ends: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse a program that has not learnt."""
    for name, runs in ends.items():
        if not min(end["accuracy"] for end in runs) >= LEARNT:
            raise RuntimeError(f"{name} does not learn: {runs}")


# ---------------------------------------------------------------- data
def write_data(folder: Path, images: int) -> bool:
    """Leave arrays in a folder, so that no program decodes files; whether they are MNIST."""
    is_real = bool(os.environ.get("GRADFLOW_DATA_DIR"))
    import numpy as np

    x, t, x_test, t_test = mnist() if is_real else random_images()
    arrays = {"x": x[:images], "t": t[:images], "x_test": x_test, "t_test": t_test}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return is_real


def mnist() -> tuple[np.ndarray, ...]:
    import numpy as np

    import gradflow as gf

    train, validation, test = gf.data.datasets.mnist()
    x, t = (np.concatenate(pair) for pair in zip(train, validation, strict=True))
    return x, t, *test


def random_images() -> tuple[np.ndarray, ...]:
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = (60_000, 10_000)
    return tuple(array for n in shapes for array in (rng.random((n, 784), dtype=np.float32), rng.integers(0, 10, n)))


if __name__ == "__main__":
    main()
