"""Time single operations, the sweep, the import and the data loader of gradflow, beside NumPy, PyTorch and JAX.

Peers that are not installed are left out. See benchmarks/README.md.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    Neighbours,
    Ratio,
    Table,
    Timing,
    hold_threads,
    interleave,
    parser,
    recorded,
    timer,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LENGTH = 500  # nodes in the chain whose sweep is timed


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, rounds=15)
    args = arguments.parse_args(argv)
    threads = hold_threads(args.threads)
    with recorded("ops", threads, args.rounds, args.json) as results:
        results["operations"] = operations(args.rounds)
        results["sweep"] = sweeps(args.rounds)
        results["import"] = imports(args.rounds)
        results["loader"] = loaders(args.rounds, threads)


def _show(
    unit: str, rows: dict[str, Timing], neighbours: Neighbours, targets: Mapping[str, float]
) -> dict[str, Timing]:
    others = neighbours.cpus()
    table = Table({unit: 46, "median (min–max)": 24, "target": 24})
    for name, timing in rows.items():
        table.row([name, timing, verdict(timing.median, targets.get(name), others)])
    return rows


# ---------------------------------------------------------------- one operation
def operations(rounds: int) -> dict[str, Timing]:
    """Element-wise operations on 8 floats: what a call costs."""
    import numpy as np

    import gradflow as gf

    a = np.linspace(-1, 1, 8, dtype=np.float32)
    x, c = gf.tensor(a, requires_grad=True), gf.tensor(a)
    timers = {
        "x * x, recorded": timer("x * x", x=x),
        "x * x, constant": timer("x * x", x=c),
        "x * 2.5, recorded": timer("x * 2.5", x=x),
        "x + x, recorded": timer("x + x", x=x),
        "tanh(x), recorded": timer("tanh(x)", x=x, tanh=gf.tanh),
        "tanh(x), constant": timer("tanh(x)", x=c, tanh=gf.tanh),
        "NumPy a * a": timer("a * a", a=a),
        "NumPy tanh(a)": timer("tanh(a)", a=a, tanh=np.tanh),
    }
    if find_spec("torch"):
        import torch

        p = torch.from_numpy(a.copy()).requires_grad_()
        timers |= {
            "PyTorch p * p, recorded": timer("p * p", p=p),
            "PyTorch tanh(p), recorded": timer("tanh(p)", p=p, tanh=torch.tanh),
        }
    neighbours = Neighbours()
    times = interleave(timers, rounds, slot=0.01, rest=0)
    return _show("µs", times, neighbours, {"x * x, recorded": 1.3})


# ---------------------------------------------------------------- the sweep
def _chain(link: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
    def forward() -> Any:
        z = x
        for _ in range(LENGTH):
            z = link(z)
        return z

    return forward


def sweeps(rounds: int) -> dict[str, Timing]:
    """Backward through a chain of small operations, per node: the whole, and above what its kernels take alone."""
    import numpy as np

    import gradflow as gf

    a = np.ones(8, np.float32)  # a chain of products of anything else would soon hold subnormal numbers
    x, seed = gf.tensor(a, requires_grad=True), gf.ones_like(gf.tensor(a))
    kinds: dict[str, tuple[Callable[[], Any], Any]] = {
        "one input": (_chain(lambda z: -z, x), seed),
        "two inputs": (_chain(lambda z: z * x, x), seed),
    }
    if find_spec("torch"):
        import torch

        p = torch.from_numpy(a.copy()).requires_grad_()
        kinds["PyTorch, one input"] = (_chain(lambda z: -z, p), torch.ones(8))
        kinds["PyTorch, two inputs"] = (_chain(lambda z: z * p, p), torch.ones(8))
    timers = {}
    for kind, (forward, g) in kinds.items():
        timers[f"{kind}: forward"] = timer("forward()", forward=forward)
        timers[f"{kind}: both"] = timer("forward().backward(g)", forward=forward, g=g)
    loop = f"for _ in range({LENGTH}): "
    timers["one input: kernels"] = timer(loop + "-g", g=a)  # its derivative
    timers["two inputs: kernels"] = timer(loop + "g * a; g * a; add(g, a)", g=a, a=a, add=np.add)  # two, and their sum
    neighbours = Neighbours()
    times = interleave(timers, rounds, slot=0.03, rest=0)

    def per_node(kind: str, *without: str) -> Timing:
        rounds = zip(*(times[f"{kind}: {part}"].rounds for part in ("both", *without)), strict=True)
        return Timing([(both - sum(less)) / LENGTH for both, *less in rounds])

    rows = {}
    for kind in kinds:
        rows[f"backward a node, {kind}"] = per_node(kind, "forward")
    for kind in ("one input", "two inputs"):
        rows[f"kernels of a node, {kind}"] = Timing([us / LENGTH for us in times[f"{kind}: kernels"].rounds])
        rows[f"backward a node above its kernels, {kind}"] = per_node(kind, "forward", "kernels")
    targets = {f"backward a node above its kernels, {kind}": t for kind, t in (("one input", 0.7), ("two inputs", 1.2))}
    return _show("µs", rows, neighbours, targets)


# ---------------------------------------------------------------- import
FIRST_GRADIENT = {
    "gradflow": "x = gradflow.tensor([1.0, 2.0], requires_grad=True); (x * x).sum().backward()",
    "torch": "x = torch.tensor([1.0, 2.0], requires_grad=True); (x * x).sum().backward()",
    "jax": "jax.grad(lambda x: (x * x).sum())(jax.numpy.array([1.0, 2.0])).block_until_ready()",
}


def _in_fresh_interpreter(*statements: str) -> list[float]:
    """Milliseconds that each statement takes, one after the other."""
    lines = ["from time import perf_counter as now", "times = [now()]"]
    for statement in statements:
        lines += [statement, "times.append(now())"]
    lines += ["print(*(1e3 * (b - a) for a, b in zip(times, times[1:])))"]
    # isolated: neither the folder we are in nor PYTHONDONTWRITEBYTECODE changes what is measured
    command = [sys.executable, "-I", "-c", "\n".join(lines)]
    return [float(ms) for ms in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def imports(rounds: int) -> dict[str, Timing]:
    """Import times and, as what is loaded late is paid for too, the way to a first gradient, in fresh interpreters."""
    peers = {peer: name for peer, name in {"torch": "PyTorch", "jax": "JAX"}.items() if find_spec(peer)}
    found: dict[str, list[float]] = {}
    neighbours = Neighbours()
    for i in range(-1, rounds):  # the first turn compiles and fills the file cache
        base, above, first = _in_fresh_interpreter("import numpy", "import gradflow", FIRST_GRADIENT["gradflow"])
        turn = {"import gradflow above NumPy": above, "import gradflow with NumPy": base + above, "import NumPy": base}
        turn["gradflow to the first gradient, with NumPy"] = base + above + first
        for peer, name in peers.items():
            above, first = _in_fresh_interpreter(f"import {peer}", FIRST_GRADIENT[peer])
            turn |= {f"import {name}": above, f"{name} to the first gradient": above + first}
        for name, ms in turn.items() if i >= 0 else ():
            found.setdefault(name, []).append(ms)
    rows = {name: Timing(times) for name, times in found.items()}
    return _show("ms", rows, neighbours, {"import gradflow above NumPy": 40, "import gradflow with NumPy": 120})


# ---------------------------------------------------------------- the loader
def loaders(rounds: int, threads: int, items: int = 10_000, batch: int = 128) -> dict[str, Any]:
    """One shuffled epoch over images like MNIST's."""
    import numpy as np

    import gradflow as gf

    rng = np.random.default_rng(0)
    images, labels = rng.random((items, 784), dtype=np.float32), rng.integers(0, 10, items)

    def epoch(loader: Any) -> Callable[[], None]:
        def run() -> None:
            for _ in loader:
                pass

        return run

    ours = gf.data.DataLoader(gf.data.TensorDataset(images, labels), batch, shuffle=True, seed=0)
    timers = {"gradflow DataLoader": timer("epoch()", epoch=epoch(ours))}
    if find_spec("torch"):
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        torch.set_num_threads(threads)
        dataset = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
        timers["PyTorch DataLoader"] = timer("epoch()", epoch=epoch(DataLoader(dataset, batch, shuffle=True)))
    neighbours = Neighbours()
    times = interleave(timers, rounds, slot=0.05, rest=0)
    rows = {name: Timing([us / len(ours) for us in found.rounds]) for name, found in times.items()}
    _show(f"µs a batch of {batch} from {items:,} rows of 784", rows, neighbours, {})
    results: dict[str, Any] = dict(rows)
    for name, timing in rows.items():
        line = f"{name}: {batch / timing.median:.2f} million items a second"
        if timing is not rows["gradflow DataLoader"]:
            results["ratio"] = Ratio(rows["gradflow DataLoader"], timing)
            line += f"; gradflow takes {results['ratio']} of its time"
        print(line)
    return results


if __name__ == "__main__":
    main()
