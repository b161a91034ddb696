"""Losses as modules; the functions are `gf.cross_entropy`, `gf.binary_cross_entropy_with_logits` and `gf.mse_loss`."""

from __future__ import annotations

from typing import Any

from gradflow.arguments import integer, number, shown
from gradflow.errors import ArgumentError, explain
from gradflow.nn.module import Buffer, Module
from gradflow.ops.neural import binary_cross_entropy, binary_cross_entropy_with_logits, cross_entropy, mse_loss
from gradflow.tensor import Tensor

_REDUCTIONS = ("mean", "sum", "none")


class Loss(Module):
    """What all losses share: the reduction of a loss per example (or element) to one number.

    Args:
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` to get them all.

    Raises:
        ArgumentError: any other reduction.
    """

    def __init__(self, reduction: str = "mean") -> None:
        if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
            raise ArgumentError(
                explain(
                    f"{type(self).__name__} got reduction={shown(reduction)}.",
                    f"it is one of {', '.join(map(repr, _REDUCTIONS))}.",
                    f"nn.{type(self).__name__}(reduction='mean')",
                )
            )
        self.reduction = reduction


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy: −Σₖ wₖ tₖ ln pₖ with p = softmax(y), exact for scores of any size.

    The target is a class index for each example, or probabilities (one-hot, for instance). With class indices the mean
    is weighted: Σₙ ℓₙ / Σₙ w of n's class, without those ignored. Scores have shape (N, K) or (N, K, ...), the classes
    on axis 1 as in PyTorch, or (K,) for one example.

    Args:
        weight: wₖ for each class, of shape (K,).
        ignore_index: a class index that counts nothing.
        label_smoothing: ε in [0, 1]; the target becomes (1 − ε) t + ε/K.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ArgumentError: an unknown reduction or an ε outside [0, 1]; (when called) a class index out of range.
        ShapeError: (when called) a target that has neither the scores' shape nor that without the class axis.

    >>> loss = gf.nn.CrossEntropyLoss()
    >>> loss(gf.zeros((3, 2)), gf.tensor([0, 1, 1]))
    tensor(0.6931...)
    >>> loss(gf.zeros((1, 2)), gf.tensor([[0.5, 0.5]]))
    tensor(0.6931...)

    Reference: Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, CVPR 2016 (label smoothing).
    """

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        label_smoothing = number("CrossEntropyLoss", "label_smoothing", label_smoothing, fix="label_smoothing=0.1")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ArgumentError(
                explain(
                    f"CrossEntropyLoss got label_smoothing={label_smoothing!r}.",
                    "it is the share of the target that goes to all classes alike.",
                    "nn.CrossEntropyLoss(label_smoothing=0.1)",
                )
            )
        self.weight = None if weight is None else Buffer(weight)
        self.ignore_index = integer("CrossEntropyLoss", "ignore_index", ignore_index, fix="ignore_index=-100")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of scores (N, K) for a target of class indices (N,) or probabilities (N, K)."""
        return cross_entropy(
            logits,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


class BCEWithLogitsLoss(Loss):
    """Binary cross-entropy of scores: −w (p t ln σ(y) + (1 − t) ln(1 − σ(y))), exact for scores of any size.

    Args:
        weight: w, broadcast to the scores.
        pos_weight: p, the weight of positive examples, broadcast to the scores.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ArgumentError: an unknown reduction.
        ShapeError: (when called) a target of another shape than the scores.

    >>> gf.nn.BCEWithLogitsLoss()(gf.zeros(2), gf.tensor([0.0, 1.0]))
    tensor(0.6931...)
    """

    def __init__(self, weight: Any = None, pos_weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.weight = None if weight is None else Buffer(weight)
        self.pos_weight = None if pos_weight is None else Buffer(pos_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of scores for a target of probabilities, both of the same shape."""
        return binary_cross_entropy_with_logits(
            logits, target, weight=self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class BCELoss(Loss):
    """Binary cross-entropy of probabilities: −w (t ln y + (1 − t) ln(1 − y)), each logarithm at least −100.

    For the outputs of a sigmoid; `BCEWithLogitsLoss` on its inputs is exact where σ rounds to 0 or 1.

    Args:
        weight: w, broadcast to the probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ArgumentError: an unknown reduction.
        ShapeError: (when called) a target of another shape than the probabilities.

    >>> gf.nn.BCELoss()(gf.tensor([0.5, 1.0]), gf.tensor([1.0, 1.0]))
    tensor(0.3465...)
    """

    def __init__(self, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.weight = None if weight is None else Buffer(weight)

    def forward(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """Return the loss of probabilities for a target of probabilities, both of the same shape."""
        return binary_cross_entropy(probabilities, target, weight=self.weight, reduction=self.reduction)


class MSELoss(Loss):
    """The squared error: (y − t)², its mean over all elements, or their sum as in Σ (z − f(x; w))².

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ArgumentError: an unknown reduction.
        ShapeError: (when called) a target of another shape than the input; they are not broadcast.

    >>> gf.nn.MSELoss()(gf.tensor([1.0, 2.0]), gf.tensor([1.0, 4.0]))
    tensor(2.)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of an input for a target of the same shape."""
        return mse_loss(input, target, reduction=self.reduction)
