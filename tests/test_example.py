"""examples/train_mlp.py: it reads digits as well as it says, writes what it says, and fails understandably."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gradflow as gf
from gradflow import nn
from gradflow.data import DataLoader, TensorDataset
from gradflow.training import History, accuracy, evaluate, fit

for needed in ("matplotlib", "safetensors", "sklearn"):
    pytest.importorskip(needed)

SCRIPT = Path(__file__).parent.parent / "examples" / "train_mlp.py"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("train_mlp", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(model: nn.Module, split: gf.data.datasets.Split) -> float:
    loader = DataLoader(TensorDataset(*split.test), batch_size=50)
    return evaluate(model, nn.CrossEntropyLoss(), loader, {"accuracy": accuracy})["accuracy"]


def test_main_job(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reached = example.main([])
    assert reached >= 0.97
    printed = capsys.readouterr().out
    assert f"test accuracy {reached:.2%}: {round(180 * reached)} of 180 images" in printed
    assert "1,437 / 180 / 180 images" in printed
    assert "9,610 weights on <backend numpy on cpu>" in printed
    assert "History of 60 epochs" in printed
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["train_mlp_digits.png", "train_mlp_digits.safetensors"]
    assert (out / "train_mlp_digits.png").read_bytes().startswith(b"\x89PNG")
    model = nn.MLP([64, 128, 10])
    model.load_state_dict(gf.load(out / "train_mlp_digits.safetensors"))
    assert measured(model, gf.datasets.digits()) == pytest.approx(reached)


def test_options(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--epochs 2 --batch-size 64 --lr 0.01 --hidden 16 8 --activation tanh --seed 3 --backend numpy --quiet"
    reached = example.main([*options.split(), "--plot", "a/b/figure.pdf", "--checkpoint", "a/weights.safetensors"])
    printed = capsys.readouterr()
    assert printed.out.startswith("test accuracy ") and printed.out.count("\n") == 1
    assert printed.err == ""
    assert (tmp_path / "a/b/figure.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "out").exists()
    model = nn.MLP([64, 16, 8, 10], nn.Tanh)
    model.load_state_dict(gf.load(tmp_path / "a/weights.safetensors"))
    assert measured(model, gf.datasets.digits()) == pytest.approx(reached)


def test_the_seed_decides(example: ModuleType, tmp_path: Path) -> None:
    states = []
    for seed in ("1", "1", "2"):
        example.main(["--epochs", "1", "--hidden", "8", "--seed", seed, "--quiet"])
        states.append((tmp_path / "out/train_mlp_digits.safetensors").read_bytes())
    assert states[0] == states[1] != states[2]


def test_no_hidden_layer_is_logistic_regression(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--hidden", "--epochs", "10"]) > 0.9
    assert "650 weights" in capsys.readouterr().out


def test_mnist_has_its_own_defaults(example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gf.datasets, "mnist", gf.datasets.digits)
    options = example.parse(["--dataset", "mnist"])
    assert (options.hidden, options.epochs, options.batch_size, options.lr) == ([120], 10, 128, 1e-3)
    assert options.label_smoothing == 0.0
    example.main(["--dataset", "mnist", "--epochs", "1", "--quiet"])
    assert (tmp_path / "out/train_mlp_mnist.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epochs 0", "fit got epochs=0"),
        ("--hidden -3", "out_features=-3"),
        ("--batch-size 0", "batch_size=0"),
        ("--lr -1", "lr=-1.0"),
        ("--label-smoothing 2", "label_smoothing=2.0"),
        ("--seed -1", "seed -1"),
        ("--backend numpi", "did you mean 'numpy'?"),
        ("--checkpoint /dev/null/x.safetensors", "/dev/null"),
    ],
)
def test_bad_values(example: ModuleType, options: str, message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        example.main([*options.split(), "--quiet"])
    assert str(caught.value).startswith("train_mlp: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("options", ["--dataset cifar", "--activation gelu", "--epochs many", "--colour"])
def test_bad_options(example: ModuleType, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        example.main(options.split())
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize("package", ["matplotlib", "safetensors", "sklearn"])
def test_a_missing_package_is_told_before_training(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as caught:
        example.main(["--epochs", "1000000"])
    assert package.replace("sk", "scikit-") in str(caught.value)
    assert "pip install" in str(caught.value)
    assert "epoch" not in capsys.readouterr().err


def test_ctrl_c(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was learnt until then is tested, drawn and kept; in the first epoch nothing was."""

    def interrupt(output: gf.Tensor, target: gf.Tensor) -> gf.Tensor:
        raise KeyboardInterrupt

    def stop_in_the_second_epoch(*arguments: object, **options: Any) -> History:
        options["callback"] = lambda history: options["metrics"].update(accuracy=interrupt)
        return fit(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(example, "fit", stop_in_the_second_epoch)
    assert example.main([]) > 0.8
    assert "History of 1 epoch, " in capsys.readouterr().out
    assert (tmp_path / "out/train_mlp_digits.png").exists()
    monkeypatch.setattr(example, "fit", fit)
    monkeypatch.setattr(example, "accuracy", interrupt)
    with pytest.raises(SystemExit, match="interrupted before the first epoch was over"):
        example.main([])


def run(*options: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


def test_from_the_command_line(tmp_path: Path) -> None:
    done = run("--epochs", "1", cwd=tmp_path, GRADFLOW_BACKEND="NumPy")
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    if importlib.util.find_spec("tqdm"):
        assert "epoch 1/1: 100%" in done.stderr
    wrong = run(cwd=tmp_path, GRADFLOW_BACKEND="nunpy")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("train_mlp: GRADFLOW_BACKEND=nunpy names no backend; did you mean 'numpy'?")
    assert "Traceback" not in wrong.stderr
