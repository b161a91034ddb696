"""The layer that leaves out elements at random."""

from __future__ import annotations

from gradflow.nn.module import Module
from gradflow.ops.layers import dropout, probability
from gradflow.tensor import Tensor


class Dropout(Module):
    """Each element 0 with probability p, else x/(1 − p), while training; its input, unchanged, in evaluation.

    `gf.manual_seed` decides which elements; the same seed gives the same ones on every backend.

    Args:
        p: the share that is dropped, in [0, 1].

    Raises:
        ArgumentError: p outside [0, 1].

    >>> _ = gf.manual_seed(0)
    >>> layer = gf.nn.Dropout(0.5)
    >>> layer(gf.ones(6))
    tensor([0., 0., 0., 2., 2., 0.])
    >>> layer.eval()(gf.ones(3))
    tensor([1., 1., 1.])

    Reference: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, *Dropout: A Simple Way to Prevent Neural
    Networks from Overfitting*, JMLR 15, 2014.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = probability("Dropout", p)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x while training."""
        return dropout(x, self.p, training=self.training)
