"""Train a multi-layer perceptron to read handwritten digits, and report how well it reads new ones.

    python examples/train_mlp.py                                     # scikit-learn's 8 × 8 digits; needs no network
    python examples/train_mlp.py --dataset mnist --hidden 120 120    # MNIST, 784-120-120-10

The network sees the training images, an epoch of them at a time. The validation images decide which epoch was best, and
the test images, looked at once, say what that is worth. A figure and the best weights are written to the folder out/.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gradflow as gf
from gradflow import nn
from gradflow.data import DataLoader, TensorDataset
from gradflow.errors import GradflowError
from gradflow.training import History, accuracy, evaluate, fit

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}

# What is not given on the command line. The small data set is soon learnt by heart: smoothed labels keep the network
# from growing ever more certain of it, and are worth more than one per cent of accuracy there.
DEFAULTS = {
    "digits": {"hidden": [128], "epochs": 60, "batch_size": 32, "lr": 3e-3, "label_smoothing": 0.1},
    "mnist": {"hidden": [120], "epochs": 10, "batch_size": 128, "lr": 1e-3, "label_smoothing": 0.0},
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=DEFAULTS, default="digits", help="what to read (default: digits)")
    add("--backend", metavar="NAME", help="what computes (default: GRADFLOW_BACKEND, else numpy)")
    add("--epochs", type=int, metavar="N", help="how often to go through the training images (digits 60, mnist 10)")
    add("--batch-size", type=int, metavar="N", help="images in a step (digits 32, mnist 128)")
    add("--lr", type=float, metavar="RATE", help="learning rate of Adam (digits 0.003, mnist 0.001)")
    add("--hidden", type=int, nargs="*", metavar="N", help="sizes of the hidden layers (digits 128, mnist 120)")
    add("--activation", choices=ACTIVATIONS, default="relu", help="after each hidden layer (default: relu)")
    add("--label-smoothing", type=float, metavar="SHARE", help="spread over all classes (digits 0.1, mnist 0)")
    add("--seed", type=int, default=0, metavar="N", help="of initial weights and batches (default: 0)")
    add("--plot", type=Path, metavar="PATH", help="figure to write (default: out/train_mlp_DATASET.png)")
    add("--checkpoint", type=Path, metavar="PATH", help="weights to write (default: out/train_mlp_DATASET.safetensors)")
    add("--quiet", action="store_true", help="print the test accuracy and nothing else")
    options = parser.parse_args(arguments)
    for name, value in DEFAULTS[options.dataset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.plot = options.plot or Path(f"out/train_mlp_{options.dataset}.png")
    options.checkpoint = options.checkpoint or Path(f"out/train_mlp_{options.dataset}.safetensors")
    return options


def train(options: argparse.Namespace) -> float:
    """Do the job and return the test accuracy, a share of 1."""
    say = (lambda *_: None) if options.quiet else print
    gf.manual_seed(options.seed)

    # The data: three parts, each of images (rows of pixels in [0, 1]) and labels (0 to 9).
    split = gf.datasets.digits() if options.dataset == "digits" else gf.datasets.mnist()
    train_set, validation_set, test_set = (TensorDataset(*part) for part in split)
    train_batches = DataLoader(train_set, options.batch_size, shuffle=True)
    validation_batches = DataLoader(validation_set, batch_size=1000)
    test_batches = DataLoader(test_set, batch_size=1000)
    sizes = " / ".join(f"{len(part):,}" for part in (train_set, validation_set, test_set))
    say(f"{options.dataset}: {sizes} images to train, validate and test with")

    # The network: pixels → hidden layers → a score for each of the ten digits.
    pixels = split.train.images.shape[1]
    model = nn.MLP([pixels, *options.hidden, 10], ACTIVATIONS[options.activation])
    say(f"{model}\n{model.num_parameters():,} weights on {gf.get_backend()}")

    # The training: Adam on the softmax cross-entropy. The model ends with the weights of its best epoch.
    for path in (options.plot, options.checkpoint):
        path.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    history = fit(
        model,
        nn.CrossEntropyLoss(label_smoothing=options.label_smoothing),
        gf.optim.Adam(model.parameters(), lr=options.lr),
        train_batches,
        epochs=options.epochs,
        validation=validation_batches,
        metrics={"accuracy": accuracy},
        checkpoint=options.checkpoint,
        progress=False if options.quiet else None,
    )
    seconds = time.perf_counter() - started
    if not len(history):
        sys.exit("train_mlp: interrupted before the first epoch was over")
    say(history)

    # The test, on images that nothing above has seen.
    tested = evaluate(model, nn.CrossEntropyLoss(), test_batches, {"accuracy": accuracy})["accuracy"]
    right = round(tested * len(test_set))
    print(f"test accuracy {tested:.2%}: {right:,} of {len(test_set):,} images, after {seconds:.1f} s of training")
    draw(history, tested, options)
    say(f"figure: {options.plot}\nweights: {options.checkpoint}, read by model.load_state_dict(gf.load(path))")
    return tested


def draw(history: History, tested: float, options: argparse.Namespace) -> None:
    """Draw how the losses fell and the accuracy rose."""
    import matplotlib as mpl

    mpl.use("Agg")  # into a file; no window
    from matplotlib import pyplot as plt

    blue, orange, green = "#0072B2", "#D55E00", "#009E73"  # told apart with any colour vision (Okabe and Ito)
    epochs = range(1, len(history) + 1)
    percent = [100 * share for share in history.metrics["accuracy"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(epochs, history.train_loss, color=blue, label="training")
    left.plot(epochs, history.validation_loss, color=orange, linestyle="--", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None))
    right.plot(epochs, percent, color=orange, linestyle="--", label="validation")
    star = {"color": green, "marker": "*", "markersize": 14, "linestyle": "", "clip_on": False}
    right.plot(history.best_epoch, 100 * tested, label=f"test, with the weights of epoch {history.best_epoch}", **star)
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(None, 100))
    for axes in (left, right):
        axes.axvline(history.best_epoch, color="0.6", linewidth=0.8, zorder=0)
        axes.legend(loc="lower right" if axes is right else "upper right")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    layers = "-".join(map(str, options.hidden)) or "none"
    figure.suptitle(f"{options.dataset}, hidden layers {layers}, {options.activation}: test accuracy {tested:.2%}")
    figure.savefig(options.plot, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> float:
    options = parse(arguments)
    try:
        import matplotlib as mpl  # noqa: F401  (asked for now, not when the training is done)
    except ImportError:
        sys.exit('train_mlp: matplotlib is missing, which draws the figure.\n  fix: pip install -e ".[examples]"')
    try:
        with gf.use_backend(options.backend or gf.get_backend()):
            return train(options)
    except (GradflowError, OSError) as error:  # their messages say what to do
        sys.exit(f"train_mlp: {error}")


if __name__ == "__main__":
    main()
