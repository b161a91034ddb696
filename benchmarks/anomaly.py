"""Time full training steps of gradflow with and without `gf.detect_anomaly()`.

Both run in this process, in turns, from the same initial weights. See benchmarks/README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.common import Neighbours, Ratio, Table, hold_threads, interleave, parser, recorded, timer, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGET = 3.0  # times as long


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=11)
    arguments.add_argument("names", nargs="*", help="workloads: tiny wide mnist deep big residual (default: all)")
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)

    import gradflow as gf
    from benchmarks.workloads import WORKLOADS, begun

    names = args.names or list(WORKLOADS)
    if unknown := set(names) - set(WORKLOADS):
        arguments.error(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    with recorded("anomaly", threads, args.rounds, args.json) as results:
        table = Table({"µs a step": 9, "off": 24, "on": 24, "on to off": 15, "target": 20})
        for name in names:
            both = {"off": "step()", "on": "with hunt: step()"}  # a block for each step: the dearest way to write it
            setup = "step = begun('gradflow-numpy', work)"
            timers = {
                kind: timer(statement, setup, begun=begun, work=WORKLOADS[name], hunt=gf.detect_anomaly())
                for kind, statement in both.items()
            }
            neighbours = Neighbours()
            times = interleave(timers, args.rounds)
            others = neighbours.cpus()
            ratio = Ratio(times["on"], times["off"])
            table.row([name, *times.values(), ratio, verdict(ratio.of_medians, TARGET, others)])
            results[name] = {"workload": str(WORKLOADS[name]), "target": TARGET, "times": times, "ratio": ratio}
            results[name] |= {"cpus used by others": others}
        print("\nratios: of the medians (median of the ratios within each round)")


if __name__ == "__main__":
    main()
