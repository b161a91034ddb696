"""Functions of functions: gradients, products with Jacobians and Hessians, and derivatives given by hand.

Arguments and results may be nested tuples, lists and dicts of tensors; derivatives come back in the same structure.
Every transform can be applied to the result of another, so any order of derivative is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import update_wrapper, wraps
from typing import Any, cast

import numpy as np

from gradflow import tape
from gradflow.arguments import flag, function_of, integers, shown, wrong_kind
from gradflow.errors import ArgumentError, DTypeError, GraphError, ShapeError, explain
from gradflow.mode import get_mode, grad_mode, using
from gradflow.ops.creation import as_tensor, full_like, zeros_like
from gradflow.ops.shaping import broadcast_to, reshape, stack
from gradflow.tape import Leaf, Node
from gradflow.tensor import (
    OPS,
    Tensor,
    check_gradient,
    own,
    own_tensors,
    sweep_arrays,
    sweep_tensors,
    sweeps_tensors,
    wrap,
)

Function = Callable[..., Any]


# ---------------------------------------------------------------- nested containers
def flatten(tree: Any) -> tuple[list[Any], Callable[[Iterable[Any]], Any]]:
    """The leaves of nested tuples, lists and dicts, and the function that puts others in their places.

    >>> from gradflow.transforms import flatten
    >>> leaves, rebuild = flatten({"a": (1, 2), "b": [3]})
    >>> leaves, rebuild(x * 10 for x in leaves)
    ([1, 2, 3], {'a': (10, 20), 'b': [30]})
    """
    return list(_leaves(tree)), lambda values: _rebuild(tree, iter(values))


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list | tuple):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(child)
    else:
        yield tree


def _rebuild(tree: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _rebuild(child, leaves) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        children = [_rebuild(child, leaves) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return next(leaves)


def _matched(tree: Any, like: Any, what: str, whose: str, fix: str) -> Iterator[Any]:
    """The leaves of a tree in the order of those of another; None may stand for a whole branch."""
    if tree is None or not isinstance(like, dict | list | tuple):
        yield from (tree for _ in _leaves(like))
        return
    if isinstance(like, dict):
        fits = isinstance(tree, dict) and tree.keys() == like.keys()
    else:
        fits = isinstance(tree, list | tuple) and len(tree) == len(like)
    if not fits:
        raise ArgumentError(
            explain(f"{what} have not the structure of {whose}.", "there is one for every tensor, at its place.", fix)
        )
    for key in like if isinstance(like, dict) else range(len(like)):
        yield from _matched(tree[key], like[key], what, whose, fix)


# ---------------------------------------------------------------- one evaluation of a function, recorded
class _Recorded:
    """A call of `f` on variables that stand for the chosen arguments."""

    def __init__(self, f: Function, args: Sequence[Any], argnums: Sequence[int], kwargs: dict[str, Any]) -> None:
        self.connected = get_mode().recording  # whether the result may be differentiated further, outside
        chosen = [args[i] for i in argnums]
        leaves, self.rebuild = flatten(chosen)
        with using(grad_mode(True)):
            self.variables = [_variable(as_tensor(leaf)) for leaf in leaves]
            call = list(args)
            for i, value in zip(argnums, self.rebuild(self.variables), strict=True):
                call[i] = value
            self.out = f(*call, **kwargs)
        self.nodes = [v._node for v in self.variables]

    def pull(self, out: Tensor, seed: Tensor, *, retain: bool, graph: bool | None = None) -> list[Tensor]:
        """The cotangent of every variable, recorded if somebody outside may want its derivative."""
        if out._node is None:
            return [zeros_like(v) for v in self.variables]
        if graph is None:
            graph = self.connected and (seed.requires_grad or reaches_beyond(out._node, self.nodes))
        found: dict[Any, Tensor]
        if graph or sweeps_tensors():
            with using(grad_mode(graph)):
                found = own_tensors(sweep_tensors(out, seed, retain or graph, self.nodes), seed)
        else:
            found = own(sweep_arrays(out, seed._data, retain, self.nodes), seed._data, out._xp)
        return [found[n] if n in found else zeros_like(v) for n, v in zip(self.nodes, self.variables, strict=True)]

    def hand_out(self, tree: Any) -> Any:
        """What f returned, without its graph where that leads to nothing but the variables."""
        leaves, rebuild = flatten(tree)
        return rebuild(t.detach() if isinstance(t, Tensor) and not self._leads_out(t) else t for t in leaves)

    def _leads_out(self, t: Tensor) -> bool:
        return self.connected and t._node is not None and reaches_beyond(t._node, self.nodes)


def _variable(t: Tensor) -> Tensor:
    """A new place to take the derivative at: the start of a graph, or one that leads on to where t came from."""
    if t._node is not None:
        return cast(Tensor, OPS.alias(t))
    return wrap(t._data, t._xp).requires_grad_()


def reaches_beyond(root: Node | Leaf, own_nodes: Iterable[Any]) -> bool:
    """Whether a graph leads to a leaf outside the given nodes."""
    inside = set(own_nodes)
    return any(type(node) is Leaf and node not in inside for node in tape.reachable(root)[1])


def _scalar(out: Any, what: str) -> Tensor:
    if not isinstance(out, Tensor):
        raise DTypeError(
            explain(
                f"{what} of a function that returned {type(out).__name__}.",
                "the derivative is taken of one scalar tensor.",
                "return loss, or has_aux=True with `return loss, anything`",
            )
        )
    if out.shape != ():
        raise ShapeError(
            explain(
                f"{what} of a function that returned a tensor of shape {out.shape}.",
                "a gradient is that of a scalar; a Jacobian that of an array.",
                "return loss.mean(), or gf.jacobian(f)",
            )
        )
    return out


def _refuse_several(what: str, argnums: Any) -> None:
    if not isinstance(argnums, int | np.integer) or isinstance(argnums, bool):
        raise ArgumentError(
            explain(
                f"gf.{what} with argnums={shown(argnums)}.",
                f"a {what} is taken with respect to one argument, named by its position.",
                f"gf.{what}(f, 0)",
            )
        )


def _name(f: Any) -> str:
    """What a corrected call names a function."""
    name = getattr(f, "__name__", "")
    return name if isinstance(name, str) and name.isidentifier() else "f"


def _positions(argnums: int | Sequence[int]) -> tuple[int, ...]:
    why = "it is the position of an argument, or a tuple of them."
    return integers(f"argnums={shown(argnums)}.", argnums, why=why, fix="argnums=0")


def _argnums(f: Function, argnums: int | Sequence[int], given: int) -> tuple[int, ...]:
    numbers = _positions(argnums)
    for i in numbers:
        if not -given <= i < given:
            raise ArgumentError(
                explain(
                    f"argnums={argnums} for a call with {given} positional arguments.",
                    "derivatives are taken with respect to positional arguments, counted from 0.",
                    f"gf.grad({_name(f)}, argnums=0)(x)",
                )
            )
    found = tuple(int(i) % given for i in numbers)
    if len(set(found)) < len(found):
        raise ArgumentError(
            explain(f"argnums={argnums} names an argument twice.", "each has one derivative.", "argnums=(0, 1)")
        )
    return found


# ---------------------------------------------------------------- gradients
def value_and_grad(f: Function, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Function:
    """The function that returns (f, ∂f/∂args) of a scalar-valued f.

    Args:
        f: returns a scalar tensor; with has_aux, a tuple (scalar, anything).
        argnums: position of the argument, or several; each may be a nested container of tensors.
        has_aux: whether f returns something beside the scalar; the value is then that tuple.

    Raises:
        ShapeError: f returned an array.
        ArgumentError: there is no such argument.

    >>> value, gradient = gf.value_and_grad(lambda x: (x**2).sum())(gf.tensor([1.0, 2.0]))
    >>> value, gradient
    (tensor(5.), tensor([2., 4.]))
    """

    function_of("value_and_grad", f, "gf.value_and_grad(f)(x)")
    has_aux = flag("value_and_grad", "has_aux", has_aux)
    _positions(argnums)

    @wraps(f)
    def with_gradient(*args: Any, **kwargs: Any) -> Any:
        numbers = _argnums(f, argnums, len(args))
        call = _Recorded(f, args, numbers, kwargs)
        aux: Any = None
        out = call.out
        if has_aux:
            if not isinstance(out, tuple) or len(out) != 2:
                raise DTypeError(
                    explain(
                        "has_aux=True, but f did not return a pair.", "it returns (loss, anything).", "return loss, aux"
                    )
                )
            out, aux = out
            aux = call.hand_out(aux)
        out = _scalar(out, "the gradient")
        seed = wrap(out._xp.one(out._data.dtype), out._xp)
        beyond = call.connected and out._node is not None and reaches_beyond(out._node, call.nodes)
        gradients = call.rebuild(call.pull(out, seed, retain=False, graph=beyond))
        value = out if beyond else out.detach()
        return (value, aux) if has_aux else value, tuple(gradients) if isinstance(argnums, Sequence) else gradients[0]

    return with_gradient


def grad(f: Function, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Function:
    """The function that returns ∂f/∂args of a scalar-valued f; with has_aux, (∂f/∂args, aux).

    >>> gf.grad(lambda x: x**3)(gf.tensor(2.0))
    tensor(12.)
    >>> gf.grad(gf.grad(gf.grad(lambda x: x**3)))(gf.tensor(2.0))
    tensor(6.)
    """
    function_of("grad", f, "gf.grad(f)(x)")
    both = value_and_grad(f, argnums, has_aux=has_aux)

    @wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return gradient


# ---------------------------------------------------------------- products with the Jacobian
def vjp(f: Function, *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """f(*primals) and the function v ↦ vᵀJ, which gives the cotangent of each primal and can be called again.

    >>> out, pullback = gf.vjp(lambda x, y: x * y, gf.tensor([1.0, 2.0]), gf.tensor([3.0, 4.0]))
    >>> pullback(gf.tensor([1.0, 10.0]))
    (tensor([ 3., 40.]), tensor([ 1., 20.]))
    """
    function_of("vjp", f, "gf.vjp(f, x)")
    call = _Recorded(f, primals, tuple(range(len(primals))), {})
    outs, _ = flatten(call.out)

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        fix = "pullback((v1, v2)) for f that returns (y1, y2)"
        out, seed = _one_output(outs, list(_matched(cotangent, call.out, "the cotangents", "the outputs", fix)))
        return tuple(call.rebuild(call.pull(out, seed, retain=True)))

    return call.hand_out(call.out), pullback


def _one_output(outs: list[Any], seeds: list[Any]) -> tuple[Tensor, Tensor]:
    """An output and its seed; of several outputs yᵢ with seeds vᵢ, the scalar Σ yᵢ·vᵢ and 1."""
    tensors = [as_tensor(o) for o in outs]
    given = [_like(s, t, "a cotangent") for s, t in zip(seeds, tensors, strict=True)]
    if len(tensors) == 1:
        return tensors[0], given[0]
    with using(grad_mode(True)):
        total = _inner(tensors, given)
    return total, wrap(total._xp.one(total.dtype), total._xp)


def _like(value: Any, of: Tensor, what: str) -> Tensor:
    t = as_tensor(value)
    t = t if t.dtype == of.dtype else cast(Tensor, OPS.astype(t, dtype=of.dtype))
    check_gradient(t, of, what)
    return t


def _inner(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """Σ xᵢ·yᵢ over all elements of all pairs."""
    terms = [(x * y).sum() for x, y in zip(xs, ys, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def jvp(f: Function, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """f(*primals) and its derivative J·v in the direction of the tangents.

    The pullback u ↦ uᵀJ is linear in u, so its own derivative with respect to u, applied to v, is J·v: forward mode
    by two reverse sweeps, for every primitive, without rules of its own.

    Source: J. Townsend, A new trick for calculating Jacobian vector products, 2017.

    Raises:
        ArgumentError: primals and tangents differ in number.
        ShapeError: a tangent's shape is not its primal's.

    >>> gf.jvp(lambda x: x**2, (gf.tensor(3.0),), (gf.tensor(1.0),))
    (tensor(9.), tensor(6.))
    """
    function_of("jvp", f, "gf.jvp(f, (x,), (v,))")
    if not isinstance(primals, list | tuple) or not isinstance(tangents, list | tuple) or len(primals) != len(tangents):
        raise ArgumentError(
            explain(
                "jvp got primals and tangents that are not two tuples of one length.",
                "there is a direction for every argument of f.",
                "gf.jvp(f, (x,), (v,))",
            )
        )
    call = _Recorded(f, primals, tuple(range(len(primals))), {})
    directions = _matched(tangents, primals, "the tangents", "the primals", "gf.jvp(f, (x,), (v,))")
    vs = [_like(v, x, "a tangent") for v, x in zip(directions, call.variables, strict=True)]
    outs, rebuild = flatten(call.out)
    results = [_push(as_tensor(out), vs, call) for out in outs]
    return call.hand_out(call.out), rebuild(results)


def _push(out: Tensor, vs: list[Tensor], call: _Recorded) -> Tensor:
    if out._node is None:
        return zeros_like(out)
    with using(grad_mode(True)):
        u = zeros_like(out).requires_grad_()
        pulled = call.pull(out, u, retain=True, graph=True)
        total = _inner(pulled, vs)
    if total._node is None or u._node not in tape.reachable(total._node)[1]:
        return zeros_like(out)
    one = wrap(total._xp.one(total.dtype), total._xp)
    beyond = call.connected and (reaches_beyond(total._node, [*call.nodes, u._node]))
    with using(grad_mode(beyond)):
        found = sweep_tensors(total, one, True, [u._node])
    return own_tensors(found, one)[u._node]


# ---------------------------------------------------------------- second order, whole matrices
def hvp(f: Function, x: Any, v: Any) -> Any:
    """Hessian times vector, (∂²f/∂x²) v, of a scalar-valued f of one argument, by two sweeps.

    >>> gf.hvp(lambda x: (x**3).sum(), gf.tensor([1.0, 2.0]), gf.tensor([1.0, 0.0]))
    tensor([6., 0.])
    """
    _, pullback = vjp(grad(function_of("hvp", f, "gf.hvp(f, x, v)")), x)
    return pullback(v)[0]


def jacobian(f: Function, argnums: int = 0) -> Function:
    """The function that returns ∂fᵢ/∂xⱼ, of shape f.shape + x.shape, one reverse sweep for each element of f.

    >>> gf.jacobian(lambda x: x**2)(gf.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """

    function_of("jacobian", f, "gf.jacobian(f)(x)")
    _refuse_several("jacobian", argnums)

    @wraps(f)
    def matrix(*args: Any, **kwargs: Any) -> Any:
        (number,) = _argnums(f, argnums, len(args))
        out, pullback = vjp(lambda x: f(*args[:number], x, *args[number + 1 :], **kwargs), args[number])
        if not isinstance(out, Tensor):
            raise DTypeError(
                explain(
                    f"the Jacobian of a function that returned {type(out).__name__}.",
                    "it is that of one tensor.",
                    "gf.jacobian(lambda x: f(x)[0])",
                )
            )
        one = wrap(out._xp.one(out.dtype), out._xp)
        units = (OPS.unindex(one, shape=(out.size,), key=(i,)) for i in range(out.size))
        rows = [flatten(pullback(reshape(unit, out.shape))[0]) for unit in units]
        leaves, rebuild = flatten(args[number])
        columns = [as_tensor(leaf).shape for leaf in leaves]
        if not rows:
            return rebuild(full_like(broadcast_to(out.sum(), out.shape + shape), 0) for shape in columns)
        return rebuild(
            reshape(stack([row[0][k] for row in rows]), out.shape + shape) for k, shape in enumerate(columns)
        )

    return matrix


def hessian(f: Function, argnums: int = 0) -> Function:
    """The function that returns ∂²f/∂xᵢ∂xⱼ, of shape x.shape + x.shape, of a scalar-valued f.

    >>> gf.hessian(lambda x: x[0] ** 2 * x[1])(gf.tensor([1.0, 2.0]))
    tensor([[4., 2.],
            [2., 0.]])
    """
    function_of("hessian", f, "gf.hessian(f)(x)")
    _refuse_several("hessian", argnums)
    gradient = grad(f, argnums)

    @wraps(f)
    def of_one_tensor(*args: Any, **kwargs: Any) -> Any:
        found = gradient(*args, **kwargs)
        if not isinstance(found, Tensor):
            raise DTypeError(
                explain(
                    f"the Hessian with respect to a {type(found).__name__}.",
                    "it is that of a function of one tensor.",
                    "gf.hessian(lambda x: f((x[:2], x[2:])))(gf.concat([a, b]))",
                )
            )
        return found

    return jacobian(of_one_tensor, argnums)


# ---------------------------------------------------------------- derivatives given by hand
class custom_vjp:  # noqa: N801
    """A function whose derivative is given by hand, for stability or speed.

    `forward(*args)` returns (value, residuals) and `backward(residuals, g)` one cotangent for each argument, in its
    structure (None for one without). Written with gradflow's operations, both can be differentiated again.

    Raises:
        GraphError: the function is differentiated before `defvjp`.
        ArgumentError: backward returns too few or too many cotangents.
        ShapeError: backward returns a cotangent of the wrong shape.

    >>> @gf.custom_vjp
    ... def clipped(x):
    ...     return gf.clip(x, -1, 1)
    >>> clipped.defvjp(lambda x: (gf.clip(x, -1, 1), None), lambda residuals, g: (g,))  # straight-through
    >>> gf.grad(clipped)(gf.tensor(5.0))
    tensor(1.)
    """

    def __init__(self, function: Function) -> None:
        self.function = function_of("custom_vjp", function, "@gf.custom_vjp above a function")
        self.forward: Function | None = None
        self.backward: Callable[[Any, Tensor], Any] | None = None
        update_wrapper(self, function)

    def defvjp(self, forward: Function, backward: Callable[[Any, Tensor], Any]) -> None:
        """Give the pair: forward(*args) → (value, residuals), backward(residuals, g) → cotangents."""
        name = _name(self)
        for part, given in {"forward": forward, "backward": backward}.items():
            if not callable(given):
                reason = "the derivative is given by a pair of functions."
                raise wrong_kind(f"{name}.defvjp", part, given, reason, f"{name}.defvjp(forward, backward)")
        self.forward, self.backward = forward, backward

    def __call__(self, *args: Any) -> Any:
        """Call the function; where a derivative may be wanted, through `forward`."""
        if not get_mode().recording or not any(isinstance(a, Tensor) and a.requires_grad for a in _leaves(args)):
            return self.function(*args)
        name = _name(self)
        if self.forward is None or self.backward is None:
            raise GraphError(
                explain(f"{name} has no derivative.", "custom_vjp needs a pair.", f"{name}.defvjp(forward, backward)")
            )
        answer = self.forward(*args)
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], Tensor):
            raise DTypeError(
                explain(
                    f"the forward function of {name} did not return (tensor, residuals).",
                    "its second value is what backward gets.",
                    "return y, (x, y)",
                )
            )
        value, residuals = answer
        return _join(value, residuals, _Pullback(name, self.backward, args))


class _Cotangents(tuple[Any, ...]):
    """The cotangents of all arguments, from the node that computes them to the node that hands them out."""

    __slots__ = ()
    shape, dtype = (), None


class _Handout:
    """Stands as the primitive of the node that gives each argument its own cotangent."""

    name = "custom_vjp"
    position: dict[str, int] = {}  # noqa: RUF012

    def names_at(self, i: int) -> tuple[str, ...]:
        return ()

    def rule_at(self, i: int) -> Callable[..., Any]:
        return lambda xp, cotangents: cotangents[i]


class _Pullback:
    """Stands as the primitive of the node of the value; its rule calls `backward`, once for all arguments."""

    position: dict[str, int] = {}  # noqa: RUF012  (residuals are no operands)

    def __init__(self, name: str, backward: Callable[[Any, Tensor], Any], args: tuple[Any, ...]) -> None:
        self.name, self.backward, self.args = name, backward, args

    def names_at(self, i: int) -> tuple[str, ...]:
        return "residuals", "structure"

    def rule_at(self, i: int) -> Callable[..., Any]:
        return self._rule

    def _rule(self, xp: Any, g: Any, arrays: tuple[Any, ...], residuals: list[Any]) -> _Cotangents:
        if xp is OPS:
            return _Cotangents(self._checked(self.backward(residuals[0], g)))
        with using(grad_mode(False)):
            found = self._checked(self.backward(residuals[0], wrap(xp.as_array(g), xp)))
        return _Cotangents(None if t is None else xp.as_array(t._data, copy=True) for t in found)

    def _checked(self, cotangents: Any) -> tuple[Any, ...]:
        found = tuple(cotangents) if isinstance(cotangents, list | tuple) else (cotangents,)
        if len(found) != len(self.args):
            raise ArgumentError(
                explain(
                    f"backward of {self.name} returned {len(found)} cotangents for {len(self.args)} arguments.",
                    "every argument has one, None where it has no derivative.",
                    "return (gx, gy)",
                )
            )
        made: list[Any] = []
        for i, (argument, given) in enumerate(zip(self.args, found, strict=True)):
            what, fix = f"the cotangents from backward of {self.name}", 'return {"w": gw}, gx'
            cts = _matched(given, argument, what, f"argument {i}", fix)
            for t, ct in zip(_leaves(argument), cts, strict=True):
                wanted = isinstance(t, Tensor) and t.requires_grad
                ct = zeros_like(t) if wanted and ct is None else ct
                made.append(_like(ct, t, f"backward of {self.name}: a cotangent") if wanted else None)
        return tuple(made)


def _join(value: Tensor, residuals: Any, pullback: _Pullback) -> Tensor:
    """The value as the output of two nodes: one computes the cotangents of all arguments, one hands them out."""
    leaves, rebuild = flatten(residuals)  # wrapped anew: a later `t += 1` may give t other memory
    kept = rebuild(wrap(t._data, t._xp, t._node) if isinstance(t, Tensor) else t for t in leaves)
    arrays = tuple(t._data for t in leaves if isinstance(t, Tensor))
    below = _node(_Handout(), _Cotangents())
    below.edges = tuple(
        (a._node, below.primitive.rule_at(i), ()) if isinstance(a, Tensor) and a._node is not None else None
        for i, a in enumerate(_leaves(pullback.args))
    )
    node = _node(pullback, value)
    node.edges = ((below, pullback.rule_at(0), (arrays, [kept])),)
    return wrap(value._data, value._xp, node)


def _node(primitive: Any, out: Any) -> Node:
    node = Node()
    node.seq, node.primitive, node.shape, node.dtype = tape.tick(), primitive, out.shape, out.dtype
    return node


__all__ = [
    "custom_vjp", "flatten", "grad", "hessian", "hvp", "jacobian", "jvp", "value_and_grad", "vjp",
]  # fmt: skip
