"""Primitives: named array functions with derivative rules, their registry, and the template that makes them fast.

A primitive is declared as a documented stub: operands (arrays) positional-only, settings keyword-only. Its rules are
written once over a namespace `xp` and say by the names of their arguments what they save::

    @primitive("float")
    def tanh(x: Operand, /) -> Tensor: ...

    defvjp(tanh, x=lambda xp, g, out: g * (1 - out * out))

A rule may name `g` (the cotangent), operands, `<operand>_shape`, settings and `out`. It must return a fresh array,
`g` itself or a view of `g`; the sweep brings it to the operand's shape and dtype.

The public function is generated from one template at its first call: unwrap, check by identity, run the backend's
kernel, record what the rules name. Everything unusual (scalars, NumPy arrays, mixed dtypes) is made usual by
`coerce` and sent through the same function again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np

from gradflow import structure, tape
from gradflow.arguments import wrong_kind
from gradflow.backend import Backend, resolve
from gradflow.config import get_default_dtype
from gradflow.errors import (
    ArgumentError,
    DTypeError,
    GradflowError,
    GraphError,
    IndexRangeError,
    ShapeError,
    explain,
    sentence,
)
from gradflow.mode import NO_GRAD, RECORD, get_mode
from gradflow.tape import Node
from gradflow.tensor import OPS, Tensor, mismatch, wrap

F = TypeVar("F", bound=Callable[..., Any])
Rule = Callable[..., Any]
DTypes = Literal["float", "numeric", "compare", "bits", "any"]

REGISTRY: dict[str, Primitive] = {}


class Primitive:
    """A named function of arrays.

    Attributes:
        operands: names of the array arguments; with `variadic`, the last one stands for any number of arrays.
        settings: names of the keyword-only arguments.
        dtypes: "float" (integers become the default float dtype), "numeric" (common dtype), "compare" (common dtype,
            result bool), "bits" (integers and booleans), "any" (dtypes are left as they are).
        promoted: positions of the operands that are brought to a common dtype.
        writes: how many of the first operands are written in place (an update rule; nothing is returned). A graph can
            have saved the first alone; the others are the caller's own state.
        residual: whether a backend may keep a value of its own between the kernel and its derivative.
        nondifferentiable: marked as having no derivative.
        rules, names: per operand, the derivative and what it reads.
        impl: the primitive in terms of others over `xp`, for backends that offer no kernel.
    """

    def __init__(self, stub: Callable[..., Any], name: str, dtypes: DTypes, options: dict[str, Any]) -> None:
        code = stub.__code__
        names = code.co_varnames
        fixed = code.co_argcount
        self.variadic = bool(code.co_flags & 0x04)
        self.name = name
        self.settings: tuple[str, ...] = names[fixed : fixed + code.co_kwonlyargcount]
        rest = (names[fixed + code.co_kwonlyargcount],) if self.variadic else ()
        self.operands: tuple[str, ...] = names[:fixed] + rest
        self.defaults: dict[str, Any] = dict(stub.__kwdefaults__ or {})
        self.position = {operand: i for i, operand in enumerate(self.operands)}
        self.dtypes = dtypes
        promote = options.pop("promote", None)
        self.promoted = (
            tuple(range(len(self.operands))) if promote is None else tuple(self.position[name] for name in promote)
        )
        self.writes: int = options.pop("writes", 0)
        self.residual: bool = options.pop("residual", False)
        self.nondifferentiable: bool = options.pop("nondifferentiable", False)
        self.hint: str = options.pop("hint", "")
        self.check: Callable[..., None] | None = options.pop("check", None)
        if options or dtypes not in get_args(DTypes):
            wrong = f"options {sorted(options)}" if options else f"dtypes={dtypes!r}"
            raise ArgumentError(
                explain(
                    f"primitive {name} with {wrong}.",
                    f"dtypes is one of {get_args(DTypes)}; options stand in the docstring of `primitive`.",
                    '@primitive("float")',
                )
            )
        self.rules: list[Rule | None] = [None] * len(self.operands)
        self.names: list[tuple[str, ...]] = [()] * len(self.operands)
        self.impl: Callable[..., Any] | None = None
        self.function: Callable[..., Any]
        self.doc = stub.__doc__

    def __repr__(self) -> str:
        return f"<primitive {self.name}>"

    def rule_at(self, i: int) -> Rule:
        """The generic rule of array argument i."""
        return cast(Rule, self.rules[min(i, len(self.rules) - 1)])

    def has_rule(self, i: int) -> bool:
        """Whether array argument i has a derivative."""
        return self.rules[min(i, len(self.rules) - 1)] is not None

    def names_at(self, i: int) -> tuple[str, ...]:
        """What the rule of array argument i reads after `xp, g`."""
        return self.names[min(i, len(self.names) - 1)]

    def is_promoted(self, i: int) -> bool:
        """Whether array argument i takes part in promotion."""
        return min(i, len(self.operands) - 1) in self.promoted


def primitive(dtypes: DTypes, *, name: str | None = None, **options: Any) -> Callable[[F], F]:
    """Register a documented stub as a primitive and replace it by the function of Tensors made from the template.

    Args:
        dtypes: how operand dtypes are brought together, see `Primitive`.
        name: the primitive's name where the stub's is private.
        options: `promote` (names of the operands that are promoted), `writes`, `residual`, `nondifferentiable`, and
            `hint` (a corrected call, shown when shapes do not fit) or `check` (called with the operands' shapes when a
            kernel failed, to raise the error that says why).
    """

    if not isinstance(dtypes, str):
        raise wrong_kind(
            "primitive", "dtypes", dtypes, "it is applied with the kind of its dtypes.", '@primitive("float")'
        )

    def register(stub: F) -> F:
        prim = Primitive(stub, name or stub.__name__, dtypes, dict(options))
        if prim.name in REGISTRY:
            raise ArgumentError(f"a primitive named {prim.name!r} is registered already")
        REGISTRY[prim.name] = prim
        prim.function = _update_function(prim) if prim.writes else _function(prim)
        for attribute in ("__doc__", "__module__", "__qualname__", "__annotations__"):
            setattr(prim.function, attribute, getattr(stub, attribute))
        prim.function.__wrapped__ = stub  # type: ignore[attr-defined]
        prim.function.primitive = prim  # type: ignore[attr-defined]
        setattr(OPS, prim.name, prim.function)
        return cast(F, prim.function)

    return register


def of(function: Callable[..., Any]) -> Primitive:
    """The primitive behind a public function.

    Raises:
        DTypeError: something that `primitive` did not make.
    """
    found = getattr(function, "primitive", None)
    if not isinstance(found, Primitive):
        reason = "a rule belongs to a function that @primitive made."
        raise wrong_kind("defvjp", "function", function, reason, '@primitive("float") above its definition')
    return found


def defvjp(function: Callable[..., Any], **rules: Rule) -> None:
    """Give a primitive its derivative rules, one for each operand that has a derivative.

    >>> from gradflow.primitive import REGISTRY
    >>> REGISTRY["tanh"].names
    [('out',)]
    """
    prim = of(function)
    known = {*prim.operands, *prim.settings, *(f"{o}_shape" for o in prim.operands), "out"}
    if prim.variadic:
        known |= {"position", f"{prim.operands[-1]}_shapes"}
    for operand, rule in rules.items():
        if not isinstance(rule, FunctionType):
            reason = "a rule says by the names of its arguments what it reads."
            raise wrong_kind("defvjp", operand, rule, reason, f"defvjp({prim.name}, {operand}=lambda xp, g, out: ...)")
        code = rule.__code__
        names = code.co_varnames[2 : code.co_argcount]
        if operand not in prim.position or not known.issuperset(names):
            raise ArgumentError(
                explain(
                    f"the rule of {prim.name} for {operand!r} reads {names}.",
                    f"operands are {prim.operands}; a rule may read {sorted(known)}.",
                    f"defvjp({prim.name}, {prim.operands[0]}=lambda xp, g, out: ...)",
                )
            )
        if rule.__name__ == "<lambda>":
            rule.__name__ = rule.__qualname__ = f"vjp_{prim.name}_{operand}"  # what a traceback shows
        i = prim.position[operand]
        prim.rules[i], prim.names[i] = rule, names
        _forget(f"{prim.name}_vjp_{operand}")
    if not prim.variadic:
        prim.function.__code__ = _first_call.__code__
    structure.rules_changed()


def defimpl(function: Callable[..., Any], impl: Callable[..., Any]) -> None:
    """Say how a primitive is computed from others over `xp`, for backends without a kernel of its name."""
    prim = of(function)
    if not callable(impl):
        reason = "it computes the primitive from others over xp."
        raise wrong_kind("defimpl", "impl", impl, reason, f"defimpl({prim.name}, lambda xp, x: ...)")
    prim.impl = impl
    _forget(prim.name)
    structure.rules_changed()


def _forget(name: str) -> None:
    """Have every namespace look a function up again."""
    for xp in _NAMESPACES.values():
        vars(xp).pop(name, None)


# ---------------------------------------------------------------- a backend's namespace on raw arrays
class Namespace:
    """`xp` on raw arrays: the backend's kernels and derivatives by name, found at first use and kept as attributes."""

    backend: Backend

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.as_array = backend.asarray

    def one(self, dtype: Any) -> Any:
        """A new 0-d 1: a hook may write into the gradient that it is shown."""
        return self.backend.asarray(1, dtype)

    def __getattr__(self, name: str) -> Any:
        found = _find(self, name)
        if found is None:
            raise AttributeError(
                f"backend {self.backend.name!r} offers no {name!r} and gradflow cannot compose it from other primitives"
            )
        setattr(self, name, found)
        return found


def _find(xp: Namespace, name: str) -> Any:
    """The function on raw arrays behind `tanh`, `tanh_residual` or `tanh_vjp_x`."""
    backend = xp.backend
    if name in REGISTRY:
        prim = REGISTRY[name]
        return backend.kernels.get(name) or (_generic_kernel(xp, prim) if prim.impl else None)
    stem, _, operand = name.rpartition("_vjp_")
    if stem in REGISTRY:
        prim = REGISTRY[stem]
        rule = prim.rules[prim.position[operand]]
        if (stem, operand) in backend.vjps:
            return backend.vjps[stem, operand]
        if not prim.residual:
            return rule
        return lambda xp, g, *saved: rule(xp, g, *saved[:-1])  # type: ignore[misc]
    stem = name.removesuffix("_residual")
    if stem != name and stem in REGISTRY:
        return backend.residual_kernels.get(stem) or (lambda *a, **s: (getattr(xp, stem)(*a, **s), None))
    return None


def _generic_kernel(xp: Namespace, prim: Primitive) -> Callable[..., Any]:
    impl = cast(Callable[..., Any], prim.impl)
    if not prim.writes:
        return lambda *operands, **settings: impl(xp, *operands, **settings)

    def update(*operands: Any, **settings: Any) -> None:
        for old, new in zip(operands[: prim.writes], impl(xp, *operands, **settings), strict=True):
            xp.assign(old, new)

    return update


_NAMESPACES: dict[Backend, Namespace] = {}


def namespace(backend: str | Backend | None = None) -> Namespace:
    """The namespace of the backend that a new tensor gets."""
    chosen = resolve(backend)
    if (found := _NAMESPACES.get(chosen)) is None:
        found = _NAMESPACES[chosen] = Namespace(chosen)
    return found


# ---------------------------------------------------------------- the slow path: make unusual operands usual
def common_dtype(name: str, dtypes: DTypes, strong: list[np.dtype[Any]], weak: list[Any]) -> np.dtype[Any]:
    """The dtype that the operands of `name` meet in; Python and NumPy scalars are weak, integers give way to floats."""
    default = get_default_dtype()
    floats = [d for d in strong if d.kind == "f"]
    if floats:
        target = np.result_type(*floats)
    elif any(isinstance(w, float) for w in weak):
        target = np.dtype(np.float64) if strong and dtypes == "compare" else default
    elif strong:
        target = np.result_type(*strong)
        if target.kind == "f":
            raise DTypeError(
                explain(
                    f"{name} of {' and '.join(d.name for d in dict.fromkeys(strong))}.",
                    "no integer dtype holds the values of both.",
                    "x.astype(gf.int64) on the unsigned one",
                )
            )
        if target.kind in "iu" and not all(_holds(target, w) for w in weak):
            if dtypes == "compare":  # a number beyond the integers compares with all of them alike
                target = np.dtype(np.float64)
            elif dtypes != "float":
                raise ArgumentError(
                    explain(
                        f"{name} of a {target} tensor and {', '.join(map(str, weak))}.",
                        f"{target} holds {np.iinfo(target).min} to {np.iinfo(target).max}.",
                        "x.astype(gf.int64)" if target != np.int64 else "x.astype(gf.float64)",
                    )
                )
        if target.kind == "b" and any(isinstance(w, int) and not isinstance(w, bool) for w in weak):
            target = np.dtype(np.int64)
    else:
        target = np.result_type(*map(_natural_dtype, weak))
    return default if dtypes == "float" and target.kind != "f" else target


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    limits = np.iinfo(dtype)
    return int(limits.min) <= value <= int(limits.max)


def _unwrap_scalar(prim: Primitive, operand: Any) -> Any:
    value = operand.item() if isinstance(operand, np.generic) else operand
    if isinstance(value, bool | int | float):
        return value
    kind = type(operand).__name__
    fix = f"gf.tensor({operand!r})" if isinstance(operand, list | tuple) else "gf.tensor(data)"
    if operand is None:
        fix = "`t is None` asks whether there is a tensor"
    raise DTypeError(explain(f"{prim.name} got a {kind}.", "operands are tensors, NumPy arrays and numbers.", fix))


def coerce(prim: Primitive, operands: Sequence[Any]) -> tuple[Tensor, ...]:
    """The operands as Tensors of one backend and, where the primitive promotes, one dtype.

    Raises:
        BackendMismatchError: tensors of different backends.
        DTypeError: an operand that is no array or number, or dtypes without a common one.
    """
    if _are_usual(prim, operands):
        return tuple(operands)
    xp = _one_namespace(prim, operands)
    made: list[Any] = []
    strong: list[np.dtype[Any]] = []
    weak: list[Any] = []
    for i, operand in enumerate(operands):
        if not isinstance(operand, Tensor):
            if isinstance(operand, np.ndarray):
                operand = OPS.make_tensor(operand, backend=xp.backend, copy=False)
            else:
                operand = _unwrap_scalar(prim, operand)
        made.append(operand)
        if prim.is_promoted(i):
            (strong.append(operand._data.dtype) if isinstance(operand, Tensor) else weak.append(operand))
    known = prim.dtypes != "any" and (strong or weak)
    target = common_dtype(prim.name, prim.dtypes, strong, weak) if known else None
    if prim.dtypes == "bits" and target is not None and target.kind == "f":
        raise DTypeError(
            explain(
                f"{prim.name} of {target.name}.",
                "it works on booleans and integers.",
                "compare first: (x > 0) & (y > 0)",
            )
        )
    for i, operand in enumerate(made):
        to = target if prim.is_promoted(i) else None
        if not isinstance(operand, Tensor):
            made[i] = wrap(xp.as_array(operand, to or _natural_dtype(operand)), xp)
        elif to is not None and operand._data.dtype != to:
            made[i] = OPS.astype(operand, dtype=to)
    return tuple(made)


def _are_usual(prim: Primitive, operands: Sequence[Any]) -> bool:
    """Whether there is nothing to bring together: floating-point Tensors of one backend and one dtype."""
    if prim.dtypes == "bits" or not operands or not isinstance(operands[0], Tensor):
        return False
    xp, dtype = operands[0]._xp, operands[0]._data.dtype
    for t in operands:  # not `all`, which takes twice as long
        if not isinstance(t, Tensor) or t._xp is not xp or t._data.dtype is not dtype:
            return False
    return bool(dtype.kind == "f")


def _natural_dtype(value: Any) -> np.dtype[Any]:
    if isinstance(value, float):
        return get_default_dtype()
    if not _holds(np.dtype(np.int64), value):
        raise ArgumentError(
            explain(f"an operand {value}.", "integers have 64 bits, -2**63 to 2**63 - 1.", f"float({value})")
        )
    return np.dtype(np.bool_ if isinstance(value, bool) else np.int64)


def _one_namespace(prim: Primitive, operands: Sequence[Any]) -> Any:
    found = None
    for operand in operands:
        if isinstance(operand, Tensor):
            if found is None:
                found = operand._xp
            elif operand._xp is not found:
                raise mismatch(f"{prim.name} got tensors", found.backend, operand._xp.backend)
    return found if found is not None else namespace()


_SCALARS = (bool, int, float, np.generic)  # a union would be built anew at every call: 0.2 µs


def _weak(x: Any, y: Any) -> tuple[Tensor, Tensor] | None:
    """A floating-point tensor and a Python or NumPy scalar as two tensors of its dtype; None in every other case."""
    if swap := not isinstance(x, Tensor):
        x, y = y, x
    if not isinstance(y, _SCALARS) or not isinstance(x, Tensor):
        return None
    dtype = x._data.dtype
    if dtype.kind != "f" or isinstance(y, np.generic) and y.dtype.kind not in "biuf":
        return None
    t = Tensor()
    t._data, t._xp, t._node = x._xp.as_array(y, dtype), x._xp, None
    return (t, x) if swap else (x, t)


def _again(prim: Primitive, operands: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    """The same call on operands made usual."""
    coerced = coerce(prim, operands)
    if all(a is b for a, b in zip(operands, coerced, strict=True)):
        raise DTypeError(
            explain(
                f"{prim.name} of {', '.join(f'{t.dtype} {t.shape}' for t in coerced)} gave another dtype.",
                "its kernel does not support this dtype.",
                "x.astype(gf.float32)",
            )
        )
    return prim.function(*coerced, **settings)


_SHAPE_WORDS = ("shape", "broadcast", "dimension", "zero-size", "size ", "aligned", "axis", "sequence")


def _failed(prim: Primitive, error: Exception, operands: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    """A kernel raised: try operands made usual, else say what did not fit."""
    if isinstance(error, GradflowError):
        raise error
    coerced = coerce(prim, operands)
    if any(a is not b for a, b in zip(operands, coerced, strict=True)):
        return prim.function(*coerced, **settings)
    if not isinstance(error, ValueError | TypeError | IndexError):
        raise error
    if prim.check is not None:
        prim.check(*(t.shape for t in coerced))
    given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    shapes = " and ".join(str(t.shape) for t in coerced)
    mistake = f"{prim.name}{f'({given})' if given else ''} of shape{'s' * (len(coerced) > 1)} {shapes}."
    hint = prim.hint or f"look at the shapes: print({', '.join(f'{o}.shape' for o in prim.operands)})"
    reason = sentence(error)
    if isinstance(error, IndexError):
        raise IndexRangeError(
            explain(f"an index of a tensor of shape {shapes}.", reason, "indices run from -n to n - 1")
        ) from error
    if isinstance(error, ValueError):
        kind = ShapeError if any(word in str(error) for word in _SHAPE_WORDS) else ArgumentError
        raise kind(explain(mistake, reason, hint)) from error
    dtypes = " and ".join(t.dtype.name for t in coerced)
    raise DTypeError(
        explain(mistake.replace(shapes, f"{shapes} and dtype {dtypes}"), reason, "x.astype(gf.float32)")
    ) from error


def _refuse_derivative(prim: Primitive, operands: tuple[Tensor, ...], names: list[str]) -> None:
    """Raise for an operand that requires grad and has no rule: its gradient would be 0 in silence."""
    name = next(name for name, operand in zip(names, operands, strict=True) if operand.requires_grad)
    raise GraphError(
        explain(
            f"{prim.name} has no derivative rule for `{name}`, which requires grad.",
            "without one its gradient would be 0 in silence.",
            f"defvjp({prim.name}, {name}=lambda xp, g, ...: ...), or @primitive(..., nondifferentiable=True)",
        )
    )


def _interpret(prim: Primitive, mode: Any, operands: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    return mode.interpreter.apply(prim, coerce(prim, operands), settings, mode.recording)


# ---------------------------------------------------------------- the template
def _first_call(*operands: Any, **settings: Any) -> Any:
    """The body every generated function starts with: specialise, then call again."""
    return specialise(P)(*operands, **settings)  # type: ignore[name-defined]  # noqa: F821


def _function(prim: Primitive) -> Callable[..., Any]:
    if prim.variadic:
        return _variadic_function(prim)
    scope = {**_SCOPE, "P": prim}
    return FunctionType(_first_call.__code__, scope, prim.name)


def specialise(prim: Primitive) -> Callable[..., Any]:
    """Generate the function of a primitive from the template and put it in place, under the same identity."""
    function = cast(FunctionType, prim.function)
    scope: dict[str, Any] = {}
    exec(compile(source(prim), f"<gradflow {prim.name}>", "exec"), scope)
    function.__kwdefaults__ = prim.defaults or None
    function.__code__ = scope[prim.name].__code__
    return function


def _local(prim: Primitive, name: str) -> str:
    """The local variable in which the generated function holds what a rule calls `name`."""
    if name == "out" or name in prim.settings:
        return name
    return f"{name}_" if name in prim.position else f"{name.removesuffix('_shape')}_.shape"


def source(prim: Primitive) -> str:
    """The text of a primitive's public function.

    >>> from gradflow.primitive import REGISTRY, source
    >>> print(source(REGISTRY["negative"]).splitlines()[0])
    def negative(x, /):
    """
    ops, promoted = prim.operands, [prim.operands[i] for i in prim.promoted]
    active = [o for o, rule in zip(ops, prim.rules, strict=True) if rule]
    settings = "".join(f", {s}={s}" for s in prim.settings)
    signature = ", ".join([*ops, "/"] + (["*", *prim.settings] if settings else []))
    everything = f"({', '.join(ops)},), dict({settings[2:]})"
    arrays = ", ".join(f"{o}_" for o in ops)
    kernel = f"out = xp.{prim.name}({arrays}{settings})"
    lines = [f"def {prim.name}({signature}):"]
    lines += [
        f"    if (mode := get_mode()) is not RECORD and mode is not NO_GRAD: return interpret(P, mode, {everything})"
    ]
    nodes = "; ".join(f"{o}_node = {o}._node" for o in ops)
    if len(ops) == 2 == len(promoted) and prim.dtypes in ("numeric", "float"):
        pair = ", ".join(ops)
        lines += [
            f"    if type({ops[1]}) is float or type({ops[0]}) is float: {pair} = weak({pair}) or ({pair})",
            f"    try: {nodes}",
            "    except AttributeError:",
            f"        if (pair := weak({pair})) is None: return again(P, {everything})",
            f"        {pair} = pair; {nodes}",
        ]
    else:
        lines += [f"    try: {nodes}", f"    except AttributeError: return again(P, {everything})"]
    lines += ["    " + "; ".join(f"{o}_ = {o}._data" for o in ops), f"    xp = {ops[0]}._xp"]
    unlike = [f"{o}._xp is not xp" for o in ops[1:]]
    same_dtype = prim.dtypes in ("float", "numeric", "bits")
    if promoted and (len(promoted) > 1 or same_dtype) and prim.dtypes != "any":
        lines += [f"    dtype = {promoted[0]}_.dtype"]
        unlike += [f"{o}_.dtype is not dtype" for o in promoted[1:]]
    if unlike:
        lines += [f"    if {' or '.join(unlike)}: return again(P, {everything})"]
    idle = " and ".join(f"{o}_node is None" for o in active)
    if forgotten := [] if prim.nondifferentiable else [o for o in ops if o not in active]:
        wanted = " or ".join(f"{o}_node is not None" for o in forgotten)
        lines += [f"    if mode is RECORD and ({wanted}): refuse_derivative(P, ({', '.join(forgotten)},), {forgotten})"]
    if prim.residual:
        lines += [
            f"    if idle := mode is NO_GRAD or {idle}: kernel = xp.{prim.name}",
            f"    else: kernel = xp.{prim.name}_residual",
        ]
        kernel = f"out = kernel({arrays}{settings})"
    lines += [f"    try: {kernel}", f"    except Exception as error: return failed(P, error, {everything})"]
    if prim.residual:
        lines += ["    if not idle: out, residual = out"]
    if same_dtype:
        lines += [f"    if out.dtype is not dtype: return again(P, {everything})"]
    lines += ["    if not (shape := out.shape): out = xp.as_array(out)"]
    lines += ["    t = Tensor(); t._data = out; t._xp = xp"]
    if not active:
        return "\n".join([*lines, "    t._node = None", "    return t"])
    lines += [f"    if {'idle' if prim.residual else f'mode is NO_GRAD or {idle}'}: t._node = None; return t"]
    dtype = "dtype" if same_dtype else "out.dtype"
    lines += [f"    t._node = n = Node(); n.seq = tick(); n.primitive = P; n.shape = shape; n.dtype = {dtype}"]
    edges = []
    for o, names in zip(ops, prim.names, strict=True):
        saved = "".join(f"{_local(prim, name)}, " for name in names) + "residual, " * prim.residual
        edge = f"({o}_node, xp.{prim.name}_vjp_{o}, ({saved}))"
        edges += ["None" if o not in active else edge if len(active) == 1 else f"None if {o}_node is None else {edge}"]
    return "\n".join([*lines, f"    n.edges = ({', '.join(edges)},)", "    return t"])


def _variadic_function(prim: Primitive) -> Callable[..., Any]:
    """The function of a primitive with any number of arrays: a few microseconds, so not generated."""
    first = len(prim.operands) - 1

    def function(*operands: Any, **settings: Any) -> Tensor:
        mode = get_mode()
        if mode.interpreter is not None:
            return cast(Tensor, _interpret(prim, mode, operands, settings))
        tensors = coerce(prim, operands)
        xp = tensors[0]._xp
        arrays = tuple(t._data for t in tensors)
        try:
            out = getattr(xp, prim.name)(*arrays, **settings)
        except Exception as error:
            return cast(Tensor, _failed(prim, error, tensors, settings))
        t = wrap(out if out.shape else xp.as_array(out), xp)
        if mode is RECORD and not prim.nondifferentiable:
            for i, x in enumerate(tensors):
                if x._node is not None and not prim.has_rule(i):
                    _refuse_derivative(prim, (x,), [prim.operands[min(i, first)]])
        nodes = [x._node if prim.has_rule(i) else None for i, x in enumerate(tensors)]
        if mode is NO_GRAD or not any(node is not None for node in nodes):
            return t
        shapes = tuple(a.shape for a in arrays)
        found = {**prim.defaults, **settings, "out": t._data, prim.operands[-1]: arrays[first:]}
        found |= {f"{prim.operands[-1]}_shapes": shapes[first:]}
        found |= dict(zip(prim.operands[:first], arrays, strict=False))
        found |= {f"{o}_shape": s for o, s in zip(prim.operands[:first], shapes, strict=False)}
        node = t._node = Node()
        node.seq, node.primitive, node.shape, node.dtype = tape.tick(), prim, t.shape, t.dtype
        edges: list[Any] = []
        for i, parent in enumerate(nodes):
            saved = tuple(i - first if name == "position" else found[name] for name in prim.names_at(i))
            edges.append(None if parent is None else (parent, prim.rule_at(i), saved))
        node.edges = tuple(edges)
        return t

    return function


def _update_function(prim: Primitive) -> Callable[..., Any]:
    """The function of a primitive that writes its first operands in place and returns nothing."""
    name = prim.name

    def function(*operands: Tensor, **settings: Any) -> None:
        mode = get_mode()
        if mode.interpreter is not None:
            mode.interpreter.apply(prim, operands, settings, mode.recording)
            return
        xp = operands[0]._xp
        arrays = [t._data for t in operands if t._xp is xp]
        if len(arrays) < len(operands):
            _one_namespace(prim, operands)  # raises
        getattr(xp, name)(*arrays, **settings)
        tape.writes.mark(arrays[0], xp.backend.extent)

    return function


_SCOPE: dict[str, Any] = {
    "NO_GRAD": NO_GRAD, "Node": Node, "RECORD": RECORD, "Tensor": Tensor, "__name__": __name__, "again": _again,
    "failed": _failed, "get_mode": get_mode, "interpret": _interpret, "refuse_derivative": _refuse_derivative,
    "specialise": specialise, "tick": tape.tick, "weak": _weak,
}  # fmt: skip
