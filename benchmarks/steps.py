"""Time full training steps (forward, backward, optimizer) of gradflow, compiled and eager, beside PyTorch and JAX.

All run in this process, in turns, on the same batch from the same initial weights, after their first losses have been
checked against float64. See benchmarks/README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    Neighbours,
    Ratio,
    Table,
    hold_threads,
    interleave,
    number,
    parser,
    recorded,
    timer,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.common import Timing
    from benchmarks.networks import Workload
    from benchmarks.workloads import Contender, Targets

USUAL = ("gradflow-numba-compiled", "torch", "jax")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=11)
    arguments.add_argument("names", nargs="*", help="workloads: tiny wide mnist deep big residual (default: all)")
    arguments.add_argument("--programs", nargs="+", default=USUAL, help="what to compare (default: %(default)s)")
    arguments.add_argument("--all", action="store_true", help="compare all programs")
    arguments.add_argument("--no-jax", action="store_true", help="leave JAX out")
    arguments.add_argument("--profile", action="store_true", help="also say where the time of compiled steps goes")
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)

    from benchmarks import workloads
    from benchmarks.ceilings import product_rates

    names = args.names or list(workloads.WORKLOADS)
    if unknown := set(names) - set(workloads.WORKLOADS):
        arguments.error(f"no workload {', '.join(unknown)}; there are {', '.join(workloads.WORKLOADS)}")
    programs = list(workloads.OPPONENTS if args.all else args.programs)
    if unknown := set(programs) - set(workloads.OPPONENTS):
        arguments.error(f"no program {', '.join(unknown)}; there are {', '.join(workloads.OPPONENTS)}")
    programs = [program for program in programs if program != "jax" or not args.no_jax]
    hold_torch(threads)
    with recorded("steps", threads, args.rounds, args.json) as results:
        ceiling = results["ceiling"] = product_rates(threads, args.rounds)
        print(f"matrix products: {ceiling} GFLOP/s; × floor: in units of the time of a step's products at this rate")
        table = step_table()
        for name in names:
            work, targets = workloads.WORKLOADS[name], workloads.TARGETS[name]
            results[name] = compare(name, work, programs, args.rounds)
            floor = work.operations() / ceiling.max / 1e3
            show(table, name, results[name], targets, floor)
        print("\nratios: of the medians (median of the ratios within each round)")
        for name in names if args.profile else ():
            results[name]["profile"] = profiles(name, programs)


def hold_torch(threads: int) -> None:
    """Tell PyTorch, if it is there, how many threads to use."""
    import torch

    torch.set_num_threads(threads)


# ---------------------------------------------------------------- a comparison
def compare(name: str, work: Workload, programs: Sequence[str], rounds: int) -> dict[str, Any]:
    """Check that programs compute the same, then time them; what cannot run at all is named with the reason."""
    from benchmarks import workloads
    from benchmarks.workloads import begun

    contenders: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for program in programs:
        try:
            contenders[program] = workloads.made(program, work)
            contenders[program].step()
        except Exception as error:  # of another project, which may need what this machine lacks
            if program.startswith("gradflow"):
                raise
            absent[program] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    errors = workloads.check(name, work, contenders)
    timers = {
        program: timer("step()", "step = begun(program, work)", begun=begun, program=program, work=work)
        for program in contenders
    }
    neighbours = Neighbours()
    times = interleave(timers, rounds)
    return {
        "workload": str(work),
        "loss errors": errors,
        "times": times,
        "absent": absent,
        "cpus used by others": neighbours.cpus(),
        "ratios": {ours: ratios(ours, times) for ours in times if ours.startswith("gradflow")},
    }


def ratios(ours: str, times: Mapping[str, Timing]) -> dict[str, Ratio]:
    """To each peer, and to the best of them."""
    from benchmarks.workloads import PEERS

    peers = [peer for peer in PEERS if peer in times]
    found = {peer: Ratio(times[ours], times[peer]) for peer in peers}
    if peers:
        found["best"] = found[min(peers, key=lambda peer: times[peer].median)]
    return found


def profiles(name: str, programs: Sequence[str]) -> dict[str, Any]:
    """Print and return how long each item of the compiled steps takes, in one thread."""
    from benchmarks import workloads

    found = {}
    for program in programs:
        if program.endswith("-compiled"):
            profile = workloads.made(program, workloads.WORKLOADS[name]).step.func.profile(0.5)
            print(f"\n{name} {program}\n{profile}")
            items = [item._asdict() for item in profile.items]
            found[program] = {"items": items, "seconds": profile.seconds, "limit": profile.limit}
    return found


def step_table() -> Table:
    widths = dict.fromkeys(("to JAX", "to PyTorch", "to the best"), 15)
    return Table({"µs a step": 32, "median (min–max)": 22} | widths | {"× floor": 8, "target": 28, "loss error": 10})


def show(table: Table, name: str, found: Mapping[str, Any], targets: Targets | None, floor: float) -> None:
    """A row for each program."""
    for program, timing in found["times"].items():
        mine = found["ratios"].get(program, {})
        judged = ""
        if targets is not None and mine:
            aim, peer = targets.of(program)
            if peer in mine and aim is not None:
                judged = f"{peer} {verdict(mine[peer].of_medians, aim, found['cpus used by others'])}"
        columns = [mine.get(peer, "") for peer in ("jax", "torch", "best")]
        times_floor = number(timing.median / floor)
        error = f"{found['loss errors'][program]:.0e}"
        table.row([f"{name} {program}", timing, *columns, times_floor, judged, error])
    for program, why in found["absent"].items():
        print(f"{name} {program}: cannot run here: {why}")


if __name__ == "__main__":
    main()
