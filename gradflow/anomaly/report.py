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

    def _span(self) -> tuple[int, int, int | None, int | None]:
        first, last, start, end = next(islice(self.code.co_positions(), self.instruction // 2, None))
        line = first or self.code.co_firstlineno
        return line, last or line, start, end


# ---------------------------------------------------------------- advice in the user's own terms
_OPERATORS = {ast.Div: "divide", ast.Pow: "power", ast.FloorDiv: "floor_divide", ast.Mod: "remainder"}
_SIMPLE = (ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Constant)


def _operands(expression: ast.expr, name: str) -> list[str]:
    """The operands' text, if the expression is a call of the primitive: f(x, y), x.f(y) or x / y; else none."""
    found: list[ast.expr] = []
    if isinstance(expression, ast.BinOp) and _OPERATORS.get(type(expression.op)) == name:
        found = [expression.left, expression.right]
    elif isinstance(expression, ast.Call) and isinstance(called := expression.func, ast.Name | ast.Attribute):
        if name != (called.id if isinstance(called, ast.Name) else called.attr):
            return []
        count = 2 if name in _OPERATORS.values() else 1
        method = isinstance(called, ast.Attribute) and len(expression.args) < count
        found = [*([called.value] if method and isinstance(called, ast.Attribute) else []), *expression.args]
    return [ast.unparse(e) if isinstance(e, _SIMPLE) else f"({ast.unparse(e)})" for e in found]


def _personal(fix: str, name: str, site: Site | None) -> str:
    """Advice about x and y, with what the user calls them."""
    expression = site.expression() if site else None
    operands = dict(zip("xy", _operands(expression, name) if expression else [], strict=False))
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
    """A `where` that did not choose the element whose derivative went bad: its site, and which branch that was."""

    site: Site | None
    branch: int  # 1 or 2: the position of x or y in where(condition, x, y)


_GUARDED = {"divide": 1, "floor_divide": 1, "remainder": 1}  # which operand to make safe; of all others the first


def why_trapped(name: str, trap: Trap, site: Site | None, cotangent: float | None) -> Reason:
    """The where-NaN trap: gradients flow into both branches of a where, 0 into the one that was not chosen."""
    line = f" at {trap.site.line()}" if trap.site else ""
    given = " of 0" if cotangent is None else f" of {number(cotangent)}"
    why = (
        f"the where{line} does not choose this element, but derivatives go into both branches: into this one goes "
        f"a cotangent{given}, and the derivative of {name} there is not finite; 0 · inf is nan."
    )
    return why, "choose before the operation, too:\n       " + "\n       ".join(_guarded(name, trap, site))


def _guarded(name: str, trap: Trap, site: Site | None) -> list[str]:
    """The user's own where with a safe operand in the branch at fault; an example if the source is not found."""
    example = ast.parse(_example(name), mode="eval").body
    call = trap.site.expression() if trap.site else None
    if not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith("where") and len(call.args) == 3):
        gf_where = ast.parse("gf.where", mode="eval").body
        call = ast.Call(gf_where, [ast.Name("condition"), example, ast.Constant(0.0)], [])
        trap = trap._replace(branch=1)
    where, condition, branch = ast.unparse(call.func), call.args[0], call.args[trap.branch]
    made = site.expression() if site else None  # where the branch is only a name
    places = [(e, found) for e in (branch, made, example) if e and (found := _at_fault(name, condition, e))]
    target, at_fault = places[0]
    chosen = (at_fault, "1.0") if trap.branch == 1 else ("1.0", at_fault)
    safe = f"safe = {where}({ast.unparse(condition)}, {', '.join(chosen)})"
    mended = _replaced(target, at_fault)
    if target is branch:
        args = [mended if arg is branch else ast.unparse(arg) for arg in call.args]
        return [safe, f"{where}({', '.join(args)})"]
    return [safe, f"{mended}   # in place of {ast.unparse(target)}"]


def _example(name: str) -> str:
    signs = {"divide": "/", "power": "**", "floor_divide": "//", "remainder": "%"}
    return f"x {signs[name]} y" if name in signs else f"gf.{name}(x)"


def _at_fault(name: str, condition: ast.expr, target: ast.expr) -> str | None:
    """What to replace in an expression: the variable that the condition asks about, or the primitive's operand."""
    operands = _operands(target, name)
    return _common_name(condition, target) or (operands[_GUARDED.get(name, 0)] if operands else None)


def _common_name(condition: ast.expr, branch: ast.expr) -> str | None:
    """The one variable that the condition asks about and the branch computes with."""
    asked, used = ({n.id for n in ast.walk(e) if isinstance(n, ast.Name)} for e in (condition, branch))
    called = {n.func.value.id for n in ast.walk(condition) if isinstance(n, ast.Call)
              and isinstance(n.func, ast.Attribute) and isinstance(n.func.value, ast.Name)
              and n.func.value.id in ("gf", "gradflow")}  # fmt: skip
    common = (asked & used) - called - {"gf", "gradflow"}
    return common.pop() if len(common) == 1 and not isinstance(branch, ast.Name) else None


def _replaced(expression: ast.expr, text: str) -> str:
    """The expression with `safe` wherever `text` stands."""

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            if isinstance(node, ast.expr) and ast.unparse(node) == text:
                return ast.Name("safe", ast.Load())
            return self.generic_visit(node)

    return ast.unparse(Replace().visit(ast.parse(ast.unparse(expression), mode="eval").body))


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
