"""Random numbers from one counter-based generator: the same seed gives the same numbers on every backend.

The bits are those of Philox4x64-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, 2011).
Word i of a draw is word i mod 4 of block `counter + 1 + i // 4`; each number takes one 64-bit word (uniform) or one
of two (normal, by Box and Muller). A draw is a primitive of the generator's state, and so is advancing the counter.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from gradflow import structure
from gradflow.arguments import integer, integers, number, shown
from gradflow.backend import Backend
from gradflow.config import get_default_dtype
from gradflow.errors import ArgumentError, DTypeError, explain
from gradflow.mode import NO_GRAD, get_mode, using
from gradflow.ops.creation import _shape, check_dtype, make_tensor
from gradflow.ops.elementwise import minimum
from gradflow.primitive import namespace, primitive
from gradflow.tensor import OPS, Tensor, wrap

_WORDS_PER_BLOCK = 4


@primitive("any", nondifferentiable=True)
def random_uniform(state: Tensor, /, *, shape: tuple[int, ...], dtype: Any) -> Tensor:
    """Uniform numbers in [0, 1) from the state (key, counter) of a generator."""
    ...


@primitive("any", nondifferentiable=True)
def random_normal(state: Tensor, /, *, shape: tuple[int, ...], dtype: Any) -> Tensor:
    """Normal numbers of mean 0 and variance 1 from the state (key, counter) of a generator."""
    ...


@primitive("any", writes=1)
def advance(state: Tensor, /, *, blocks: int) -> None:
    """Move the counter of a generator's state past the blocks that a draw used, in place."""


class Generator:
    """A stream of random numbers, decided by its seed alone.

    Args:
        seed: an integer in [0, 2⁶⁴); None takes one from the operating system.

    Raises:
        ArgumentError: a seed that is no such integer.

    >>> a, b = gf.Generator(0), gf.Generator(0)
    >>> bool((gf.random.uniform(3, generator=a) == gf.random.uniform(3, generator=b)).all())
    True
    """

    _tells_changes = True  # a compiled step need not look at its attributes

    def __init__(self, seed: int | None = None) -> None:
        self.manual_seed(int.from_bytes(os.urandom(8), "little") if seed is None else seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of a seed."""
        try:
            key = integer("manual_seed", "seed", seed)
        except DTypeError:
            key = -1
        if not 0 <= key < 2**64:
            raise ArgumentError(
                explain(f"seed {shown(seed)}.", "a seed is an integer from 0 to 2**64 - 1.", "gf.manual_seed(0)")
            )
        return self.set_state((key, 0))

    def get_state(self) -> tuple[int, int]:
        """The seed and the number of blocks used: what `set_state` takes to go on from here."""
        key, counter = self._state.tolist()
        return int(key), int(counter)

    def set_state(self, state: tuple[int, int]) -> Generator:
        """Go on from a state that `get_state` gave."""
        mistake, fix = f"a generator state {shown(state)}.", "generator.set_state(generator.get_state())"
        why = "it is the seed and the number of blocks used, as get_state gave them."
        numbers = integers(mistake, state, why=why, fix=fix)
        if len(numbers) != 2 or not all(0 <= n < 2**64 for n in numbers):
            raise ArgumentError(explain(mistake, why, fix))
        if (state_now := getattr(self, "_state", None)) is None:
            self._state = make_tensor(np.array(numbers, np.uint64), backend="numpy")
        else:  # written where it lies: a compiled step reads it there
            xp = state_now._xp
            OPS.assign(state_now, wrap(xp.as_array(np.array(numbers, np.uint64)), xp))
        return self

    def _on(self, backend: str | Backend | None) -> Tensor:
        xp = namespace(backend)
        if self._state._xp is not xp:
            with using(NO_GRAD):  # where the state lies is no part of what a program records
                self._state = make_tensor(self._state, backend=xp.backend)
            structure.changed()
        if (interpreter := get_mode().interpreter) is not None:
            interpreter.depends(lambda: self._state)
        return self._state

    def __repr__(self) -> str:
        seed, counter = self.get_state()
        return f"Generator(seed={seed}, counter={counter})"


_default: Generator | None = None  # made at first use: importing gradflow chooses no backend


def manual_seed(seed: int) -> Generator:
    """Seed the generator that is used where none is given.

    >>> _ = gf.manual_seed(0)
    >>> gf.random.uniform(2)
    tensor([0.01154673, 0.2415492 ])
    """
    return default_generator().manual_seed(seed)


def default_generator() -> Generator:
    """The generator that is used where none is given."""
    global _default
    if _default is None:
        _default = Generator()
    return _default


def _draw(
    kind: Any, shape: Any, dtype: Any, generator: Generator | None, backend: str | Backend | None
) -> tuple[Tensor, Any]:
    wanted = get_default_dtype() if dtype is None else check_dtype(dtype)
    if wanted.kind != "f":
        raise DTypeError(explain(f"random numbers of dtype {wanted}.", "they are real numbers.", "dtype=gf.float32"))
    lengths = _shape(shape)
    if not isinstance(generator, Generator | None):
        raise DTypeError(
            explain(
                f"random numbers from a {type(generator).__name__}.",
                "they are drawn from a Generator of gradflow, on every backend the same.",
                "generator=gf.Generator(0)",
            )
        )
    state = (default_generator() if generator is None else generator)._on(backend)
    out = kind(state, shape=lengths, dtype=wanted)
    advance(state, blocks=-(-out.size // _WORDS_PER_BLOCK))  # two words make two normal numbers
    return out, wanted


def uniform(
    shape: Any = (),
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: Any = None,
    generator: Generator | None = None,
    backend: str | Backend | None = None,
) -> Tensor:
    """Independent numbers, uniform in [low, high).

    >>> u = gf.random.uniform((2, 3), low=-1, high=1)
    >>> u.shape, bool((gf.abs(u) <= 1).all())
    ((2, 3), True)
    """
    low, high = number("uniform", "low", low), number("uniform", "high", high)
    if not -math.inf < low <= high < math.inf:
        raise ArgumentError(
            explain(f"uniform in [{low}, {high}).", "low must not exceed high. Both are finite.", "low=0.0, high=1.0")
        )
    out, _ = _draw(random_uniform, shape, dtype, generator, backend)
    if (low, high) == (0.0, 1.0):
        return out
    below = np.nextafter(out.dtype.type(high), out.dtype.type(low))  # rounding may reach high, which is excluded
    return minimum(out * float(high - low) + float(low), below)


def normal(
    shape: Any = (),
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: Any = None,
    generator: Generator | None = None,
    backend: str | Backend | None = None,
) -> Tensor:
    """Independent normal numbers of a mean and standard deviation.

    Source: Box and Muller, A note on the generation of random normal deviates, 1958.

    >>> gf.random.normal((2, 3)).shape
    (2, 3)
    """
    mean, std = number("normal", "mean", mean), number("normal", "std", std)
    if not (0 <= std < math.inf and math.isfinite(mean)):
        raise ArgumentError(
            explain(
                f"normal with std={std}." if math.isfinite(mean) else f"normal with mean={mean}.",
                "a standard deviation is not negative, and neither number is infinite.",
                "std=1.0",
            )
        )
    out, _ = _draw(random_normal, shape, dtype, generator, backend)
    return out if (mean, std) == (0.0, 1.0) else out * float(std) + float(mean)


def permutation(n: int, *, generator: Generator | None = None) -> np.ndarray:
    """The integers 0…n−1 in random order, on the host (int64): the order that sorts n random numbers.

    >>> sorted(gf.random.permutation(4).tolist())
    [0, 1, 2, 3]
    """
    keys = uniform(n, dtype=np.float64, generator=generator, backend="numpy")
    return np.argsort(keys.numpy(), kind="stable")


__all__ = ["Generator", "default_generator", "manual_seed", "normal", "permutation", "uniform"]
