"""The benchmarks run, and refuse to compare programs that compute different things. Nothing here judges a time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, workloads
from benchmarks.common import Ratio, Timing, timer
from benchmarks.workloads import WORKLOADS, DisagreementError, Step

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
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    printed, results = run("steps", "tiny", "--threads", "1", "--profile")
    assert set(results["tiny"]["times"]) == {"gradflow", "torch", "jax"}
    assert len(results["tiny"]["times"]["jax"]["rounds"]) == 1
    assert set(results["tiny"]["profile"]["parts"]) == {"forward", "loss", "zero_grad", "backward", "optimizer"}
    assert "≤ 0.16" in printed and "load average" in printed and "threads: 1" in printed


def test_steps_without_jax(run: Run) -> None:
    pytest.importorskip("torch")
    _, results = run("steps", "tiny", "--no-jax")
    assert set(results["tiny"]["ratios"]) == {"torch"}


def test_steps_knows_its_workloads() -> None:
    pytest.importorskip("torch")
    done = launch("steps", "huge")
    assert done.returncode == 2 and "no workload huge; there are tiny, wide" in done.stderr


def test_ops(run: Run) -> None:
    printed, results = run("ops")
    assert set(results) == {"operations", "sweep", "import", "loader"}
    assert results["operations"]["x * x, recorded"]["median"] > results["operations"]["NumPy a * a"]["median"] > 0
    assert "import gradflow above NumPy" in printed


def test_anomaly(run: Run) -> None:
    printed, results = run("anomaly", "tiny", "--threads", "1")
    assert results["tiny"]["ratio"]["of_medians"] > 1 and len(results["tiny"]["times"]["on"]["rounds"]) == 1
    assert "≤ 3" in printed


def test_profile_step(run: Run) -> None:
    _, results = run("profile_step", "tiny")
    found = {(row["kernel"], row["part"]): row["calls"] for row in results["tiny"]["kernels"]}
    assert found["linear", "forward"] == 2 == found["linear_vjp_weight", "backward"]
    assert found["adam", "optimizer"] == 1


def test_profile_leaves_the_namespace_as_it_was() -> None:
    from benchmarks.profile_step import report

    namespace = workloads.gradflow_training(WORKLOADS["tiny"]).x._xp
    workloads.gradflow_step(WORKLOADS["tiny"])()
    before = dict(vars(namespace))
    report("tiny", 1)
    assert {name: vars(namespace)[name] for name in before} == before


# ---------------------------------------------------------------- only equals are compared
@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "big"])
@pytest.mark.parametrize("opponent", workloads.OPPONENTS)
def test_opponents_train_alike(name: str, opponent: str) -> None:
    for peer in {"torch", opponent} - {"gradflow"}:
        pytest.importorskip(peer)
    workloads.check(name, {opponent: workloads.OPPONENTS[opponent](WORKLOADS[name])})


def other_rate(make: Callable[..., Step], name: str) -> Step:
    return make(WORKLOADS[name], lr=1.1 * workloads.LR)


def other_network(make: Callable[..., Step], name: str) -> Step:
    activation = "tanh" if WORKLOADS[name].activation == "relu" else "relu"
    return make(WORKLOADS[name]._replace(activation=activation))


@pytest.mark.parametrize("change", [other_rate, other_network])
@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "big"])
def test_a_different_opponent_is_refused(name: str, change: Callable[..., Step]) -> None:
    pytest.importorskip("torch")
    honest = workloads.gradflow_step(WORKLOADS[name])
    with pytest.raises(DisagreementError, match=f"impostor computes something else on {name}"):
        workloads.check(name, {"gradflow": honest, "impostor": change(workloads.torch_step, name)})


def test_nan_is_refused() -> None:
    pytest.importorskip("torch")
    from gradflow import tensor

    with pytest.raises(DisagreementError):
        workloads.check("tiny", {"nothing": partial(tensor, float("nan"))})


def test_same_data_at_every_call() -> None:
    first, second = WORKLOADS["deep"].data(), WORKLOADS["deep"].data()
    assert (first.x == second.x).all() and (first.layers[7][0] == second.layers[7][0]).all()
    assert len(first.layers) == 21 and first.layers[-1][0].shape == (10, 64)


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
