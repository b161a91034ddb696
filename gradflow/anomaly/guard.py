"""Code that mends the where-NaN trap: the user's own expression, with every risky operand chosen by a where before.

The expression is taken apart as a syntax tree, as far as it is element by element: there, and only there, an element
can be replaced without another one noticing. Where that is not enough, there is no code to show, and none is made up.
"""

from __future__ import annotations

import ast
from typing import Any

OPERATORS = {ast.Div: "divide", ast.Pow: "power", ast.FloorDiv: "floor_divide", ast.Mod: "remainder"}
_GUARDED = {
    "sqrt": (0,), "log": (0,), "log1p": (0,), "exp": (0,), "power": (0, 1),
    "divide": (1,), "floor_divide": (1,), "remainder": (1,),
}  # fmt: skip
"""Operations whose result or derivative is not finite somewhere -> the operands that decide; 1.0 is safe for all."""
_ELEMENTWISE = {
    *_GUARDED, "abs", "add", "subtract", "multiply", "negative", "positive", "square", "tanh", "sigmoid", "relu",
    "softplus", "sign", "minimum", "maximum", "clip", "where", "astype", "alias", "copy", "detach",
}  # fmt: skip
_LIBRARY = ("gf", "gradflow")


def called_as(expression: ast.AST) -> str:
    """The name of the operation that an expression is: of an operator, function or method; empty for all else."""
    if isinstance(expression, ast.BinOp):
        return OPERATORS.get(type(expression.op), "matmul" if isinstance(expression.op, ast.MatMult) else "add")
    if isinstance(expression, ast.Call) and isinstance(called := expression.func, ast.Name | ast.Attribute):
        return called.id if isinstance(called, ast.Name) else called.attr
    return ""


def operands(expression: ast.AST, name: str) -> list[ast.expr]:
    """The operands in f(x, y), x.f(y) or x / y, if that is a call of the operation; else none."""
    if called_as(expression) != name:
        return []
    if isinstance(expression, ast.BinOp):
        return [expression.left, expression.right]
    assert isinstance(expression, ast.Call)
    count = 2 if name in OPERATORS.values() else 1
    called = expression.func
    method = isinstance(called, ast.Attribute) and len(expression.args) < count
    return [*([called.value] if method and isinstance(called, ast.Attribute) else []), *expression.args]


def is_elementwise(name: str) -> bool:
    """Whether each element of an operation's result comes of one element of each operand."""
    return name in _ELEMENTWISE


def example(name: str) -> ast.expr:
    """The operation in its shortest form."""
    signs = {"divide": "/", "power": "**", "floor_divide": "//", "remainder": "%"}
    return ast.parse(f"x {signs[name]} y" if name in signs else f"gf.{name}(x)", mode="eval").body


def is_guarded(name: str) -> bool:
    """Whether it is known which operand of an operation has to be chosen before."""
    return name in _GUARDED


def mended(call: ast.Call, branch: int, name: str, target: ast.expr) -> list[str] | None:
    """Lines that compute an expression safely; None if no such code is known.

    Args:
        call: where(condition, x, y).
        branch: which of its arguments `target` is, or goes into.
        name: the operation at fault, which is in `target`.
        target: the expression to mend.
    """
    guards = _Guards(call, branch)
    whole = guards.visit(ast.parse(ast.unparse(target), mode="eval").body)  # a copy: the tree is changed in place
    if not guards.lines or not guards.covers(name):
        return None
    if target is call.args[branch]:
        arguments = [whole if arg is target else arg for arg in call.args]
        return [*guards.lines, ast.unparse(ast.Call(call.func, arguments, []))]
    return [*guards.lines, f"{ast.unparse(whole)}   # in place of {ast.unparse(target)}"]


class _Guards(ast.NodeTransformer):
    """Puts a variable in the place of each operand that decides, from the inside out, and writes down what it is.

    Attributes:
        lines: safe = where(condition, operand, 1.0), and so on.
    """

    def __init__(self, call: ast.Call, branch: int) -> None:
        self.call, self.branch = call, branch
        self.lines: list[str] = []
        self._safe: dict[str, ast.Name] = {}  # the operand's tree -> the variable
        self._guarded: set[str] = set()  # operations
        self._hidden: set[str] = set()  # operations in what was not looked into
        self._taken = {n.id for n in ast.walk(call) if isinstance(n, ast.Name)}

    def covers(self, name: str) -> bool:
        """Whether the operation at fault is guarded, or all is that can have handed it something infinite."""
        if is_guarded(name):
            return name in self._guarded and name not in self._hidden
        return is_elementwise(name) and not self._hidden

    def visit(self, node: ast.AST) -> Any:
        name = called_as(node)
        if not (isinstance(node, ast.UnaryOp) or name in _ELEMENTWISE):
            self._hidden |= {inner for n in ast.walk(node) if (inner := called_as(n)) in _GUARDED}
            return node
        if isinstance(node, ast.Call):
            self._visit_call(node)
        else:
            self.generic_visit(node)
        if name in _GUARDED and not _is_harmless(node):
            self._guarded.add(name)
            for i, operand in enumerate(operands(node, name)):
                if i in _GUARDED[name] and not self._is_safe(operand):
                    _put(node, operand, self._variable(operand))
        return node

    def _visit_call(self, node: ast.Call) -> None:
        node.args = [self.visit(arg) for arg in node.args]
        if isinstance(node.func, ast.Attribute) and not _is_library(node.func.value):
            node.func.value = self.visit(node.func.value)

    def _is_safe(self, operand: ast.expr) -> bool:
        """Whether it is a number, or was chosen already and is positive: the root of 1.0, but not its logarithm."""
        if called_as(operand) in ("sqrt", "exp"):
            return all(map(self._is_safe, operands(operand, called_as(operand))))
        return isinstance(operand, ast.Constant) or operand in self._safe.values()

    def _variable(self, operand: ast.expr) -> ast.Name:
        key = ast.dump(operand)
        if key not in self._safe:
            names = ("safe", *(f"safe{i}" for i in range(2, 99)))
            name = next(name for name in names if name not in self._taken)
            self._taken.add(name)
            choice: list[ast.expr] = [operand, ast.Constant(1.0)]
            chosen = ast.Call(self.call.func, [self.call.args[0], *(choice if self.branch == 1 else choice[::-1])], [])
            self.lines.append(f"{name} = {ast.unparse(chosen)}")
            self._safe[key] = ast.Name(name, ast.Load())
        return self._safe[key]


def _is_library(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in _LIBRARY


def _is_harmless(node: ast.AST) -> bool:
    """Division by a number that is written down, and powers of 1, 2, 3, …"""
    if not isinstance(node, ast.BinOp) or not isinstance(node.right, ast.Constant):
        return False
    value = node.right.value
    return bool(value) if not isinstance(node.op, ast.Pow) else isinstance(value, int) and value >= 1


def _put(node: ast.AST, old: ast.expr, new: ast.expr) -> None:
    """Put one operand in the place of another."""
    if isinstance(node, ast.BinOp):
        node.left, node.right = (new if side is old else side for side in (node.left, node.right))
    elif isinstance(node, ast.Call):
        node.args = [new if arg is old else arg for arg in node.args]
        if isinstance(node.func, ast.Attribute) and node.func.value is old:
            node.func.value = new
