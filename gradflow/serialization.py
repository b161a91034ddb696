"""Save and load: a safetensors file, written whole or not at all, and never a pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.arguments import wrong_kind
from gradflow.errors import ArgumentError, DTypeError, MissingDependencyError, StateDictError, explain, sentence
from gradflow.files import replacing
from gradflow.ops.creation import DTYPES, asarray
from gradflow.tensor import Tensor

if TYPE_CHECKING:
    from gradflow.backend import Backend

_METADATA_KEY = "gradflow"
_VERSION = 1

# What the format calls each dtype: BOOL, I8, ..., F64.
_CODES = {
    "BOOL" if name == "bool" else f"{name[0].upper()}{8 * dtype.itemsize}": name for name, dtype in DTYPES.items()
}

# First bytes -> what such a file is. Looked at only when a file does not parse: a safetensors file may begin with any
# eight bytes (a header of 640 bytes begins like a pickle).
_LOOKS_LIKE = {
    b"PK\x03\x04": "a zip archive, such as torch.save and np.savez write",
    b"\x80": "a Python pickle",
    b"\x93NUMPY": "a NumPy .npy file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer; the file itself was never fetched (run `git lfs pull`)",
    b"{": "JSON text",
    b"<": "an HTML or XML page, perhaps a failed download",
}


def save(path: str | os.PathLike[str], state: object) -> None:
    """Save ``state`` to the safetensors file ``path``; the old file stays whole until the new one is.

    The file is one that every safetensors reader opens: a tensor is stored under the dotted path that leads to it
    (``weight`` of the first of ``layers`` is ``layers.0.weight``), so a module's state dict reads in PyTorch as it is.
    The rest of the structure (containers, numbers, texts) is JSON in the header, under the key ``gradflow``.

    Args:
        path: the file to write, customarily ``*.safetensors``. Its folder must exist.
        state: a module, an optimizer or any object with a ``state_dict()``; or Tensors and NumPy arrays (bool,
            int8...int64, uint8...uint64, float32, float64; any shape and layout), None, bool, int, float and str,
            in dicts (with str or int keys), lists and tuples, nested as you like.
            `load` gives all of it back equal and of the same kind, dict order and int keys included, except that
            a NumPy array or Parameter comes back as a Tensor, a NumPy scalar as a Python number, and a subclass
            (OrderedDict, named tuple) as its plain base class.

    Raises:
        ArgumentError: the state contains itself.
        DTypeError: a value, key or dtype that such a file cannot hold; the message says where it is.
        MissingDependencyError: the safetensors package is not installed.
        OSError: the folder is missing, the disk is full, ...; ``path`` is then as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gf.save(f"{folder}/run.safetensors", {"weight": gf.ones((2, 2)), "epoch": 3, "betas": (0.9, 0.999)})
    ...     gf.load(f"{folder}/run.safetensors")["betas"]
    (0.9, 0.999)

    Source: the safetensors format, https://huggingface.co/docs/safetensors
    """
    import json

    path = _path("save", path, "gf.save(path, state)")
    if not isinstance(state, Mapping) and hasattr(state, "state_dict"):
        state = state.state_dict()
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    try:
        header = json.dumps({"version": _VERSION, "state": _encode(state, (), arrays)})
    except RecursionError as error:
        raise ArgumentError(
            explain(
                "gf.save cannot store a state that contains itself, or is nested hundreds of levels deep.",
                "a file holds a tree.",
                "look for a dict or list that was put into itself",
            )
        ) from error
    safetensors = require_safetensors()
    with replacing(path) as temporary:
        try:
            safetensors.numpy.save_file(arrays, temporary, metadata={_METADATA_KEY: header})
        except safetensors.SafetensorError as error:  # its name for a full disk, too
            raise OSError(f"{path} cannot be written: {error}") from error


def load(path: str | os.PathLike[str], *, backend: str | Backend | None = None) -> Any:
    """Load what `save` wrote, or any other safetensors file as a flat dict from names to Tensors.

    Nothing in the file is executed, and all of it is checked before anything is returned.

    Args:
        path: the file to read.
        backend: where the Tensors shall live (a name or a Backend); the current backend by default.

    Returns:
        The state as it was saved, with Tensors that do not require grad.

    Raises:
        StateDictError: not a safetensors file (the message says what it looks like), or a truncated or corrupt one.
        DTypeError: a tensor of a dtype that gradflow has not, such as bfloat16.
        MissingDependencyError: the safetensors package is not installed.
        OSError: the file is missing or cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gf.save(f"{folder}/scale.safetensors", {"scale": gf.asarray([1.0, 2.0])})
    ...     gf.load(f"{folder}/scale.safetensors")
    {'scale': tensor([1., 2.])}

    Source: the safetensors format, https://huggingface.co/docs/safetensors
    """
    safetensors = require_safetensors()
    path = _path("load", path, "gf.load(path)")
    _refuse_devices(path)
    with open(path, "rb") as file:  # reports a missing file, a folder or a forbidden file better than the package
        beginning = file.read(32)
    try:
        with safetensors.safe_open(path, framework="np") as opened:
            _check_header(path)
            names = list(opened.keys())
            _check_dtypes(path, {name: opened.get_slice(name).get_dtype() for name in names})
            header = (opened.metadata() or {}).get(_METADATA_KEY)
            arrays = {name: opened.get_tensor(name) for name in names}
            _check_booleans(arrays)
    except (safetensors.SafetensorError, ValueError) as error:  # NumPy's for a shape that no array has
        raise _unreadable(path, beginning, sentence(error)) from error
    tensors = {name: asarray(array, backend=backend) for name, array in arrays.items()}
    if header is None:  # written by another library
        return tensors
    return _read_header(path, header, tensors)


def _path(function: str, path: str | os.PathLike[str], fix: str) -> str:
    if not isinstance(path, str | os.PathLike):
        raise wrong_kind(function, "path", path, "it is a text or a pathlib.Path, and comes first.", fix)
    return os.fsdecode(path)


def _encode(value: object, path: tuple[str, ...], arrays: dict[str, np.ndarray[Any, Any]]) -> object:
    """Turn ``value`` into JSON, moving its arrays to ``arrays``; containers but lists become ``{kind: content}``."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray):
        # "__metadata__" is the format's own; {"a.b": x, "a": {"b": y}} and {1: x, "1": y} want the same name twice.
        name = ".".join(path)
        while name in arrays or name == "__metadata__":
            name += "'"
        arrays[name] = _storable(value, path)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_key(key, path), _encode(item, (*path, str(key)), arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encode(item, (*path, str(index)), arrays) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise DTypeError(
        explain(
            f"gf.save cannot store {_place(path)}, a {type(value).__name__}.",
            "a file holds Tensors, NumPy arrays, None, bool, int, float and str in dicts, lists and tuples: no objects "
            "that a reader would have to run code to rebuild.",
            "save its state_dict(), or its numbers, and rebuild the object after gf.load",
        )
    )


def _key(key: object, path: tuple[str, ...]) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise DTypeError(
        explain(
            f"gf.save cannot store the key {key!r} of {_place(path)}.",
            f"keys are str or int; this one is a {type(key).__name__}.",
            f"state[{str(key)!r}] = state.pop({key!r})",
        )
    )


def _storable(value: Tensor | np.ndarray[Any, Any], path: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Return ``value`` as an array in row-major order: safetensors 0.8 writes any other's memory as it lies."""
    array = value.detach().numpy() if isinstance(value, Tensor) else value
    dtype = array.dtype.newbyteorder("=")
    if dtype not in DTYPES.values():
        raise DTypeError(
            explain(
                f"gf.save cannot store {_place(path)}, an array of dtype {array.dtype}.",
                f"gradflow has {', '.join(DTYPES)}.",
                "array.astype(np.float32)",
            )
        )
    return np.asarray(array, dtype=dtype, order="C")


def _place(path: tuple[str, ...]) -> str:
    return "the state" + "".join(f"[{key!r}]" for key in path)


def _refuse_devices(path: str) -> None:
    """A pipe would wait for a writer for ever."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise StateDictError(
            explain(
                f"{path} is a device or a pipe.", "a state is loaded from a file. Nothing was loaded.", "gf.load(path)"
            )
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; the readers that there are would take the last of equal names, and lose the others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r:.80} is there twice")
    return found


def _check_header(path: str) -> None:
    """Look for names that are there twice in a header that is otherwise right."""
    import json

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        json.loads(file.read(length), object_pairs_hook=_unique)


def _check_booleans(arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    for name, array in arrays.items():
        if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"{name} holds bytes that are no booleans")


def _check_dtypes(path: str, codes: Mapping[str, str]) -> None:
    foreign = {name: code for name, code in codes.items() if code not in _CODES}
    if foreign:
        listed = ", ".join(f"{name} ({code})" for name, code in list(foreign.items())[:5])
        raise DTypeError(
            explain(
                f"{path} holds {len(foreign)} of {len(codes)} tensors in dtypes gradflow has not: {listed}"
                f"{', ...' if len(foreign) > 5 else '.'}",
                f"gradflow reads {', '.join(_CODES)}; nothing was loaded.",
                "convert the file with the library that wrote it, in PyTorch: "
                "save_file({k: v.float() for k, v in load_file(path).items()}, path)",
            )
        )


def _read_header(path: str, header: str, tensors: dict[str, Tensor]) -> object:
    import json

    try:
        document = json.loads(header, object_pairs_hook=_unique)
        version = document["version"]
        if type(version) is int and version == _VERSION:
            state = _decode(document["state"], tensors)
            if tensors:
                raise ValueError(f"it has no place for {', '.join(tensors)}")
            return state
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        reason = f"its entry {_METADATA_KEY!r} does not describe its tensors ({type(error).__name__}: {error})."
    else:
        reason = f"its structure is written in version {version!r}, and this gradflow reads version {_VERSION}."
    raise StateDictError(
        explain(
            f"the header of {path} cannot be read; nothing was loaded.",
            reason,
            "save it again, or upgrade gradflow; safetensors.numpy.load_file(path) still gives the bare arrays",
        )
    )


def _decode(node: object, tensors: dict[str, Tensor]) -> object:
    """Undo `_encode`, taking each Tensor out of ``tensors``.

    A ValueError, LookupError or TypeError says that ``node`` is not its work.
    """
    match node:
        case list():
            return [_decode(item, tensors) for item in node]
        case {"tensor": name}:
            return tensors.pop(name)
        case {"tuple": list(items)}:
            return tuple(_decode(item, tensors) for item in items)
        case {"dict": list(pairs)}:
            decoded = {_known_key(key): _decode(item, tensors) for key, item in pairs}
            if len(decoded) < len(pairs):
                raise ValueError("a dict has one key twice")
            return decoded
        case None | bool() | int() | float() | str():
            return node
    raise ValueError(f"no such kind of value: {node!r:.80}")


def _known_key(key: object) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"a dict has the key {key!r:.80}")
    return key


def _unreadable(path: str, beginning: bytes, reason: str) -> StateDictError:
    kind = next((kind for magic, kind in _LOOKS_LIKE.items() if beginning.startswith(magic)), None)
    if not beginning:
        mistake, fix = f"{path} is empty.", "save or copy it again"
    elif kind is not None:
        mistake = f"{path} is not a safetensors file: it looks like {kind}."
        fix = "fetch it anew, or convert it where it was written: safetensors.torch.save_file(torch.load(old), new)"
    else:
        mistake = f"{path} is not a safetensors file, or a truncated or corrupt one."
        fix = "save or copy it again, and compare the sizes"
    return StateDictError(explain(mistake, f"{reason} Nothing was loaded.", fix))


def require_safetensors() -> ModuleType:
    """Return the safetensors package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise MissingDependencyError(
            explain(
                "gf.save and gf.load need the safetensors package.",
                f"it is not installed ({error}).",
                "pip install safetensors",
            )
        ) from error
    return safetensors
