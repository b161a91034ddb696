"""Time a compiled step on a sweep of other networks, beside the best of PyTorch and JAX; print the worst ratio.

The points are drawn by `--seed` from the families below: every family in its turn, its sizes at random.
See benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from math import exp, log
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.common import Table, hold_threads, parser, recorded, verdict

if TYPE_CHECKING:
    from benchmarks.networks import Layer, Workload

OURS = "gradflow-numba-compiled"
WIDTHS = (2, 3, 10, 32, 64, 100, 128, 256, 300, 512, 784, 1024)
BATCHES = (16, 32, 64, 100, 128, 256, 512, 1024)
ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu")
LOSSES = ("mse_loss", "cross_entropy", "binary_cross_entropy_with_logits")
OPTIMIZERS = ("adam", "sgd", "adamw")
TARGET = 1.0


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("--points", type=int, default=16, help="how many networks (%(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="which (%(default)s)")
    arguments.add_argument("--torch-compile", action="store_true", help="torch.compile too, which takes its time")
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)

    from benchmarks import workloads
    from benchmarks.steps import compare, hold_torch

    hold_torch(threads)
    programs = [OURS, "torch", *(["torch-compile"] if args.torch_compile else []), "jax"]
    with recorded("grid", threads, args.rounds, args.json) as results:
        widths = {"to the best": 15, "best": 13, "target": 22, "loss error": 10}
        table = Table({"µs a step": 5, OURS: 24} | dict.fromkeys(programs[1:], 24) | widths)
        worst: dict[str, float] = {}
        for i, work in enumerate(islice(points(args.seed), args.points)):
            found = results[str(i)] = compare(f"point {i}", work, programs, args.rounds)
            workloads.made.cache_clear()
            times, ratio = found["times"], found["ratios"][OURS]["best"]
            best = min((peer for peer in times if peer != OURS), key=lambda peer: times[peer].median)
            judged = verdict(ratio.of_medians, TARGET, found["cpus used by others"])
            error = "random" if work.is_random else f"{found['loss errors'][OURS]:.0e}"
            print(f"\n{i}: {work}")
            table.row(["", *(times.get(program, "–") for program in programs), ratio, best, judged, error])
            for program, why in found["absent"].items():
                print(f"{program}: cannot run here: {why}")
            worst[f"{i}: {work}"] = ratio.of_medians
        slowest = max(worst, key=lambda name: worst[name])
        slower = sum(ratio > TARGET for ratio in worst.values())
        print(f"\nratios to the best peer: geometric mean {exp(fmean(map(log, worst.values()))):.3f}", end="; ")
        print(f"above {TARGET:g} in {slower} of {len(worst)}; the worst is {worst[slowest]:.3f}, of {slowest}")


# ---------------------------------------------------------------- the points
def points(seed: int) -> Iterator[Workload]:
    """Networks without end, always the same for a seed."""
    rng = Random(seed)
    for family in cycle((plain, with_dropout, skip_gram, plain, with_layer_norm, bag_of_words, plain, residual)):
        yield family(rng)


def workload(rng: Random, make: Callable[[int], tuple[Layer, ...]]) -> Workload:
    """A network that is made for a number of outputs, with a loss, batch and optimizer at random."""
    from benchmarks.networks import Workload

    loss = rng.choice(LOSSES)
    outputs = 10 if loss == "cross_entropy" else rng.choice((1, 1, 10))
    return Workload(make(outputs), loss, rng.choice(BATCHES), rng.choice(OPTIMIZERS), rate=0.1)


def plain(rng: Random, *after: Layer) -> Workload:
    """One to six layers."""
    from benchmarks.networks import mlp

    depth, activation = rng.randint(1, 6), rng.choice(ACTIVATIONS)
    width = rng.choice(WIDTHS)
    sizes = [rng.choice(WIDTHS), *(width if rng.random() < 0.5 else rng.choice(WIDTHS) for _ in range(depth - 1))]
    return workload(rng, lambda outputs: tuple(mlp([*sizes, outputs], activation, *after)))


def with_dropout(rng: Random) -> Workload:
    from benchmarks.networks import Layer

    return plain(rng, Layer("dropout", (rng.choice((10, 50)),)))


def with_layer_norm(rng: Random) -> Workload:
    """Layer norm after every activation, all of one width."""
    from benchmarks.networks import Layer, mlp

    depth, width, activation = rng.randint(2, 6), rng.choice(WIDTHS[2:]), rng.choice(ACTIVATIONS)
    norm = Layer("layer_norm", (width,))
    return workload(rng, lambda outputs: tuple(mlp([width] * depth + [outputs], activation, norm)))


def residual(rng: Random) -> Workload:
    from benchmarks import networks
    from benchmarks.networks import Layer

    inputs, width, blocks = rng.choice(WIDTHS), rng.choice((32, 64, 128, 256)), rng.randint(1, 4)
    inner = [networks.residual(width, rng.choice((1, 2, 4)) * width)] * blocks
    first = Layer("linear", (inputs, width))
    return workload(rng, lambda outputs: (first, *inner, Layer("linear", (width, outputs))))


def skip_gram(rng: Random) -> Workload:
    """Word vectors: a word, a word beside it, and 5 to 15 drawn words."""
    from benchmarks.networks import Layer, Workload

    table = Layer("skip_gram", (rng.choice((1000, 5000, 10000)), rng.choice((32, 64, 100))))
    words = 2 + rng.choice((5, 10, 15))
    loss = "binary_cross_entropy_with_logits"
    return Workload((table,), loss, rng.choice(BATCHES), rng.choice(OPTIMIZERS), words, rate=0.1)


def bag_of_words(rng: Random) -> Workload:
    """Word vectors: the word between 4 to 10 others, among all of them."""
    from benchmarks.networks import Layer, Workload

    rows, width = rng.choice((1000, 2000)), rng.choice((32, 64, 100))
    layers = Layer("embedding", (rows, width)), Layer("mean"), Layer("linear", (width, rows))
    return Workload(layers, "cross_entropy", rng.choice(BATCHES), rng.choice(OPTIMIZERS), rng.choice((4, 10)), rate=0.1)


if __name__ == "__main__":
    main()
