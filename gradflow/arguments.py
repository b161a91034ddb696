"""Settings as users write them (integers, numbers, flags, choices, functions), checked in one place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.errors import ArgumentError, DTypeError, GradflowError, explain


def shown(value: object) -> str:
    """A value for a message: its repr, or its kind where that would fill the screen.

    >>> from gradflow.arguments import shown
    >>> shown("dim"), shown(list(range(100)))
    ("'dim'", 'a list')
    """
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def integer(
    function: str,
    name: str,
    value: Any,
    *,
    least: int | None = None,
    why: str = "it is an integer.",
    fix: str = "",
) -> int:
    """An integer, NumPy's and integer tensors of one element among them; a boolean is none.

    Raises:
        DTypeError: no integer.
        ArgumentError: one below `least`.

    >>> from gradflow.arguments import integer
    >>> integer("eye", "k", 2.0)
    Traceback (most recent call last):
    gradflow.errors.DTypeError: eye() got k=2.0.
      why: it is an integer.
      fix: k=1
    """
    if type(value) is int:
        found = value
    else:
        try:
            found = operator.index(_NO_INTEGER if isinstance(value, bool | type) else value)
        except GradflowError:  # a tensor that says itself why it is none
            raise
        except TypeError as error:
            fix = fix or f"{name}={1 if least is None else least or 1}"
            raise DTypeError(explain(f"{function}() got {name}={shown(value)}.", why, fix)) from error
    if least is not None and found < least:
        raise ArgumentError(
            explain(f"{function}() got {name}={found}.", f"it is at least {least}.", fix or f"{name}={least or 1}")
        )
    return found


_NO_INTEGER: Any = None


def integers(mistake: str, value: Any, *, why: str, fix: str) -> tuple[int, ...]:
    """Several integers, or one, as a tuple; else the error that begins with `mistake`.

    Raises:
        DTypeError: something else, such as a text or a set, which has no order.

    >>> from gradflow.arguments import integers
    >>> integers("it is no shape.", [2, np.int64(3)], why="lengths are integers.", fix="(2, 3)")
    (2, 3)
    """
    if type(value) is tuple and all(type(n) is int for n in value):
        return value
    one = hasattr(value, "__index__") and not getattr(value, "ndim", 0)
    try:
        items = (value,) if one else tuple(_NO_INTEGER if isinstance(value, _NO_SEQUENCE) else value)
        return tuple(integer("", "", item) for item in items)
    except TypeError as error:
        raise DTypeError(explain(mistake, why, fix)) from error


_NO_SEQUENCE = (str, bytes, dict, set, frozenset)


def number(function: str, name: str, value: Any, *, fix: str = "") -> int | float:
    """A real number, Python's or NumPy's, or an array or tensor of one element, as Python's.

    Raises:
        DTypeError: something else.

    >>> from gradflow.arguments import number
    >>> number("var", "correction", "one")
    Traceback (most recent call last):
    gradflow.errors.DTypeError: var() got correction='one'.
      why: it is a number.
      fix: correction=1.0
    """
    if type(value) is float or type(value) is int:
        return value
    found = value
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        found = value.item()
    if isinstance(found, bool | int | float):
        return found
    mistake = f"{function}() got {name}={shown(value)}."
    raise DTypeError(explain(mistake, "it is a number.", fix or f"{name}=1.0"))


def flag(function: str, name: str, value: Any) -> bool:
    """True or False, or 1 or 0 as NumPy's booleans are; nothing else, since the text "False" would count as true.

    Raises:
        DTypeError: something else.

    >>> from gradflow.arguments import flag
    >>> flag("sum", "keepdims", "False")
    Traceback (most recent call last):
    gradflow.errors.DTypeError: sum() got keepdims='False'.
      why: it is True or False.
      fix: keepdims=True
    """
    if value is True or value is False:
        return bool(value)
    found = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if isinstance(found, int) and found in (0, 1):
        return bool(found)
    raise DTypeError(explain(f"{function}() got {name}={shown(value)}.", "it is True or False.", f"{name}=True"))


def choice(function: str, name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of a few texts.

    Raises:
        ArgumentError: something else.
    """
    if isinstance(value, str) and value in allowed:
        return value
    mistake = f"{function} with {name}={shown(value)}."
    raise ArgumentError(explain(mistake, f"it is one of {tuple(allowed)}.", f'{name}="{allowed[0]}"'))


def function_of(transform: str, f: Any, fix: str) -> Callable[..., Any]:
    """Something that can be called.

    Raises:
        DTypeError: anything else, such as the result of a call in place of the function.

    >>> gf.grad(gf.tensor(1.0))
    Traceback (most recent call last):
    gradflow.errors.DTypeError: gf.grad of a Tensor.
      why: it takes a function, not what the function returned.
      fix: gf.grad(f)(x)
    """
    if callable(f):
        return f  # type: ignore[no-any-return]
    reason = "it takes a function, not what the function returned."
    raise DTypeError(explain(f"gf.{transform} of a {type(f).__name__}.", reason, fix))


def not_async(block: str, function: Callable[..., Any], fix: str = "") -> None:
    """Refuse a coroutine function or an async generator function, which a decorator would not be open for.

    A call of one only makes an object, which runs when it is awaited: after the decorator's block has been left.

    Args:
        block: the decorator, without `gf.`.
        function: what is decorated.
        fix: the way out, by default the block inside of the function.

    Raises:
        DTypeError: such a function, or an object whose `__call__` is one.

    >>> @gf.no_grad()
    ... async def predict(x):
    ...     return model(x)
    Traceback (most recent call last):
    gradflow.errors.DTypeError: @gf.no_grad() on predict, a coroutine function.
      why: its body runs when it is awaited; the decorator would be open only while it is called, and do nothing.
      fix: put `with gf.no_grad():` inside of predict
    """
    for body in (function, type(function).__call__) if callable(function) else ():
        if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
            kind = "a coroutine function" if inspect.iscoroutinefunction(body) else "an async generator function"
            name = getattr(function, "__name__", type(function).__name__)
            why = (
                "its body runs when it is awaited; the decorator would be open only while it is called, and do nothing."
            )
            fix = fix or f"put `with gf.{block}:` inside of {name}"
            raise DTypeError(explain(f"@gf.{block} on {name}, {kind}.", why, fix))


def wrong_kind(function: str, name: str, value: object, why: str, fix: str) -> DTypeError:
    """The error for an argument of the wrong kind, to be raised by who found it.

    >>> from gradflow.arguments import wrong_kind
    >>> print(wrong_kind("fit", "train", None, "it takes batches.", "train=[(x, y)]"))
    fit() got a NoneType as train.
      why: it takes batches.
      fix: train=[(x, y)]
    """
    kind = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
    return DTypeError(explain(f"{function}() got {kind} as {name}.", why, fix))
