"""The layer that looks vectors up in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradflow.arguments import integer
from gradflow.nn import init
from gradflow.nn.module import Module
from gradflow.ops.creation import zeros
from gradflow.ops.layers import embedding, padding_row
from gradflow.tensor import Parameter, Tensor, no_grad

if TYPE_CHECKING:
    from gradflow.backend import Backend


class Embedding(Module):
    """A table of vectors, looked up by number: y = W[indices].

    W begins normal, with mean 0 and variance 1.

    Args:
        num_embeddings: n, the number of vectors; indices are integers from 0 to n − 1, of any shape.
        embedding_dim: d, the length of each; of indices of shape (...) y has shape (..., d).
        padding_idx: a row that begins as zeros and is not trained; from the end if negative.
        dtype: of W; the default dtype if None.
        backend: of W; the current one if None.

    Attributes:
        weight: W, of shape (n, d).

    Raises:
        ArgumentError: sizes below 1.
        IndexRangeError: a padding_idx that is no row; (when called) an index outside 0…n−1.
        DTypeError: (when called) indices that are not integers.

    >>> layer = gf.nn.Embedding(10, 3)
    >>> layer(gf.tensor([[1, 2], [4, 9]])).shape
    (2, 2, 3)

    Reference: Bengio, Ducharme, Vincent and Jauvin, *A Neural Probabilistic Language Model*, JMLR 3, 2003.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = None,
        backend: str | Backend | None = None,
    ) -> None:
        fix = "nn.Embedding(1000, 64)"
        self.num_embeddings = integer("Embedding", "num_embeddings", num_embeddings, least=1, fix=fix)
        self.embedding_dim = integer("Embedding", "embedding_dim", embedding_dim, least=1, fix=fix)
        self.padding_idx = None if padding_idx is None else padding_row("Embedding", padding_idx, self.num_embeddings)
        self.weight = Parameter(zeros((self.num_embeddings, self.embedding_dim), dtype=dtype, backend=backend))
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0.0

    def forward(self, indices: Tensor) -> Tensor:
        """Look up the vectors of some indices."""
        return embedding(indices, self.weight, padding_idx=self.padding_idx)
