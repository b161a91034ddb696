"""Training: the loop with its progress bar, history, early stopping and checkpoint; evaluation; accuracy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from time import perf_counter
from typing import Any, final

import numpy as np

from gradflow.arguments import flag, shown, wrong_kind
from gradflow.compiler import compile as compiled
from gradflow.compiler import compiled_where_safe
from gradflow.data import TensorDataset
from gradflow.errors import ArgumentError, DTypeError, GradflowError, MissingDependencyError, ShapeError, explain
from gradflow.nn import Module
from gradflow.ops.creation import as_tensor
from gradflow.ops.reduction import argmax, mean
from gradflow.optim import Optimizer
from gradflow.serialization import require_safetensors, save
from gradflow.tensor import Operand, Tensor, no_grad

Batches = Iterable[Sequence[Any]]
Metric = Callable[[Any, Any], "Tensor | float"]

_SEQUENCES = (tuple, list)
_REFRESH = 0.1  # seconds between two looks at the losses; between them nothing waits for the device


class NonFiniteLossError(GradflowError, ArithmeticError):
    """A loss became NaN or infinite; the model has been given back its best weights.

    Attributes:
        history: the epochs before.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


# ------------------------------------------------------------------------------------------------------------- history
@final
class History:
    """What `fit` measured, one number for each completed epoch; ``len(history)`` is how many there are.

    Attributes:
        train_loss: mean over the training examples, while the weights were changing.
        validation_loss: mean over the validation examples after the epoch; empty without validation data.
        metrics: name -> mean over the validation examples after the epoch.
        seconds: duration of the epoch, validation included.
        monitor: what decides which epoch is best.
        best_epoch: the best one, counted from 1; without validation data the last one; 0 before the first.
        stopped: why training ended.

    >>> history = gf.training.History("accuracy")
    >>> history.append(0.7, {"loss": 0.6, "accuracy": 0.9})
    >>> history.append(0.5, {"loss": 0.5, "accuracy": 0.8})
    >>> history.best_epoch, history.best["validation_accuracy"]
    (1, 0.9)
    >>> history.as_dict()
    {'train_loss': [0.7, 0.5], 'validation_loss': [0.6, 0.5], 'validation_accuracy': [0.9, 0.8], 'seconds': [0.0, 0.0]}
    """

    def __init__(self, monitor: str = "loss") -> None:
        self.train_loss: list[float] = []
        self.validation_loss: list[float] = []
        self.metrics: dict[str, list[float]] = {}
        self.seconds: list[float] = []
        self.monitor = monitor
        self.best_epoch = 0
        self.stopped = ""

    def append(self, train_loss: float, validation: Mapping[str, float], seconds: float = 0.0) -> None:
        """Add an epoch; ``validation`` is what `evaluate` returned, or empty."""
        self.train_loss.append(train_loss)
        self.seconds.append(seconds)
        for name, value in validation.items():
            (self.validation_loss if name == "loss" else self.metrics.setdefault(name, [])).append(value)
        if not validation or not self.best_epoch or self._score(len(self)) > self._score(self.best_epoch):
            self.best_epoch = len(self)

    @property
    def best(self) -> dict[str, float]:
        """The numbers of the best epoch; empty before the first."""
        return {name: values[self.best_epoch - 1] for name, values in self.as_dict().items() if values}

    def as_dict(self) -> dict[str, list[float]]:
        """Return a copy as lists of equal length by name, such as a plot or a table takes."""
        columns = {"train_loss": self.train_loss}
        if self.validation_loss:
            columns["validation_loss"] = self.validation_loss
        columns |= {f"validation_{name}": values for name, values in self.metrics.items()}
        columns["seconds"] = self.seconds
        return {name: list(values) for name, values in columns.items()}

    def __len__(self) -> int:
        return len(self.train_loss)

    def __repr__(self) -> str:
        title = f"History of {len(self)} epoch{'s' * (len(self) != 1)}, {sum(self.seconds):.2f} s"
        lines = [f"{title} ({self.stopped})" if self.stopped else title]
        if not len(self):
            return lines[0]
        shown = (1, self.best_epoch, len(self))
        lines += [f"{'':21}{'first':>10}{'best':>10}{'last':>10}"]
        lines += [f"  {'epoch':19}" + "".join(f"{epoch:10}" for epoch in shown)]
        lines += [f"  {n:19}" + "".join(f"{v[epoch - 1]:10.4g}" for epoch in shown) for n, v in self.as_dict().items()]
        return "\n".join(lines)

    def _score(self, epoch: int) -> float:
        """What is greatest in the best epoch; NaN, which no comparison holds for, counts as the worst."""
        score = -self.validation_loss[epoch - 1] if self.monitor == "loss" else self.metrics[self.monitor][epoch - 1]
        return -math.inf if math.isnan(score) else score


# ------------------------------------------------------------------------------------------------------------ the loop
def fit(
    model: Module,
    loss_fn: Callable[[Any, Any], Tensor],
    optimizer: Optimizer,
    train: Batches,
    *,
    epochs: int,
    validation: Batches | None = None,
    metrics: Mapping[str, Metric] | None = None,
    monitor: str = "loss",
    patience: int | None = None,
    restore_best: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callable[[History], object] | None = None,
    progress: bool | None = None,
    compile: bool | None = None,
) -> History:
    """Train a model: for every batch, loss_fn(model(*inputs), target), its gradient, and a step of the optimizer.

    With validation data the model ends with the weights of its best epoch. Ctrl-C ends training as early stopping
    does: `fit` returns what it has. Training runs in the model's ``train()`` mode, validation in ``eval()`` mode and
    without gradients; afterwards every module has the mode it had. The losses are read ten times a second, not at
    every step, so a device is never waited for in between.

    Args:
        model: called with the inputs of a batch.
        loss_fn: (output, target) -> the mean loss of the batch, a scalar Tensor.
        optimizer: holds the model's parameters.
        train: batches (inputs..., target), iterated over once an epoch; a `DataLoader`, for example.
        epochs: the most there will be.
        validation: batches to evaluate on after every epoch.
        metrics: name -> function (output, target) -> the mean over a batch, measured on the validation data.
        monitor: which epoch is best: ``"loss"``, that of the least validation loss; or the name of a metric, that of
            its greatest value.
        patience: stop when so many epochs in a row were no better than the best.
        restore_best: False leaves the model with its last weights instead.
        checkpoint: a safetensors file for the best weights (without validation data, the last), written whole or not at
            all after every such epoch: ``model.load_state_dict(gf.load(checkpoint))``.
        callback: called with the `History` after every epoch; training stops if it returns True.
        progress: a progress bar: True demands one, None shows one if tqdm is installed, False shows none.
        compile: whether a step runs as one program (`gf.compile`): None compiles it on backends where that makes it
            faster (Numba), if it can be, and otherwise runs it eagerly and logs a line; True compiles it on any backend
            and raises what stands against it; False runs it eagerly.

    Returns:
        What was measured; ``history.stopped`` says why training ended.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite. The model has its best weights again (without validation
            data those of the last whole epoch; before the first epoch's end those it came with); the optimizer's
            state is lost.
        ArgumentError: a wrong argument, or no batches.
        DTypeError: batches that are not (inputs..., target), or an argument of the wrong kind.
        MissingDependencyError: tqdm is demanded, or a checkpoint needs safetensors, and it is not installed.
        OSError: the checkpoint cannot be written.

    >>> _ = gf.manual_seed(0)
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(64, 1)
    >>> model = gf.nn.MLP([1, 8, 1], gf.nn.Tanh)
    >>> loader = gf.data.DataLoader(gf.data.TensorDataset(x, x * x), batch_size=16, shuffle=True)
    >>> optimizer = gf.optim.Adam(model.parameters(), lr=0.05)
    >>> history = gf.training.fit(model, gf.nn.MSELoss(), optimizer, loader, epochs=30, progress=False)
    >>> len(history), history.train_loss[-1] < history.train_loss[0] / 10
    (30, True)
    """
    _check_arguments(model, loss_fn, optimizer, epochs, validation, metrics, monitor, patience, callback)
    restore_best = flag("fit", "restore_best", restore_best)
    progress = None if progress is None else flag("fit", "progress", progress)
    compile = None if compile is None else flag("fit", "compile", compile)
    _check_iterables(epochs, train=train, validation=validation)
    _check_checkpoint(checkpoint)
    step, forward = _steps(model, loss_fn, optimizer, compile)
    history = History(monitor)
    best = model.state_dict()
    steps = len(train) * epochs if isinstance(train, Sized) else None
    with _in_mode(model, training=True), _progress_bar(progress, steps) as look:
        try:
            for epoch in range(1, epochs + 1):
                started = looked = perf_counter()
                losses = _Mean()
                for inputs, target, rows in _unpacked(train, "fit"):
                    losses.add(step(inputs, target), rows)
                    if (now := perf_counter()) - looked > _REFRESH:
                        looked = now
                        look(losses, epoch, epochs, history)
                look(losses, epoch, epochs, history)
                scores = {} if validation is None else _evaluate(model, forward, loss_fn, validation, metrics)
                if not math.isfinite(scores.get("loss", 0.0)):
                    raise _non_finite(f"the validation loss was {scores['loss']} after epoch {epoch}.", history)
                history.append(losses.read(), scores, perf_counter() - started)
                if history.best_epoch == epoch:
                    best = model.state_dict()
                    if checkpoint is not None:
                        save(checkpoint, best)
                if callback is not None and callback(history) is True:
                    history.stopped = "the callback said so"
                    break
                if patience is not None and epoch - history.best_epoch >= patience:
                    history.stopped = f"no better {monitor} in {patience} epochs"
                    break
            else:
                history.stopped = "all epochs done"
        except KeyboardInterrupt:
            history.stopped = "interrupted"
        except NonFiniteLossError:
            history.stopped = "the loss was not finite"
            model.load_state_dict(best)
            raise
    if validation is not None and restore_best and history.best_epoch:
        model.load_state_dict(best)
    return history


def evaluate(
    model: Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Batches,
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """Return the mean loss, and metrics, over batches (inputs..., target), in ``eval()`` mode and without gradients.

    Each batch counts as its number of examples, so that the last, smaller one does not count more.

    Raises:
        ArgumentError: no batches.
        DTypeError: batches that are not (inputs..., target).

    >>> model = gf.nn.Linear(2, 3)
    >>> loader = gf.data.DataLoader(gf.data.TensorDataset(np.zeros((5, 2), np.float32), np.arange(5) % 3), batch_size=2)
    >>> scores = gf.training.evaluate(model, gf.nn.CrossEntropyLoss(), loader, {"accuracy": gf.training.accuracy})
    >>> scores.keys()
    dict_keys(['loss', 'accuracy'])
    """
    fix = "evaluate(model, nn.MSELoss(), loader)"
    if not isinstance(model, Module):
        raise wrong_kind("evaluate", "model", model, "it is a Module.", fix)
    if not callable(loss_fn):
        raise wrong_kind("evaluate", "loss_fn", loss_fn, "it is a function of (output, target).", fix)
    _check_metrics("evaluate", metrics)
    _check_batches("evaluate", "batches", batches)
    return _evaluate(model, lambda inputs: model(*inputs), loss_fn, batches, metrics)


def _evaluate(
    model: Module,
    forward: Callable[[Sequence[Any]], Any],
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Batches,
    metrics: Mapping[str, Metric] | None,
) -> dict[str, float]:
    functions: dict[str, Metric] = {"loss": loss_fn, **(metrics or {})}
    means = {name: _Mean() for name in functions}
    with _in_mode(model, training=False), no_grad():
        for inputs, target, rows in _unpacked(batches, "evaluate"):
            output = forward(inputs)
            for name, function in functions.items():
                means[name].add(function(output, target), rows)
    return {name: found.read() for name, found in means.items()}


def accuracy(logits: Operand, target: Operand) -> Tensor:
    """Share of the examples that are classified rightly: a scalar Tensor.

    Args:
        logits: scores, shape (n, classes) or (n, classes, ...), of which the greatest decides; or (n,) or (n, 1), whose
            sign decides between two classes.
        target: class numbers, shaped as the logits without the class axis; or probabilities, shaped as the logits.

    Raises:
        ShapeError: shapes that do not fit; they are not broadcast.

    >>> gf.training.accuracy(gf.tensor([[2.0, 1.0], [0.0, 3.0]]), gf.tensor([0, 0]))
    tensor(0.5)
    >>> gf.training.accuracy(gf.tensor([-1.0, 2.0]), gf.tensor([0, 1]))
    tensor(1.)
    """
    logits, target = as_tensor(logits), as_tensor(target)
    several = logits.ndim > 1 and logits.shape[1] != 1
    if logits.shape == target.shape:
        return mean(argmax(logits, axis=1) == argmax(target, axis=1) if several else (logits > 0) == (target > 0.5))
    if not several or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ShapeError(
            explain(
                f"accuracy got logits of shape {logits.shape} and target of shape {target.shape}.",
                "scores (n, classes) are compared with class numbers (n,) or probabilities (n, classes); scores of two "
                "classes, (n,) or (n, 1), with a target of the same shape.",
                f"target.reshape({logits.shape[:1] + logits.shape[2:] if several else logits.shape})",
            )
        )
    return mean(argmax(logits, axis=1) == target)


# --------------------------------------------------------------------------------------------------- what the loop uses
def _steps(
    model: Module, loss_fn: Callable[[Any, Any], Tensor], optimizer: Optimizer, compile: bool | None
) -> tuple[Callable[[Sequence[Any], Any], Tensor], Callable[[Sequence[Any]], Any]]:
    """A training step on (inputs, target), which returns the loss, and the forward pass; compiled or not."""

    def step(inputs: Sequence[Any], target: Any) -> Tensor:
        loss = loss_fn(model(*inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def forward(inputs: Sequence[Any]) -> Any:
        return model(*inputs)

    if compile is False or compile is None and not _pays(optimizer):
        return step, forward
    return compiled(step) if compile else compiled_where_safe(step), compiled_where_safe(forward)


def _pays(optimizer: Optimizer) -> bool:
    """Whether programs are faster than single operations: where their loops hold many (straight-line calls are not)."""
    generator = optimizer.param_groups[0]["params"][0].backend.code_generator()
    return generator is not None and bool(generator.fuses)


class _Mean:
    """A mean over examples of values that each stand for a batch; they stay on the device until it is read."""

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor | float, int]] = []
        self.total, self.rows, self.count = 0.0, 0, 0
        self.bad: tuple[int, float] | None = None  # the first that was not finite: its number, from 1, and it

    def add(self, value: Tensor | float, rows: int) -> None:
        self.pending.append((value, rows))

    def read(self) -> float:
        for value, rows in self.pending:
            number = float(value)
            self.count += 1
            self.total += number * rows
            self.rows += rows
            if self.bad is None and not math.isfinite(number):
                self.bad = self.count, number
        self.pending.clear()
        return self.total / self.rows if self.rows else math.nan


def _unpacked(batches: Batches, name: str) -> Iterator[tuple[Sequence[Any], Any, int]]:
    """Iterate over (inputs, target, number of examples)."""
    batch = None
    for batch in batches:
        if not isinstance(batch, _SEQUENCES) or len(batch) < 2:
            raise DTypeError(
                explain(
                    f"{name} got a batch that is a {type(batch).__name__}"
                    f"{f' of length {len(batch)}' if isinstance(batch, _SEQUENCES) else ''}.",
                    "a batch is a tuple (inputs..., target).",
                    "gf.data.DataLoader(gf.data.TensorDataset(x, y), batch_size=32)",
                )
            )
        *inputs, target = batch
        shape = target.shape if isinstance(target, Tensor) else np.shape(target)
        yield inputs, target, shape[0] if shape else 1
    if batch is None:
        raise ArgumentError(
            explain(
                f"{name} got no batches.",
                "an epoch goes over all of them, so a generator is empty from the second on.",
                "gf.data.DataLoader(...), or a list of batches",
            )
        )


@contextmanager
def _in_mode(model: Module, training: bool) -> Iterator[None]:
    """Train or evaluate for a block; afterwards every module has the mode it had."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def _progress_bar(progress: bool | None, steps: int | None) -> Iterator[Callable[[_Mean, int, int, History], None]]:
    """Yield the function that looks at the losses of an epoch: it refuses NaN and moves the bar, if there is one."""
    bar: Any = None
    if progress is not False:
        try:
            from tqdm import tqdm
        except ImportError as error:
            if progress:
                raise MissingDependencyError(
                    explain(
                        "fit(progress=True) needs the tqdm package.",
                        f"it is not installed ({error}).",
                        'pip install "gradflow[examples]", or progress=False',
                    )
                ) from error
        else:
            bar = tqdm(total=steps, unit="step", dynamic_ncols=True)

    def look(losses: _Mean, epoch: int, epochs: int, history: History) -> None:
        seen = losses.count
        running = losses.read()
        if losses.bad is not None:
            step, loss = losses.bad
            raise _non_finite(f"the loss was {loss} at step {step} of epoch {epoch}.", history)
        if bar is not None:
            bar.set_description_str(f"epoch {epoch}/{epochs}", refresh=False)
            latest = {name: values[-1] for name, values in history.as_dict().items() if name.startswith("validation")}
            shown = {"loss": running, **latest}.items()
            bar.set_postfix_str(", ".join(f"{name} {value:.4f}" for name, value in shown), refresh=False)
            bar.update(losses.count - seen)

    try:
        yield look
    finally:
        if bar is not None:
            bar.close()


def _non_finite(mistake: str, history: History) -> NonFiniteLossError:
    kept = f"of epoch {history.best_epoch}" if history.best_epoch else "it came with"
    return NonFiniteLossError(
        explain(
            mistake,
            "a step too long, a log or quotient at 0, or NaN in the data; from there on all weights would be NaN. "
            f"The model has the weights {kept} again.",
            "a smaller lr and a new optimizer, gf.nn.utils.clip_grad_norm_, or np.isfinite(x).all() on the data",
        ),
        history,
    )


# -------------------------------------------------------------------------------------------------------- bad arguments
def _check_metrics(function: str, metrics: Any) -> None:
    if isinstance(metrics, Mapping | None) and all(callable(metric) for metric in (metrics or {}).values()):
        return
    named = isinstance(metrics, Mapping)
    raise DTypeError(
        explain(
            f"{function} got a metric that cannot be called." if named else f"{function} got metrics={shown(metrics)}.",
            "metrics are functions of (output, target), by name.",
            'metrics={"accuracy": gf.training.accuracy}',
        )
    )


def _check_arguments(
    model: Any,
    loss_fn: Any,
    optimizer: Any,
    epochs: Any,
    validation: Any,
    metrics: Any,
    monitor: Any,
    patience: Any,
    callback: Any,
) -> None:
    usable = hasattr(optimizer, "zero_grad") and not isinstance(optimizer, type | Module)
    if not isinstance(model, Module) or not callable(loss_fn) or not usable:
        given = ", ".join(a.__name__ if isinstance(a, type) else type(a).__name__ for a in (model, loss_fn, optimizer))
        raise DTypeError(
            explain(
                f"fit got ({given}) as model, loss_fn and optimizer.",
                "the model is a Module, the loss a function of (output, target), the optimizer one with zero_grad().",
                "fit(model, nn.MSELoss(), optim.Adam(model.parameters()), loader, epochs=10)",
            )
        )
    _check_metrics("fit", metrics)
    if callback is not None and not callable(callback):
        reason = "it is called with the history after every epoch."
        raise wrong_kind("fit", "callback", callback, reason, "callback=lambda history: print(history.best)")
    for name, number in {"epochs": epochs, "patience": patience}.items():
        if number is None and name == "patience":
            continue
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ArgumentError(
                explain(f"fit got {name}={shown(number)}.", "it is a number of epochs, at least 1.", f"{name}=10")
            )
    if not isinstance(monitor, str):
        raise wrong_kind("fit", "monitor", monitor, "it is the name of a metric.", 'monitor="loss"')
    if validation is None and (metrics or patience is not None or monitor != "loss"):
        raise ArgumentError(
            explain(
                "fit got metrics, monitor or patience, but no validation data.",
                "they concern what is measured on the validation data after every epoch.",
                "fit(..., validation=loader)",
            )
        )
    names = ["loss", *(metrics or {})]
    if monitor not in names or names.count("loss") > 1:
        raise ArgumentError(
            explain(
                f"fit got monitor={monitor!r} and metrics called {names[1:]}.",
                'monitor is "loss" or the name of a metric, and no metric may be called "loss".',
                'fit(..., metrics={"accuracy": gf.training.accuracy}, monitor="accuracy")',
            )
        )


def _check_iterables(epochs: int, **given: Any) -> None:
    for name, batches in given.items():
        if name == "train" or batches is not None:
            _check_batches("fit", name, batches)
        if epochs > 1 and isinstance(batches, Iterator):
            raise ArgumentError(
                explain(
                    f"fit got an iterator as {name}, and epochs={epochs}.",
                    "it can be gone through only once.",
                    f"{name}=list(batches), or a DataLoader",
                )
            )


def _check_batches(function: str, name: str, batches: Any) -> None:
    wrong = isinstance(batches, TensorDataset | Tensor | np.ndarray | str | bytes | Mapping | type)
    if wrong or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise DTypeError(
            explain(
                f"{function} got a {type(batches).__name__} as {name}.",
                "it takes batches; the items of a data set are single examples.",
                f"{name}=gf.data.DataLoader(gf.data.TensorDataset(x, y), batch_size=32)",
            )
        )


def _check_checkpoint(path: str | os.PathLike[str] | None) -> None:
    """Fail before the first epoch and not after it."""
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        raise wrong_kind("fit", "checkpoint", path, "it is the path of a file.", 'checkpoint="best.safetensors"')
    require_safetensors()
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise ArgumentError(
            explain(
                f"fit cannot write checkpoint={os.fspath(path)!r}.",
                f"there is no folder {folder}.",
                f"os.makedirs({os.path.dirname(os.fspath(path))!r})",
            )
        )
