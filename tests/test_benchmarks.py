"""The benchmarks run, and refuse to compare programs that compute different things. Nothing here judges a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import cold, common, epoch, grid, workloads
from benchmarks.common import Ratio, Timing, timer
from benchmarks.networks import Layer, Workload, flat
from benchmarks.workloads import WORKLOADS, Contender, DisagreementError

ROOT = Path(__file__).parent.parent
Run = Callable[..., tuple[str, dict[str, Any]]]


def launch(benchmark: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """What a benchmark prints in its shortest run, and the results it writes."""

    def run(benchmark: str, *arguments: str) -> tuple[str, dict[str, Any]]:
        record = tmp_path / "results" / f"{benchmark}.json"
        done = launch(benchmark, "--rounds", "1", "--json", str(record), *arguments)
        assert done.returncode == 0, done.stderr
        written = json.loads(record.read_text())
        assert written["benchmark"] == benchmark and len(written["load_after"]) == 3
        return done.stdout, written["results"]

    return run


# ---------------------------------------------------------------- each runs
def test_steps(run: Run) -> None:
    for peer in ("torch", "jax", "numba"):
        pytest.importorskip(peer)
    printed, results = run("steps", "tiny", "--threads", "1", "--profile")
    ours = "gradflow-numba-compiled"
    assert set(results["tiny"]["times"]) == {ours, "torch", "jax"}
    assert len(results["tiny"]["times"]["jax"]["rounds"]) == 1
    assert set(results["tiny"]["ratios"][ours]) == {"torch", "jax", "best"}
    assert results["tiny"]["profile"][ours]["seconds"] > 0
    assert "jax ≤ 0.09" in printed and "load average" in printed and "threads: 1" in printed


def test_steps_without_jax(run: Run) -> None:
    pytest.importorskip("torch")
    programs = ["gradflow-numpy", "gradflow-numpy-compiled", "torch", "jax"]
    printed, results = run("steps", "tiny", "--no-jax", "--programs", *programs)
    assert {name: set(found) for name, found in results["tiny"]["ratios"].items()} == {
        "gradflow-numpy": {"torch", "best"},
        "gradflow-numpy-compiled": {"torch", "best"},
    }
    assert "torch ≤ 0.16" in printed


def test_a_peer_that_cannot_run_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from benchmarks import steps

    def broken(work: Workload) -> Contender:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setitem(workloads.OPPONENTS, "torch-compile", broken)
    found = steps.compare("tiny", WORKLOADS["tiny"], ["gradflow-numpy", "torch-compile"], 1)
    steps.show(steps.step_table(), "tiny", found, None, 1.0)
    assert "tiny torch-compile: cannot run here: RuntimeError: no C++ compiler\n" in capsys.readouterr().out
    monkeypatch.setitem(workloads.OPPONENTS, "gradflow-numba", broken)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):  # gradflow has no excuse
        steps.compare("tiny", WORKLOADS["tiny"], ["gradflow-numba"], 1)


def test_steps_knows_its_workloads() -> None:
    pytest.importorskip("torch")
    done = launch("steps", "huge")
    assert done.returncode == 2 and "no workload huge; there are tiny, wide" in done.stderr
    done = launch("steps", "tiny", "--programs", "caffe")
    assert done.returncode == 2 and "no program caffe; there are gradflow-numba-compiled" in done.stderr


def test_ops(run: Run) -> None:
    printed, results = run("ops")
    assert set(results) == {"operations", "sweep", "import", "loader"}
    assert results["operations"]["x * x, recorded"]["median"] > results["operations"]["NumPy a * a"]["median"] > 0
    assert "import gradflow above NumPy" in printed


def test_anomaly(run: Run) -> None:
    printed, results = run("anomaly", "tiny", "--threads", "1")
    assert results["tiny"]["ratio"]["of_medians"] > 1 and len(results["tiny"]["times"]["on"]["rounds"]) == 1
    assert "≤ 3" in printed


def test_grid(run: Run) -> None:
    for peer in ("torch", "jax", "numba"):
        pytest.importorskip(peer)
    printed, results = run("grid", "--points", "1", "--seed", "2")
    assert set(results) == {"0"} and set(results["0"]["times"]) == {"gradflow-numba-compiled", "torch", "jax"}
    assert "geometric mean" in printed and "of 1; the worst is" in printed


def test_ceilings(run: Run) -> None:
    _, results = run("ceilings", "--threads", "1")
    assert len(results) == 3 and all(rate["median"] > 1 for rate in results.values())


def test_dispatch(run: Run) -> None:
    pytest.importorskip("numba")
    printed, results = run("dispatch")
    for backend in ("numba", "numpy"):
        assert 0 < results[backend]["times"]["empty"]["median"] < results[backend]["times"]["whole"]["median"]
    assert "guard and dispatch, numba" in printed


def test_cold(run: Run) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    _, results = run("cold", "--programs", "gradflow-numpy", "torch", "jax")
    for program in ("gradflow-numpy", "torch", "jax"):
        assert 0 < results[program]["after the imports"]["median"] < results[program]["whole"]["median"]


def test_cold_starts_begin_with_the_caches_that_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[tuple[int, ...], str]] = []

    def start(program: str, *sizes: int, **environment: str) -> dict[str, float]:
        assert program == "cold_gradflow" and environment["GRADFLOW_BACKEND"] == "numba"
        (folder,) = {Path(environment[name]).parent for name in ("NUMBA_CACHE_DIR", "GRADFLOW_CACHE_DIR")}
        begun.append((sizes, str(folder.relative_to(tmp_path))))
        return {"seconds": 2.0, "now": 3.0, "imported": 2.5, "loss": 1.0}

    monkeypatch.setattr(cold, "start_fresh", start)
    found = cold.starts(["gradflow-numba-filled", "gradflow-numba-bare"], 2, tmp_path)
    assert [folder for _, folder in begun] == ["filled", "filled", "filled", "bare 0", "filled", "bare 1"]
    filling, first, second = ({sizes for sizes, _ in part} for part in (begun[:2], begun[2:4], begun[4:]))
    assert len(first) == len(second) == 1 and len(filling | first | second) == 4  # no network is seen twice
    assert found["gradflow-numba-bare"][0].rounds == [2.0, 2.0]
    assert found["gradflow-numba-bare"][1].rounds == [0.5, 0.5]


def test_epoch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for peer in ("jax", "sklearn"):
        pytest.importorskip(peer)
    monkeypatch.delenv("GRADFLOW_DATA_DIR", raising=False)
    programs = ("gradflow-numpy", "jax", "sklearn")  # PyTorch takes the longest to start
    printed, results = run("epoch", "--images", "1000", "--programs", *programs)
    assert "random images" in printed and results["gradflow-numpy"]["ratio"]["of_medians"] == 1
    for program in programs:
        assert results[program]["seconds"]["median"] > 0 and 3e7 < results[program]["peak"] < 3e9
        assert 0 < results[program]["accuracy"] < 0.3  # of random labels


def test_profile_step(run: Run) -> None:
    _, results = run("profile_step", "tiny")
    found = {(row["kernel"], row["part"]): row["calls"] for row in results["tiny"]["kernels"]}
    assert found["linear", "forward"] == 2 == found["linear_vjp_weight", "backward"]
    assert found["adam", "optimizer"] == 1


def test_profile_leaves_the_namespace_as_it_was() -> None:
    from benchmarks.profile_step import report

    namespace = workloads.gradflow_training(WORKLOADS["tiny"]).x._xp
    workloads.gradflow_contender(WORKLOADS["tiny"]).step()
    before = dict(vars(namespace))
    report("tiny", 1)
    assert {name: vars(namespace)[name] for name in before} == before


# ---------------------------------------------------------------- only equals are compared
SMALL = [name for name in WORKLOADS if name != "big"]
NEEDS = {"gradflow-numba": "numba", "gradflow-numba-compiled": "numba", "torch-compile": "torch", "jax": "jax"}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("opponent", [name for name in workloads.OPPONENTS if name != "torch-compile"])
def test_opponents_train_alike(name: str, opponent: str) -> None:
    for package in {"torch", NEEDS.get(opponent, "torch")}:
        pytest.importorskip(package)
    workloads.check(name, WORKLOADS[name], {opponent: workloads.OPPONENTS[opponent](WORKLOADS[name])})


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [
        (grid.plain, "adam"),
        (grid.plain, "adamw"),
        (grid.plain, "sgd"),
        (grid.with_layer_norm, "adamw"),
        (grid.residual, "sgd"),
        (grid.skip_gram, "sgd"),
        (grid.bag_of_words, "adamw"),
    ],
)
def test_points_of_the_grid_train_alike(family: Callable[[Random], Workload], optimizer: str) -> None:
    for peer in ("torch", "jax"):
        pytest.importorskip(peer)
    work = family(Random(optimizer))._replace(optimizer=optimizer, batch=16)
    opponents = ("gradflow-numpy", "gradflow-numpy-compiled", "torch", "jax")
    errors = workloads.check(str(work), work, {name: workloads.OPPONENTS[name](work) for name in opponents})
    assert set(errors) == set(opponents)


def test_points_belong_to_their_seed() -> None:
    first, same, other = (list(islice(grid.points(seed), 8)) for seed in (0, 0, 1))
    assert first == same != other
    assert sum(work.is_random for work in first) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # PyTorch's own affair
def test_torch_compile_trains_alike() -> None:
    pytest.importorskip("torch")
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    work = WORKLOADS["tiny"]
    workloads.check("tiny", work, {"torch-compile": workloads.torch_compiled_contender(work)})


@pytest.mark.parametrize("opponent", ["gradflow-numpy", "gradflow-numpy-compiled", "torch", "jax"])
def test_a_restart_begins_again(opponent: str) -> None:
    pytest.importorskip(NEEDS.get(opponent, "torch"))
    step, restart = workloads.OPPONENTS[opponent](WORKLOADS["tiny"])
    first = [step().item() for _ in range(4)]
    restart()
    assert [step().item() for _ in range(4)] == pytest.approx(first, rel=1e-6)


def other_rate(work: Workload) -> Workload:
    return work._replace(rate=1.1)


def other_network(work: Workload) -> Workload:
    other = {"relu": "tanh", "tanh": "relu", "gelu": "relu"}

    def changed(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        return tuple(
            layer._replace(kind=other.get(layer.kind, layer.kind), body=changed(layer.body)) for layer in layers
        )

    return work._replace(layers=changed(work.layers))


@pytest.mark.parametrize("change", [other_rate, other_network])
@pytest.mark.parametrize("name", SMALL)
def test_a_different_opponent_is_refused(name: str, change: Callable[[Workload], Workload]) -> None:
    pytest.importorskip("torch")
    work = WORKLOADS[name]
    impostor = workloads.torch_contender(change(work))
    if change is other_network:  # with the same weights
        assert [a.shape for layer in change(work).data().layers for a in layer] == [
            a.shape for layer in work.data().layers for a in layer
        ]
    with pytest.raises(DisagreementError, match=f"impostor computes something else on {name}"):
        workloads.check(name, work, {"gradflow": workloads.gradflow_contender(work), "impostor": impostor})


@pytest.mark.parametrize("percent", [0, 50])
def test_nan_is_refused(percent: int) -> None:
    pytest.importorskip("torch")
    from gradflow import tensor

    work = WORKLOADS["tiny"]
    if percent:
        work = work._replace(layers=(Layer("dropout", (percent,)), *work.layers))
    with pytest.raises(DisagreementError):
        workloads.check("tiny", work, {"nothing": Contender(partial(tensor, float("nan")), lambda: None)})


def test_cold_starts_that_differ_are_refused() -> None:
    cold.check((2, 1), {"a": 1.0, "b": 1.0005})
    for other in (1.01, float("nan")):
        with pytest.raises(RuntimeError, match=r"losses of \(2, 1\) differ"):
            cold.check((2, 1), {"a": 1.0, "b": other})


def test_an_epoch_without_learning_is_refused() -> None:
    epoch.check({"a": [{"accuracy": 0.95}]})
    with pytest.raises(RuntimeError, match="b does not learn"):
        epoch.check({"a": [{"accuracy": 0.95}], "b": [{"accuracy": 0.95}, {"accuracy": 0.1}]})


def test_same_data_at_every_call() -> None:
    first, second = WORKLOADS["deep"].data(), WORKLOADS["deep"].data()
    assert (first.x == second.x).all() and (first.layers[7][0] == second.layers[7][0]).all()
    assert len(first.layers) == 21 and first.layers[-1][0].shape == (10, 64)


def test_operations_are_those_of_the_products() -> None:
    forward, by_weights, by_inputs = (2 * 64 * size for size in (2 * 10 + 10, 2 * 10 + 10, 10))
    assert WORKLOADS["tiny"].operations() == forward + by_weights + by_inputs


def test_networks_are_named_briefly() -> None:
    assert str(WORKLOADS["deep"]) == "20 × [64→64 relu], 64→10, cross_entropy, batch 64"
    assert str(WORKLOADS["residual"]) == (
        "784→128, 2 × [residual (layer_norm 128, 128→512 gelu, 512→128)], 128→10, cross_entropy, batch 128"
    )
    assert [layer.kind for layer in flat(WORKLOADS["residual"].layers)][1:3] == ["layer_norm", "linear"]


# ---------------------------------------------------------------- the arithmetic
def test_ratio_of_medians_and_median_of_ratios() -> None:
    found = Ratio(Timing([1, 2, 9]), Timing([2, 8, 9]))
    assert (found.of_medians, found.per_round) == (0.25, 0.5)


def test_verdict() -> None:
    assert common.verdict(0.75, 0.75) == "≤ 0.75 reached"
    assert common.verdict(0.9, 0.75) == "≤ 0.75 short by 20%"
    assert common.verdict(1.0, None) == ""
    assert common.verdict(0.1, 0.75, others=1.0) == "≤ 0.75 not quiet"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not say what others use")
def test_neighbours_are_noticed() -> None:
    spin = "from time import *; end = perf_counter() + 1\nwhile perf_counter() < end: pass"
    neighbours = common.Neighbours()
    with subprocess.Popen([sys.executable, "-c", spin]):
        time.sleep(0.9)
        assert neighbours.cpus() > 0.3


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    programs = {name: timer("turn()", turn=partial(order.append, name)) for name in "ab"}
    times = common.interleave(programs, 3, slot=1e-5, rest=0)
    assert {name: len(timing.rounds) for name, timing in times.items()} == {"a": 3, "b": 3}
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert turns == ["a", "b", "a", "b", "a", "b"]  # calibration, then ab, ba, ab: equal neighbours have merged
