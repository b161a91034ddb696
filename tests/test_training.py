"""fit, evaluate and accuracy: what is measured, what is restored, and what happens when something goes wrong."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import DataLoader, TensorDataset
from gradflow.errors import (
    ArgumentError,
    DTypeError,
    GradflowError,
    MissingDependencyError,
    ShapeError,
    TracedValueError,
)
from gradflow.training import History, NonFiniteLossError, accuracy, evaluate, fit

Batch = tuple[gf.Tensor, gf.Tensor]


class Line(nn.Module):
    """y = w x, from w = 0; remembers in which mode and grad mode it was called."""

    def __init__(self) -> None:
        self.w = gf.Parameter([0.0])
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        self.calls.append((self.training, gf.is_grad_enabled()))
        return x * self.w


def batches(*rows: tuple[list[float], list[float]]) -> list[Batch]:
    return [(gf.tensor(x), gf.tensor(y)) for x, y in rows]


TWICE = batches(([1.0, 2.0], [2.0, 4.0]), ([3.0], [6.0]))  # y = 2 x


def run(
    model: nn.Module | None = None, train: Any = TWICE, *, lr: float = 0.01, epochs: int = 3, **options: Any
) -> History:
    model = Line() if model is None else model
    optimizer = optim.SGD(model.parameters(), lr=lr)
    return fit(model, nn.MSELoss(), optimizer, train, epochs=epochs, **{"progress": False, **options})


def weights(model: nn.Module) -> list[float]:
    return [float(value) for p in model.parameters() for value in p.numpy().reshape(-1)]


# ------------------------------------------------------------------------------------------------------------ the steps
@pytest.mark.parametrize("compile", [False, True, None])
def test_the_steps_are_those_of_the_loop_written_out(compile: bool | None) -> None:
    gf.manual_seed(0)
    x = gf.random.normal((20, 3)).numpy()
    data = TensorDataset(x, x[:, :1] * 2)
    losses, states = [], []
    for by_hand in (True, False):
        gf.manual_seed(1)
        model = nn.MLP([3, 4, 1], nn.Tanh)
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        loader = DataLoader(data, batch_size=8, shuffle=True, seed=5)
        if by_hand:
            for _ in range(3):
                total = 0.0
                for a, b in loader:
                    loss = gf.mse_loss(model(a), b)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(b)
                losses.append(total / 20)
        else:
            history = fit(model, gf.mse_loss, optimizer, loader, epochs=3, progress=False, compile=compile)
            losses.append(history.train_loss)
        states.append(weights(model))
    if compile is False:
        assert losses[:3] == pytest.approx(losses[3], rel=1e-12)
        assert states[0] == states[1]
    else:  # the same sums in another order
        assert losses[:3] == pytest.approx(losses[3], rel=1e-5)
        assert states[0] == pytest.approx(states[1], rel=1e-4, abs=1e-6)


class Reads(nn.Module):
    """Reads a value in Python, which no program can."""

    def __init__(self) -> None:
        gf.manual_seed(0)
        self.layer, self.mean = nn.Linear(1, 1), nn.Buffer(gf.zeros(1))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        with gf.no_grad():
            self.mean += x.mean(axis=0)
        noise = gf.random.normal(x.shape)
        return self.layer(x + noise) * (2 if x.sum().item() > 0 else 1)


class Counts(Reads):
    """Has an effect beside its result."""

    calls = 0

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        self.calls += 1
        return self.layer(x)


class Ragged(Reads):
    """Is compiled anew for every batch."""

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return self.layer(x)


@pytest.fixture
def on_numba() -> Iterator[None]:
    pytest.importorskip("numba")
    with gf.use_backend("numba"):
        yield


def test_numpy_compiles_on_demand_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = Counts()  # a program would refuse to count
    train = [(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))] * 3
    with caplog.at_level("INFO", "gradflow"):
        fit(model, nn.MSELoss(), optim.Adam(model.parameters()), train, epochs=2, progress=False)
    assert model.calls == 6
    assert not caplog.records
    with pytest.raises(TracedValueError):
        fit(Counts(), nn.MSELoss(), optim.Adam(model.parameters()), train, epochs=1, progress=False, compile=True)


@pytest.mark.parametrize("kind", [Reads, Counts, Ragged])
def test_a_model_that_cannot_be_compiled_runs_eagerly_and_a_line_says_so(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture, on_numba: None
) -> None:
    train = [(np.full((n, 1), n, np.float32), np.full((n, 1), 2 * n, np.float32)) for n in range(1, 12)]
    states = []
    for compile in (False, None):
        model = kind()
        with caplog.at_level("INFO", "gradflow"):
            fit(model, nn.MSELoss(), optim.Adam(model.parameters()), train, epochs=2, progress=False, compile=compile)
        states.append([*weights(model), *(float(v) for v in model.mean.tolist()), getattr(model, "calls", 0)])
        assert len(caplog.records) == (compile is None)
    assert states[0] == pytest.approx(states[1], rel=1e-4, abs=1e-6)
    assert "step runs eagerly: " in caplog.text
    if kind is not Ragged:
        with pytest.raises(TracedValueError):
            fit(kind(), nn.MSELoss(), optim.Adam(model.parameters()), train, epochs=1, progress=False, compile=True)


def test_the_environment_switches_compiling_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_COMPILE", "0")
    model = Reads()
    assert len(run(model, [(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))], compile=True)) == 3


def test_each_batch_counts_as_its_number_of_examples() -> None:
    model = Line()
    scores = evaluate(model, nn.MSELoss(), TWICE, {"target": lambda output, target: target.mean()})
    assert scores == {"loss": pytest.approx((4 + 16 + 36) / 3), "target": pytest.approx(12 / 3)}
    assert run(model, lr=0.0, epochs=1).train_loss == [pytest.approx(56 / 3)]


def test_several_inputs_and_plain_arrays_and_lists() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            self.w = gf.Parameter([1.0])

        def forward(self, a: Any, b: Any) -> gf.Tensor:
            return self.w * a + b

    one = np.ones(2, np.float32)
    history = run(Sum(), [[one, 2 * one, 4 * one]], lr=0.1, epochs=2)
    assert history.train_loss[0] == 1.0
    assert history.train_loss[1] < 1.0


def test_a_generator_will_do_for_one_epoch() -> None:
    assert len(run(train=iter(TWICE), epochs=1)) == 1
    with pytest.raises(ArgumentError, match=r"fit got an iterator as train, and epochs=2"):
        run(train=iter(TWICE), epochs=2)
    with pytest.raises(ArgumentError, match="fit got an iterator as validation"):
        run(validation=iter(TWICE), epochs=2)


def test_any_object_that_can_be_iterated_over_again_will_do() -> None:
    class Stream:
        def __iter__(self) -> Iterator[Batch]:
            return iter(TWICE)

    assert len(run(train=Stream(), progress=True)) == 3  # it has no length: the bar has no end


# -------------------------------------------------------------------------------------------------------------- history
def test_history_has_a_number_for_each_epoch() -> None:
    history = run(validation=TWICE, metrics={"error": lambda y, t: gf.abs(y - t).mean(), "one": lambda y, t: 1.0})
    assert len(history) == 3
    columns = history.as_dict()
    assert list(columns) == ["train_loss", "validation_loss", "validation_error", "validation_one", "seconds"]
    assert all(len(values) == 3 and all(type(v) is float for v in values) for values in columns.values())
    assert history.validation_loss == sorted(history.validation_loss, reverse=True)
    assert columns["validation_one"] == [1.0, 1.0, 1.0]
    assert all(s > 0 for s in history.seconds)
    assert history.best_epoch == 3
    assert history.best["validation_loss"] == history.validation_loss[2]
    assert history.stopped == "all epochs done"


def test_history_without_validation_says_the_last_epoch_is_best() -> None:
    history = run()
    assert list(history.as_dict()) == ["train_loss", "seconds"]
    assert history.best_epoch == 3


def test_as_dict_is_a_copy() -> None:
    history = run()
    history.as_dict()["train_loss"].clear()
    assert len(history) == 3


def test_history_reads_as_a_table() -> None:
    history = History("accuracy")
    assert repr(history) == "History of 0 epochs, 0.00 s"
    for loss, accuracy_ in ((2.0, 0.5), (1.0, 0.75), (0.5, 0.75)):
        history.append(loss, {"loss": 2 * loss, "accuracy": accuracy_}, seconds=0.25)
    history.stopped = "interrupted"
    assert repr(history).splitlines() == [
        "History of 3 epochs, 0.75 s (interrupted)",
        "                          first      best      last",
        "  epoch                       1         2         3",
        "  train_loss                  2         1       0.5",
        "  validation_loss             4         2         1",
        "  validation_accuracy       0.5      0.75      0.75",
        "  seconds                  0.25      0.25      0.25",
    ]


def test_an_undefined_metric_is_never_the_best() -> None:
    history = History("f1")
    for value in (math.nan, 0.1, math.nan):
        history.append(1.0, {"loss": 1.0, "f1": value})
    assert history.best_epoch == 2


# ---------------------------------------------------------------------------------------------- modes are put back
def test_modes_in_training_and_validation() -> None:
    model = Line().eval()
    run(model, epochs=1, validation=TWICE)
    assert model.calls == [(True, True)] * 2 + [(False, False)] * 2
    assert not model.training
    assert gf.is_grad_enabled()


def test_each_module_gets_back_its_own_mode() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).eval())
    evaluate(model, nn.MSELoss(), [(gf.ones((2, 1)), gf.ones((2, 1)))])
    assert [module.training for module in model.modules()] == [True, True, False]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_modes_come_back_after_an_exception(error: BaseException) -> None:
    def fails(output: gf.Tensor, target: gf.Tensor) -> gf.Tensor:
        raise error

    model = Line().eval()
    with pytest.raises(type(error)):
        evaluate(model.train(), fails, TWICE)
    assert model.training
    assert gf.is_grad_enabled()
    model.eval()
    with contextlib.suppress(ValueError, SystemExit):
        fit(model, fails, optim.SGD(model.parameters()), TWICE, epochs=1, progress=False)
    assert not model.training


# -------------------------------------------------------------------- the best epoch, early stopping, the checkpoint
def overshooting() -> tuple[Line, dict[str, Any]]:
    """w = 2 would be right for training, w = 1 for validation: the validation loss falls, then rises."""
    return Line(), {"validation": batches(([1.0, 2.0], [1.0, 2.0])), "epochs": 40, "lr": 0.003}


def test_the_model_ends_with_its_best_weights() -> None:
    model, options = overshooting()
    history = run(model, **options)
    assert 1 < history.best_epoch < 40
    assert history.validation_loss[history.best_epoch - 1] == min(history.validation_loss)
    assert evaluate(model, nn.MSELoss(), options["validation"])["loss"] == min(history.validation_loss)


def test_or_with_its_last_ones() -> None:
    model, options = overshooting()
    history = run(model, restore_best=False, **options)
    assert evaluate(model, nn.MSELoss(), options["validation"])["loss"] == history.validation_loss[-1]


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping(patience: int) -> None:
    model, options = overshooting()
    history = run(model, patience=patience, **options)
    assert len(history) == history.best_epoch + patience
    assert history.stopped == f"no better loss in {patience} epochs"
    assert evaluate(model, nn.MSELoss(), options["validation"])["loss"] == min(history.validation_loss)


def test_a_metric_is_monitored_for_its_greatest_value() -> None:
    values = iter([0.1, 0.5, 0.5, 0.4, 0.3])
    history = run(
        epochs=5,
        validation=TWICE[:1],
        metrics={"score": lambda y, t: next(values)},
        monitor="score",
        patience=3,
    )
    assert history.best_epoch == 2  # of equals the first
    assert history.stopped == "no better score in 3 epochs"


def test_checkpoint_holds_the_best_weights(tmp_path: Path) -> None:
    model, options = overshooting()
    path = tmp_path / "best.safetensors"
    at_epoch = []

    def look(history: History) -> None:
        at_epoch.append((gf.load(path)["w"].item(), weights(model)[0]))

    history = run(model, checkpoint=path, callback=look, **options)
    assert all(saved == current for saved, current in at_epoch[: history.best_epoch])
    best = at_epoch[history.best_epoch - 1][1]
    assert {saved for saved, _ in at_epoch[history.best_epoch :]} == {best}
    assert at_epoch[-1][1] != best
    assert weights(model) == [best]
    other = Line()
    other.load_state_dict(gf.load(path))
    assert weights(other) == [best]
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]  # nothing temporary remains


def test_without_validation_the_checkpoint_holds_the_last_weights(tmp_path: Path) -> None:
    model = Line()
    run(model, checkpoint=tmp_path / "last.safetensors")
    assert gf.load(tmp_path / "last.safetensors")["w"].tolist() == weights(model)


def test_a_checkpoint_that_cannot_be_written_is_told_before_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Line()
    with pytest.raises(ArgumentError, match=r"fit cannot write checkpoint=(?s:.)*there is no folder"):
        run(model, checkpoint=tmp_path / "missing" / "best.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingDependencyError, match="pip install safetensors"):
        run(model, checkpoint=tmp_path / "best.safetensors")
    assert model.calls == []


# ----------------------------------------------------------------------------------------------------- the callback
def test_callback_sees_every_epoch_and_can_stop() -> None:
    seen = []
    history = run(callback=lambda h: seen.append(len(h)))
    assert seen == [1, 2, 3]
    history = run(callback=lambda h: len(h) == 2)
    assert len(history) == 2
    assert history.stopped == "the callback said so"


def test_callback_can_change_the_learning_rate() -> None:
    model = Line()
    optimizer = optim.SGD(model.parameters(), lr=0.01)

    def freeze(history: History) -> None:
        optimizer.lr = 0.0

    history = fit(model, nn.MSELoss(), optimizer, TWICE, epochs=4, callback=freeze, progress=False)
    assert history.train_loss[1] == history.train_loss[3] < history.train_loss[0]


# --------------------------------------------------------------------------------------------------------- NaN, Ctrl-C
def poisoned(after: int) -> Callable[[Any, Any], gf.Tensor]:
    """A loss that is NaN from call `after` on."""
    calls = iter(range(1, 1000))
    return lambda y, t: gf.mse_loss(y, t) * (math.nan if next(calls) >= after else 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_and_step(value: float) -> None:
    model = Line()
    train = [*TWICE, (gf.tensor([1.0]), gf.tensor([value]))]
    with pytest.raises(NonFiniteLossError, match=rf"the loss was {value} at step 3 of epoch 1") as caught:
        run(model, train)
    assert isinstance(caught.value, GradflowError | ArithmeticError)
    assert "The model has the weights it came with again." in str(caught.value)
    assert "fix: a smaller lr" in str(caught.value)
    assert weights(model) == [0.0]
    assert len(caught.value.history) == 0


@pytest.mark.parametrize("validated", [False, True])
def test_nothing_is_lost_to_nan(tmp_path: Path, validated: bool) -> None:
    model = Line()
    path = tmp_path / "best.safetensors"
    kept = []
    options: dict[str, Any] = {"validation": TWICE} if validated else {}
    loss = poisoned(after=10 if validated else 6)  # epoch 3, step 2
    with pytest.raises(NonFiniteLossError, match="at step 2 of epoch 3") as caught:
        fit(
            model,
            loss,
            optim.SGD(model.parameters(), lr=0.01),
            TWICE,
            epochs=5,
            checkpoint=path,
            callback=lambda h: kept.append(weights(model)),
            progress=False,
            **options,
        )
    assert weights(model) == kept[1] == gf.load(path)["w"].tolist()
    assert len(caught.value.history) == 2
    assert caught.value.history.stopped == "the loss was not finite"
    assert "The model has the weights of epoch 2 again." in str(caught.value)


def test_a_validation_loss_that_is_not_finite() -> None:
    model = Line()
    with pytest.raises(NonFiniteLossError, match="the validation loss was nan after epoch 1"):
        run(model, validation=batches(([1.0], [math.nan])))
    assert weights(model) == [0.0]


def test_nan_is_seen_while_the_epoch_runs() -> None:
    """An epoch may take hours: the losses are looked at now and then, not at its end alone."""
    steps = 0

    def forever() -> Iterator[Batch]:
        nonlocal steps
        while True:
            steps += 1
            yield gf.tensor([1.0]), gf.tensor([math.nan])

    with pytest.raises(NonFiniteLossError, match="at step 1 of epoch 1"):
        run(train=forever(), epochs=1)
    assert steps > 1


def test_ctrl_c_ends_training_and_keeps_what_there_is(tmp_path: Path) -> None:
    model, options = overshooting()

    def train() -> Iterator[Batch]:
        yield TWICE[0]
        raise KeyboardInterrupt

    class Interrupted:
        epochs = 0

        def __iter__(self) -> Iterator[Batch]:
            self.epochs += 1
            return train() if self.epochs == 4 else iter(TWICE)

    kept: list[list[float]] = []
    history = run(model, Interrupted(), callback=lambda h: kept.append(weights(model)), **options)
    assert history.stopped == "interrupted"
    assert len(history) == 3
    assert weights(model) == kept[history.best_epoch - 1]

    model = Line()
    history = run(model, train(), epochs=1, validation=TWICE)
    assert len(history) == 0
    assert "0 epochs, 0.00 s (interrupted)" in repr(history)
    assert weights(model) != [0.0]  # no epoch was complete: what was learnt stays


# --------------------------------------------------------------------------------------------------------- progress bar
def bar_text(monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    run(**options)
    return out.getvalue()


def test_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    last = bar_text(monkeypatch, progress=True, validation=TWICE).rpartition("\r")[2]
    assert "epoch 3/3: 100%" in last
    assert "6/6" in last
    assert ", loss " in last
    assert ", validation_loss " in last
    assert "epoch 3/3" in bar_text(monkeypatch, progress=None)
    assert bar_text(monkeypatch, progress=False) == ""


def test_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert bar_text(monkeypatch, progress=None) == ""
    with pytest.raises(MissingDependencyError, match=r"progress=True(?s:.)*gradflow\[examples\]"):
        run(progress=True)


def test_the_losses_are_not_read_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradflow.training._REFRESH", 1000.0)
    reads = []
    item = gf.Tensor.item
    monkeypatch.setattr(gf.Tensor, "item", lambda self: reads.append(len(model.calls)) or item(self))
    model = Line()
    run(model, TWICE * 10, epochs=1)
    assert reads == [20] * 20  # all of them after the last step


# -------------------------------------------------------------------------------------------------------- bad arguments
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ArgumentError, r"fit got epochs=0.*"),
        ({"epochs": 2.5}, ArgumentError, r"fit got epochs=2.5"),
        ({"epochs": True}, ArgumentError, r"fit got epochs=True"),
        ({"validation": TWICE, "patience": 0}, ArgumentError, r"fit got patience=0"),
        ({"patience": 3}, ArgumentError, r"no validation data(?s:.)*validation=loader"),
        ({"metrics": {"accuracy": accuracy}}, ArgumentError, r"no validation data"),
        ({"monitor": "accuracy"}, ArgumentError, r"no validation data"),
        ({"validation": TWICE, "monitor": "acc"}, ArgumentError, r"monitor='acc' and metrics called \[\]"),
        ({"validation": TWICE, "metrics": {"loss": accuracy}}, ArgumentError, r'no metric may be called "loss"'),
        ({"validation": TWICE, "metrics": {"accuracy": 1}}, DTypeError, r"a metric that cannot be called"),
        ({"train": []}, ArgumentError, r"fit got no batches"),
        ({"train": [gf.ones(3)]}, DTypeError, r"fit got a batch that is a Tensor\."),
        ({"train": [(gf.ones(3),)]}, DTypeError, r"a batch that is a tuple of length 1"),
        ({"train": TensorDataset(np.ones((2, 1)), np.ones((2, 1)))}, DTypeError, r"TensorDataset as train"),
        ({"train": gf.ones((2, 2))}, DTypeError, r"fit got a Tensor as train"),
        ({"validation": np.ones((2, 2))}, DTypeError, r"fit got a ndarray as validation"),
        ({"validation": []}, ArgumentError, r"evaluate got no batches"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(**options)


def test_arguments_in_the_wrong_order() -> None:
    model = Line()
    with pytest.raises(DTypeError, match=r"fit got \(Line, SGD, MSELoss\) as model, loss_fn and optimizer"):
        fit(model, optim.SGD(model.parameters()), nn.MSELoss(), TWICE, epochs=1)  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match=r"fit got \(Line, MSELoss, SGD\)"):
        fit(Line, nn.MSELoss(), optim.SGD(model.parameters()), TWICE, epochs=1)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- accuracy
@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        ([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]], [0, 0, 0], 2 / 3),
        ([[2.0, 1.0], [0.0, 3.0]], [[0.9, 0.1], [0.6, 0.4]], 1 / 2),
        ([-1.0, 2.0, 0.5, -3.0], [0, 1, 0, 0], 3 / 4),
        ([[-1.0], [2.0]], [[0.0], [1.0]], 1.0),
        ([-1.0, 2.0], [False, True], 1.0),
        ([[[1.0, 0.0], [0.0, 1.0]]], [[0, 1]], 1.0),  # (n, classes, length), as the cross-entropy takes them
    ],
)
def test_accuracy(logits: Any, target: Any, expected: float) -> None:
    result = accuracy(gf.tensor(logits), gf.tensor(target))
    assert result.shape == ()
    assert result.item() == pytest.approx(expected)
    as_arrays = accuracy(np.array(logits, np.float32), np.array(target))
    assert as_arrays.item() == result.item()


@pytest.mark.parametrize(
    ("logits", "target"),
    [((4, 3), (4, 1)), ((4, 3), (3,)), ((4, 1), (4,)), ((4,), (4, 1)), ((4, 3), ()), ((), (4,)), ((2, 3, 4), (2, 3))],
)
def test_accuracy_broadcasts_nothing(logits: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="accuracy got logits of shape"):
        accuracy(gf.zeros(logits), gf.zeros(target, dtype=gf.int64))
