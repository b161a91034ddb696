"""Capturing computations: the tracing interpreter, and `compile`, which makes programs of what it wrote down."""

from gradflow.compiler.compiled import Compiled, CompileWarning, compile, compiled_where_safe
from gradflow.compiler.trace import Equation, Trace, trace

__all__ = ["CompileWarning", "Compiled", "Equation", "Trace", "compile", "compiled_where_safe", "trace"]
