"""Capturing computations: the tracing interpreter, from whose equations a compiler generates code."""

from gradflow.compiler.trace import Equation, Trace, trace

__all__ = ["Equation", "Trace", "trace"]
