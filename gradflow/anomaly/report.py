"""What a hunt tells the user: the line, the module, the values, the reason, and code that mends it. Text only."""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

from gradflow.anomaly import guard
from gradflow.errors import AnomalyError, explain

Values = dict[str, float]
Reason = tuple[str, str]  # why, fix
SHOWN = 6  # operations that passed a bad value on; a deep network has hundreds


# ---------------------------------------------------------------- where an operation was called
CALLERS: dict[int, str] = {}
"""Of code that calls modules, by its id: the local variable that holds the one being called."""
_describe: Callable[[Sequence[Any]], str] | None = None


def calls_modules(code: CodeType, local: str) -> None:
    """Say that frames of this code call a module, and in which local variable it is. Modules live above, and say so."""
    CALLERS[id(code)] = local


def name_modules(describe: Callable[[Sequence[Any]], str]) -> None:
    """Say how the innermost of nested modules, which are given from the inside out, is named."""
    global _describe
    _describe = describe


class Site(NamedTuple):
    """Where in the user's code an operation was called.

    Attributes:
        code, instruction: the innermost frame of the user's, and where in it the call stands.
        modules: the modules whose call was open, from the inside out.
    """

    code: CodeType
    instruction: int
    modules: tuple[Any, ...]

    def line(self) -> str:
        """File, line number and text of the line."""
        number = self._span()[0]
        text = linecache.getline(self.code.co_filename, number).strip()
        return f"{self.code.co_filename}:{number}{f': {text}' if text else ''}"

    def place(self) -> str:
        """The path of the module; empty outside of any."""
        return _describe(self.modules) if self.modules and _describe is not None else ""

    def expression(self) -> ast.expr | None:
        """The call itself, where its source can be found."""
        first, last, start, end = self._span()
        lines = [linecache.getline(self.code.co_filename, n).encode() for n in range(first, last + 1)]
        if start is None or end is None or not all(lines):
            return None
        lines[-1] = lines[-1][:end]
        lines[0] = lines[0][start:]
        try:
            return ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
        except SyntaxError:
            return None

    def contains(self, other: Site) -> bool:
        """Whether another call in the same code stands within this one."""
        (first, last, start, end), (top, bottom, left, right) = self._span(), other._span()
        if start is None or end is None or left is None or right is None:
            return False
        return (first, start) <= (top, left) and (bottom, right) <= (last, end)

    def _span(self) -> tuple[int, int, int | None, int | None]:
        first, last, start, end = next(islice(self.code.co_positions(), self.instruction // 2, None))
        line = first or self.code.co_firstlineno
        return line, last or line, start, end


# ---------------------------------------------------------------- advice in the user's own terms
_SIMPLE = (ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Constant)


def _texts(expression: ast.expr, name: str) -> list[str]:
    """The operands' text, in parentheses where an operator may stand next to it."""
    found = guard.operands(expression, name)
    return [ast.unparse(e) if isinstance(e, _SIMPLE) else f"({ast.unparse(e)})" for e in found]


def _personal(fix: str, name: str, site: Site | None) -> str:
    """Advice about x and y, with what the user calls them."""
    expression = site.expression() if site else None
    operands = dict(zip("xy", _texts(expression, name) if expression else [], strict=False))
    return re.sub(r"\b[xy]\b", lambda word: operands.get(word[0], word[0]), fix)


# ---------------------------------------------------------------- why it happened: operations going forward
def _overflow(dtype: np.dtype[Any]) -> Reason:
    return (
        f"the result is beyond the largest number of {dtype}, {np.finfo(dtype).max:.3g}.",
        "keep the operands small: normalise the inputs, clip them (gf.clip(x, -1e4, 1e4)), or lower the learning rate",
    )


_DIVISION = (
    "a number divided by 0 is infinite, and 0 / 0 is nan.",
    "x / gf.where(y == 0, 1.0, y), or x / (y + 1e-8) where y is never negative",
)
_POLES: dict[str, tuple[Callable[[Values], bool], Reason]] = {
    "log": (
        lambda v: True,
        ("the logarithm of 0 is -inf, that of a negative number nan.",
         "gf.log(gf.clip(x, 1e-12)), or gf.log_softmax(logits) for the logarithm of a softmax"),
    ),
    "log1p": (
        lambda v: True,
        ("the logarithm of 1 + x is -inf at x = -1, and nan below.", "gf.log1p(gf.clip(x, -0.999999))"),
    ),
    "sqrt": (
        lambda v: True,
        ("a negative number has no real square root.", "gf.sqrt(gf.clip(x, 0.0)), or gf.sqrt(gf.abs(x))"),
    ),
    "exp": (
        lambda v: True,
        ("the exponential of more than 88.7 is beyond float32, of more than 709.7 beyond float64.",
         "gf.softmax, gf.logsumexp, gf.sigmoid, gf.softplus are safe for any x; or gf.exp(gf.clip(x, max=80))"),
    ),
    "divide": (lambda v: v.get("y") == 0, _DIVISION),
    "floor_divide": (lambda v: v.get("y") == 0, _DIVISION),
    "remainder": (lambda v: v.get("y") == 0, _DIVISION),
    "power": (
        lambda v: v.get("x", 0.0) <= 0,
        ("0 to a negative power is infinite, and a negative number to a fractional power is nan.",
         "gf.clip(x, 1e-12) ** y"),
    ),
    "mean": (lambda v: True, ("the mean of no elements, 0 / 0, is nan.", "leave empty tensors out: if x.size: ...")),
    "softmax_cross_entropy": (
        lambda v: True,
        ("no label of the batch counts (all are ignore_index), and the mean over nothing is nan.",
         "leave out a batch without labels: if (labels != ignore_index).any(): ..."),
    ),
}  # fmt: skip


def why_forward(
    name: str, values: Values, dtype: np.dtype[Any], worst: float, given: bool, site: Site | None
) -> Reason:
    """The reason for a bad result of an operation.

    Args:
        name: the primitive's.
        values: its operands at the bad element; empty for an operation that is not element by element.
        dtype: of the result.
        worst: the bad element.
        given: whether operands held infinities.
        site: where it ran.
    """
    if given:
        return (
            "inf - inf, 0 · inf and inf / inf are nan; the infinity came in with the operands.",
            "clip what becomes infinite (gf.clip(x, -1e4, 1e4)), or choose by gf.where before this operation",
        )
    if name in _POLES:
        applies, reason = _POLES[name]
        if applies(values) and (name != "mean" or np.isnan(worst)):
            return reason[0], _personal(reason[1], name, site)
    if name in ("var", "std") and np.isnan(worst):
        return "there are no degrees of freedom: n - correction is 0.", "correction=0, or more than one element"
    return _overflow(dtype)


# ---------------------------------------------------------------- and going backward
_STEEP = {
    "sqrt": ("the derivative of the square root, 1 / (2√x), is infinite at 0.", "gf.sqrt(x + 1e-12)"),
    "log": ("the derivative of the logarithm, 1 / x, is infinite at 0.", "gf.log(gf.clip(x, 1e-12))"),
    "log1p": ("the derivative of log1p, 1 / (1 + x), is infinite at -1.", "gf.log1p(gf.clip(x, -0.999999))"),
    "divide": (
        "the derivatives of x / y, 1 / y and -x / y², are infinite at y = 0.", "x / gf.where(y == 0, 1.0, y)"
    ),
    "power": (
        "the derivatives of x^y, y·x^(y-1) and x^y·ln x, are infinite or nan at x = 0 and below for such y.",
        "gf.clip(x, 1e-12) ** y",
    ),
}  # fmt: skip


def why_backward(
    name: str,
    cotangent: float | None,
    worst: float,
    dtype: np.dtype[Any],
    read_bad: bool = False,
    site: Site | None = None,
) -> Reason:
    """The reason for a bad cotangent that the derivative of an operation made of a good one."""
    if name in _STEEP:
        why, fix = _STEEP[name][0], _personal(_STEEP[name][1], name, site)
    elif read_bad:
        why = "the derivative reads a value that was infinite or nan going forward."
        fix = "keep it finite going forward, too: clip the operand of what produced it"
    else:
        why = f"the product of the chain rule is beyond the largest number of {dtype}, {np.finfo(dtype).max:.3g}."
        fix = "a smaller loss (a mean in place of a sum), or gf.nn.utils.clip_grad_norm_ and a lower learning rate"
    if cotangent == 0 and np.isnan(worst):
        why += " The cotangent there is 0, and 0 · inf is nan."
    return why, fix


class Trap(NamedTuple):
    """A `where` that did not choose the element whose derivative went bad.

    Attributes:
        site: of the where.
        branch: 1 or 2, the position of x or y in where(condition, x, y).
        way: the primitives between the operation and the where.
    """

    site: Site | None
    branch: int
    way: tuple[str, ...] = ()


def why_trapped(name: str, trap: Trap, site: Site | None, cotangent: float | None) -> Reason:
    """The where-NaN trap: gradients flow into both branches of a where, 0 into the one that was not chosen."""
    line = f" at {trap.site.line()}" if trap.site else ""
    given = " of 0" if cotangent is None else f" of {number(cotangent)}"
    why = (
        f"the where{line} does not choose this element, but derivatives go into both branches: into this one goes "
        f"a cotangent{given}, and the derivative of {name} there is not finite; 0 · inf is nan."
    )
    return why, _choose_before(name, trap, site)


def _choose_before(name: str, trap: Trap, site: Site | None) -> str:
    """The user's own where with safe operands in the branch at fault; the pattern if no such code is known."""
    call = trap.site.expression() if trap.site else None
    if isinstance(call, ast.Call) and guard.called_as(call) == "where" and len(call.args) == 3 and not call.keywords:
        for target in _targets(call, trap, site):
            if (lines := guard.mended(call, trap.branch, name, target)) is not None:
                return "\n       ".join(["choose before the operation, too:", *lines])
    if not guard.is_guarded(name):
        return (
            "choose before the operation that was given or made something infinite, too: gf.where(condition, x, 1.0) "
            "in the place of its operand x, with a condition of the shape of x"
        )
    example = ast.unparse(guard.example(name))
    pattern = ast.parse(f"gf.where(condition, {example}, 0.0)", mode="eval").body
    assert isinstance(pattern, ast.Call)
    lines = guard.mended(pattern, 1, name, pattern.args[1]) or []
    return "\n       ".join([f"choose before the operation, too, for {example} by a condition of its shape:", *lines])


def _targets(call: ast.Call, trap: Trap, site: Site | None) -> list[ast.expr]:
    """What to mend: the branch if the operation ran in it, else the operation's own expression, earlier in the code."""
    if site is None or trap.site is None or site.code is not trap.site.code:
        return []
    if trap.site.contains(site):
        return [call.args[trap.branch]]
    made = site.expression()
    return [made] if made is not None and all(map(guard.is_elementwise, trap.way)) else []


# ---------------------------------------------------------------- the message
def number(value: float) -> str:
    """A value as it is shown: six digits, and a point in what is no integer by type."""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.6g}"
    return f"{text}.0" if text.lstrip("-").isdigit() else text


def position(index: tuple[int, ...], shape: tuple[int, ...], of: str) -> str:
    """Where in an array: flat index and, with several axes, the index.

    >>> from gradflow.anomaly.report import position
    >>> position((1, 2), (2, 4), "its result")
    'at flat index 6, index (1, 2), of its result of shape (2, 4)'
    """
    if not shape:
        return f"as {of}, a scalar"
    flat = int(np.ravel_multi_index(index, shape))
    several = f", index {index}," if len(shape) > 1 else ""
    return f"at flat index {flat}{several} of {of} of shape {shape}"


def summary(array: np.ndarray) -> str:
    """An operand that cannot be shown at one element: shape, range, and how much of it is bad."""
    text = f"shape {array.shape}"
    if array.dtype.kind != "f" or not array.size:
        return f"{array.dtype}, {text}"
    bad = ~np.isfinite(array)
    if not bad.all():
        text += f", from {number(float(array[~bad].min()))} to {number(float(array[~bad].max()))}"
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        text += f", {int(bad.sum())} not finite, first {number(float(array.reshape(-1)[first]))} at flat index {first}"
    return text


def where_it_ran(site: Site | None, verb: str = "at") -> list[str]:
    """The lines of a message that say where."""
    if site is None:
        return [f"{verb} a line outside of the block"]
    place = site.place()
    return [f"{verb} {site.line()}", *([f"in {place}"] if place else [])]


def anomaly(
    mistake: str, details: Iterable[str], passed_on: Sequence[str], reason: Reason, used: str = ""
) -> AnomalyError:
    """The error that reports a bad value."""
    lines = [mistake, *(f"  {detail}" for detail in details)]
    if passed_on:
        shown = passed_on if len(passed_on) <= SHOWN else [*passed_on[: SHOWN - 1], "…", passed_on[-1]]
        lines += ["  then passed on by:", *(f"    {step}" for step in shown)]
    lines += [f"  {used}"] if used else []
    return AnomalyError(explain("\n".join(lines), *reason))
