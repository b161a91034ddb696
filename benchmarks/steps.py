"""Time full training steps (forward, backward, Adam) of gradflow beside eager PyTorch and jitted JAX.

All run in this process, in turns, on the same batch from the same initial weights, after their first losses have been
checked against float64. See benchmarks/README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.common import Neighbours, Ratio, Table, hold_threads, interleave, parser, recorded, timer, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.workloads import Step


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=11)
    arguments.add_argument("names", nargs="*", help="workloads: tiny wide mnist deep big (default: all)")
    arguments.add_argument("--no-jax", action="store_true", help="leave JAX out")
    arguments.add_argument("--profile", action="store_true", help="also say where the time of a gradflow step goes")
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)

    import torch

    from benchmarks import profile_step, workloads
    from benchmarks.workloads import begun

    torch.set_num_threads(threads)
    names = args.names or list(workloads.WORKLOADS)
    if unknown := set(names) - set(workloads.WORKLOADS):
        arguments.error(f"no workload {', '.join(unknown)}; there are {', '.join(workloads.WORKLOADS)}")
    peers = {"torch": "PyTorch"} if args.no_jax else {"torch": "PyTorch", "jax": "JAX"}
    programs = ["gradflow", *peers]
    with recorded("steps", threads, args.rounds, args.json) as results:
        table = Table(
            {"µs a step": 9}
            | dict.fromkeys(programs, 24)
            | {f"to {peer}": 15 for peer in peers.values()}
            | {"target to PyTorch": 24, "loss error": 10}
        )
        for name in names:
            work = workloads.WORKLOADS[name]
            steps: dict[str, Step] = {program: workloads.OPPONENTS[program](work) for program in programs}
            errors = workloads.check(name, steps)
            timers = {
                program: timer("step()", "step = begun(program, work)", begun=begun, program=program, work=work)
                for program in programs
            }
            neighbours = Neighbours()
            times = interleave(timers, args.rounds)
            others = neighbours.cpus()
            ratios = {peer: Ratio(times["gradflow"], times[peer]) for peer in peers}
            met = verdict(ratios["torch"].of_medians, work.target, others)
            table.row([name, *times.values(), *ratios.values(), met, f"{max(errors.values()):.0e}"])
            results[name] = {"workload": str(work), "target": work.target, "loss errors": errors}
            results[name] |= {"times": times, "ratios": ratios, "cpus used by others": others}
        print("\nratios: of the medians (median of the ratios within each round)")
        for name in names if args.profile else ():
            results[name]["profile"] = profile_step.report(name, args.rounds)


if __name__ == "__main__":
    main()
