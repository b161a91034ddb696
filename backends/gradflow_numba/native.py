"""Raw memory in compiled code: addresses, loads, stores, and calls through a table.

A generated kernel is `kernel(row, task, tasks)`; `row` points to 64-bit words: sizes, addresses, strides.
Loads and stores name their buffer by a small number. Two buffers with different numbers never overlap (the memory plan
sees to it); LLVM is told so, and needs no checks at run time to vectorise a loop.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_pointer_to: Any = types.CPointer
WORDS = _pointer_to(types.int64)
SIGNATURE = types.void(WORDS, types.int64, types.int64)
BUFFERS = 24
"""How many buffers of one kernel are told apart."""

POINTERS: dict[str, Any] = {
    name: _pointer_to(getattr(types, name))
    for name in (
        "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    )
}  # fmt: skip


def _mark(builder: ir.IRBuilder, instruction: Any, buffer: int) -> None:
    """Say which buffer an instruction touches, and that it touches no other."""
    module = builder.module

    def text(name: str) -> Any:
        return ir.MetaDataString(module, name)

    domain = module.add_metadata([text("gradflow")])
    scopes = [module.add_metadata([text(f"gradflow.{i}"), domain]) for i in range(BUFFERS)]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[buffer]]))
    instruction.set_metadata("noalias", module.add_metadata([s for i, s in enumerate(scopes) if i != buffer]))


def _pointer(kind: Any) -> Any:
    def typing(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(types.int64), generate

    return intrinsic(typing)


words = _pointer(WORDS)
AT = {f"at_{name}": _pointer(kind) for name, kind in POINTERS.items()}
"""address -> typed pointer, by the name that generated code uses."""


def _word(context: Any, pointer: Any, index: Any) -> Any:
    """Word `index` of a row."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(arguments[0], [arguments[1]], inbounds=True))

    return types.int64(WORDS, types.int64), generate


def _set_word(context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Write a word."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]], inbounds=True))
        return context.get_dummy_value()

    return types.void(WORDS, types.int64, types.int64), generate


def _offset(context: Any, pointer: Any, index: Any) -> Any:
    """The pointer `index` elements further."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]], inbounds=True)

    return pointer(pointer, types.int64), generate


def _load(context: Any, pointer: Any, index: Any, buffer: Any) -> Any:
    """Element `index` of a buffer."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        found = builder.load(builder.gep(arguments[0], [arguments[1]], inbounds=True))
        _mark(builder, found, buffer.literal_value)
        return found

    return pointer.dtype(pointer, types.int64, buffer), generate


def _store(context: Any, pointer: Any, index: Any, value: Any, buffer: Any) -> Any:
    """Write element `index` of a buffer."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        done = builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]], inbounds=True))
        _mark(builder, done, buffer.literal_value)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, pointer.dtype, buffer), generate


def _run(context: Any, address: Any, row: Any, task: Any, tasks: Any) -> Any:
    """Call the kernel at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        i64 = ir.IntType(64)
        kernel = ir.FunctionType(ir.VoidType(), [i64.as_pointer(), i64, i64]).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kernel), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, WORDS, types.int64, types.int64), generate


word: Any = intrinsic(_word)
set_word: Any = intrinsic(_set_word)
offset: Any = intrinsic(_offset)
load: Any = intrinsic(prefer_literal=True)(_load)
store: Any = intrinsic(prefer_literal=True)(_store)
run: Any = intrinsic(_run)
