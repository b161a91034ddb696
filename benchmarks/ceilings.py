"""Measure this machine's ceilings: how fast it multiplies matrices, and how fast it moves memory.

A training step can be no faster than its matrix products at the first, nor than the traffic of what does not fit into
the caches at the second. See benchmarks/README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.common import Table, Timing, hold_threads, interleave, parser, recorded, timer

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE = 1024  # of the matrices: larger ones are not faster
STREAM = 1 << 26  # bytes of each array that is streamed: larger than caches are


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=7)
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)
    with recorded("ceilings", threads, args.rounds, args.json) as results:
        table = Table({"ceiling": 46, "median (min–max)": 24, "unit": 10})
        for count in sorted({1, threads}):
            rate = results[f"products, {count} threads"] = product_rates(count, args.rounds)
            table.row([f"matrix products, float32, {count} thread{'s' * (count > 1)}", rate, "GFLOP/s"])
        for name, rate in stream_rates(args.rounds).items():
            results[name] = rate
            table.row([name, rate, "GB/s"])


def product_rates(threads: int, rounds: int) -> Timing:
    """GFLOP/s of float32 matrix products by NumPy's BLAS."""
    import numpy as np

    import gradflow as gf

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIDE, SIDE)).astype(np.float32) for _ in range(2))
    out = np.empty_like(a)
    before = gf.get_num_threads()
    gf.set_num_threads(threads)
    try:
        times = interleave({"products": timer("np.matmul(a, b, out)", np=np, a=a, b=b, out=out)}, rounds)["products"]
    finally:
        gf.set_num_threads(before)
    return Timing([2e-3 * SIDE**3 / us for us in times.rounds])


def stream_rates(rounds: int) -> dict[str, Timing]:
    """GB/s of one thread that copies, and of one that scales and adds; what is written is counted once."""
    import numpy as np

    a, b = np.ones(STREAM // 4, np.float32), np.ones(STREAM // 4, np.float32)
    timers = {
        "copy, a[:] = b, 1 thread": timer("np.copyto(a, b)", np=np, a=a, b=b),
        "accumulate, a += b, 1 thread": timer("np.add(a, b, a)", np=np, a=a, b=b),
    }
    moved = dict(zip(timers, (2 * STREAM, 3 * STREAM), strict=True))
    times = interleave(timers, rounds, rest=0)
    return {name: Timing([moved[name] / us / 1e3 for us in timing.rounds]) for name, timing in times.items()}


if __name__ == "__main__":
    main()
