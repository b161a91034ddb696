"""The exceptions of gradflow, and how their messages are built: the mistake, the reason, the corrected code."""

from __future__ import annotations

import copy
import functools
import os
import sys
from types import FrameType

_OURS = (os.path.dirname(__file__) + os.sep, "<gradflow ", copy.__file__)  # files between a user's call and the engine


@functools.cache
def is_ours(filename: str) -> bool:
    """Whether code of this file is gradflow's own, generated functions included."""
    return filename.startswith(_OURS)


def users_frame() -> FrameType | None:
    """The innermost frame of the user's code that the present call came from."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def explain(mistake: str, reason: str, fix: str) -> str:
    """Build a message in the order in which a reader needs it.

    >>> print(explain("sum(dim=0) is not a call gradflow knows.", "axes are named as in the array API.", "sum(axis=0)"))
    sum(dim=0) is not a call gradflow knows.
      why: axes are named as in the array API.
      fix: sum(axis=0)
    """
    return f"{mistake}\n  why: {reason}\n  fix: {fix}"


def sentence(error: BaseException) -> str:
    """What another library's error says, on one line, as a reason.

    >>> from gradflow.errors import sentence
    >>> sentence(ValueError("axes don't\\n match array.."))
    "axes don't match array."
    """
    return f"{' '.join(str(error).split()).rstrip('.')}."


class GradflowError(Exception):
    """Base of every error that gradflow raises on purpose."""


class ShapeError(GradflowError, ValueError):
    """Shapes that do not fit together."""


class DTypeError(GradflowError, TypeError):
    """A dtype, or a kind of object, that the operation does not take."""


class ArgumentError(GradflowError, ValueError):
    """A value outside the range that an argument allows."""


class IndexRangeError(GradflowError, IndexError):
    """An index or axis out of bounds."""


class GraphError(GradflowError, RuntimeError):
    """A derivative that the recorded graph cannot give: freed, overwritten, never recorded."""


class AnomalyError(GradflowError, FloatingPointError):
    """A NaN or an infinity that an operation produced, found by `detect_anomaly`."""


class TracedValueError(GradflowError, TypeError):
    """A value that is not known while a step is being traced was asked for."""


class CompilationError(GradflowError, RuntimeError):
    """A compiled function that does not do what the function does, found by `gf.compile(f, debug=True)`."""


class StateDictError(GradflowError, ValueError):
    """A state dict that does not match its model; nothing was loaded."""


class DataError(GradflowError, OSError):
    """A data set that can be neither found nor fetched, or whose checksum is wrong."""


class BackendMismatchError(GradflowError, TypeError):
    """Operands that live on different backends."""


class UnknownBackendError(GradflowError, ValueError):
    """A backend name that nothing offers."""


class BackendUnavailableError(GradflowError, ImportError):
    """A known backend that cannot be used on this machine."""


class MissingDependencyError(GradflowError, ImportError):
    """An optional package that the called function needs."""


class GradcheckError(GradflowError, AssertionError):
    """A property of derivatives that does not hold; what `gradflow.testing` raises."""


class WrongDerivativeError(GradcheckError):
    """A derivative that finite differences contradict.

    Attributes:
        argument, index: which input, and the flat index in it; None where no single element is to blame.
        analytic, numeric, tolerance: the two values, and how far apart they may be.
        primitive: name of the primitive whose rule is wrong by itself; None if there is none.
        order, mode: of the derivative.
        reproduce: a line of Python that shows the failure again.
    """

    argument: str | None
    index: int | None
    analytic: float
    numeric: float
    tolerance: float
    primitive: str | None
    order: int
    mode: str
    reproduce: str


class PropertyError(GradcheckError):
    """A property of derivatives (linearity, symmetry, parity of backends) that does not hold."""


class NondeterministicError(GradcheckError):
    """A function whose value or derivative changes from call to call."""


class MutatedInputError(GradcheckError):
    """A function that writes into its inputs."""
