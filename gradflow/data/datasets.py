"""Ready data sets, split for training: digits (offline, from scikit-learn) and MNIST (found or fetched)."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gradflow.arguments import flag
from gradflow.config import env_text
from gradflow.errors import DataError, MissingDependencyError, explain
from gradflow.files import replacing
from gradflow.ops.random import Generator, permutation

Images: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Labels: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Where MNIST is fetched from: the first that answers with the right files."""

_TIMEOUT = 30.0  # seconds without a byte from a mirror

# The SHA-256 of each file, decompressed: every mirror compresses it differently.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_VALIDATION = 10_000


class Examples(NamedTuple):
    """Images and their labels, row by row: ``TensorDataset(*examples)``."""

    images: Images
    """float32 in [0, 1], shape (n, height · width), or (n, height, width) with ``flatten=False``."""
    labels: Labels
    """int64 in [0, 10), shape (n,)."""


class Split(NamedTuple):
    """A data set in three parts, as NumPy arrays: `TensorDataset` makes them Tensors of whichever backend.

    >>> split = gf.data.datasets.digits()
    >>> (x, y), validation, test = split
    >>> x.shape, y.shape, validation.images.shape
    ((1437, 64), (1437,), (180, 64))
    """

    train: Examples
    """To fit the parameters to."""
    validation: Examples
    """To choose hyper-parameters and the moment to stop by."""
    test: Examples
    """To report, once."""


def digits(*, flatten: bool = True, seed: int = 0) -> Split:
    """Return the 1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn: no network is needed.

    Pixels are 0, 1/16, ..., 1. The split is 1437 / 180 / 180, stratified: the share of each digit in each part is that
    in the whole, to within one image.

    Args:
        flatten: images of shape (n, 64), else (n, 8, 8).
        seed: determines the split.

    Raises:
        MissingDependencyError: scikit-learn is not installed.

    >>> split = gf.data.datasets.digits()
    >>> split.test.images.shape, split.test.images.dtype, split.test.labels.dtype
    ((180, 64), dtype('float32'), dtype('int64'))

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    https://doi.org/10.24432/C50P49 (its test set).
    """
    flatten = flag("digits", "flatten", flatten)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            explain(
                "gf.datasets.digits() needs scikit-learn, which holds the images.",
                f"it is not installed ({error}).",
                'pip install "gradflow[examples]"',
            )
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape((-1, 64) if flatten else (-1, 8, 8))
    labels = labels.astype(np.int64)

    # Shuffled, then sorted by label: every tenth row is a tenth of each digit.
    order = permutation(len(labels), generator=Generator(seed))
    order = order[np.argsort(labels[order], kind="stable")]
    part = np.full(len(labels), 0)
    part[order[0::10]] = 1
    part[order[1::10]] = 2
    return Split(*(Examples(images[part == k], labels[part == k]) for k in range(3)))


def mnist(*, flatten: bool = True) -> Split:
    """Return MNIST: 70,000 handwritten digits of 28 × 28 pixels.

    The split is 50,000 / 10,000 / 10,000: the first 50,000 of the training set, its last 10,000, and the test set.
    Pixels are 0, 1/255, ..., 1.

    The four files are looked for, with and without ``.gz`` and in a folder ``mnist`` or not, in the folder
    ``GRADFLOW_DATA_DIR`` and then in the cache, ``$XDG_CACHE_HOME/gradflow`` or ``~/.cache/gradflow``; those found in
    neither are fetched into the cache (11 MB). Wherever a file comes from, its SHA-256 is checked. A corrupt one in
    the cache is fetched again; one in ``GRADFLOW_DATA_DIR`` is yours, and an error.

    Args:
        flatten: images of shape (n, 784), else (n, 28, 28).

    Raises:
        DataError: the files are nowhere and cannot be fetched, one in ``GRADFLOW_DATA_DIR`` is corrupt, or that is no
            folder.

    >>> split = gf.data.datasets.mnist()  # doctest: +SKIP
    >>> split.train.images.shape, split.train.labels.shape  # doctest: +SKIP
    ((50000, 784), (50000,))

    Source: Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits", 1998. The split into
    50,000 and 10,000: M. Nielsen, "Neural Networks and Deep Learning", chapter 1.
    """
    flatten = flag("mnist", "flatten", flatten)
    arrays = list(map(_mnist_array, _MNIST))
    train, test = (
        Examples(
            np.divide(images.reshape(len(images), -1) if flatten else images, np.float32(255)), labels.astype(np.int64)
        )
        for images, labels in (arrays[:2], arrays[2:])
    )
    cut = len(train.labels) - _VALIDATION
    return Split(
        Examples(train.images[:cut], train.labels[:cut]), Examples(train.images[cut:], train.labels[cut:]), test
    )


def _mnist_array(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the file ``name`` from the first place that has it, its checksum checked."""
    own, cache = _own_folder(), _cache_folder()
    for path in _candidates(own, name) if own is not None else ():
        try:
            return _parse_idx(_checked(_read(path), name), name)
        except ValueError as error:
            raise DataError(
                explain(
                    f"{path} is not the MNIST file it should be: {error}.",
                    "the files in GRADFLOW_DATA_DIR are yours, so gradflow does not replace them.",
                    "put a good copy in its place, or delete it and run again to have it fetched into the cache",
                )
            ) from error
    corrupt = ""
    for path in _candidates(cache, name):
        try:
            return _parse_idx(_checked(_read(path), name), name)
        except ValueError as error:
            corrupt += f"\n    {path} is corrupt: {error}"
    return _parse_idx(_fetch(name, cache, corrupt), name)


def _own_folder() -> str | None:
    text = env_text("GRADFLOW_DATA_DIR")
    if text is None:
        return None
    folder = os.path.expanduser(text)
    if not os.path.isdir(folder):
        raise DataError(
            explain(
                f"GRADFLOW_DATA_DIR={text} is not a folder.",
                "data sets are looked for there first.",
                "export GRADFLOW_DATA_DIR=/path/to/data, or unset it",
            )
        )
    return folder


def _cache_folder() -> str:
    base = env_text("XDG_CACHE_HOME") or ""
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "gradflow")


def _candidates(folder: str, name: str) -> list[str]:
    paths = (os.path.join(folder, part) for part in (f"mnist/{name}.gz", f"mnist/{name}", f"{name}.gz", name))
    return [path for path in paths if os.path.isfile(path)]


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _checked(content: bytes, name: str) -> bytes:
    """Decompress ``content`` if it is a gzip file; a ValueError says what is wrong if it is not the file ``name``."""
    import gzip
    import hashlib
    import zlib

    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"it cannot be decompressed ({error})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != _MNIST[name]:
        raise ValueError(f"its {len(content):,} bytes (decompressed) have SHA-256 {digest}, not {_MNIST[name]}")
    return content


def _parse_idx(content: bytes, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read an IDX file: 0, 0, 8 (for unsigned bytes), the number of axes, their lengths (big-endian), the values."""
    axes = 3 if "images" in name else 1
    start = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < start:
        raise ValueError(f"it does not begin as an IDX file of unsigned bytes with {axes} axes")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if len(content) - start != math.prod(shape):
        raise ValueError(f"it says its shape is {shape}, and has {len(content) - start:,} values")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _fetch(name: str, cache: str, corrupt: str) -> bytes:
    """Download ``name``, check it, keep it in ``cache`` as ``mnist/name.gz`` and return it decompressed."""
    folder = os.path.join(cache, "mnist")
    path = os.path.join(folder, f"{name}.gz")
    failures = ""
    for mirror in MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            compressed = _download(url)
            content = _checked(compressed, name)
        except (OSError, ValueError) as error:  # urllib's errors are OSErrors
            failures += f"\n    {url}: {error}"
            continue
        if corrupt:
            warnings.warn(f"MNIST's {name} was fetched again, because{corrupt}", stacklevel=4)
        try:
            os.makedirs(folder, exist_ok=True)
            with replacing(path) as temporary, open(temporary, "wb") as file:
                file.write(compressed)
        except OSError as error:
            warnings.warn(f"MNIST will be fetched again next time: {path} cannot be written: {error}", stacklevel=4)
        return content
    raise DataError(
        explain(
            f"the MNIST file {name} is not on this machine and cannot be fetched.",
            f"GRADFLOW_DATA_DIR is {env_text('GRADFLOW_DATA_DIR') or 'not set'}, the cache is {cache}; neither has a "
            f"good copy, and no mirror gave one:{corrupt}{failures}",
            "export GRADFLOW_DATA_DIR=/path/to/a/folder that holds "
            f"{', '.join(f'{file}.gz' for file in _MNIST)}; or put these files into {folder}, or run once with a "
            "network, which does so",
        )
    )


def _download(url: str) -> bytes:
    import urllib.request
    from contextlib import nullcontext
    from http.client import HTTPException

    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            size = int(response.headers.get("Content-Length") or 0) or None
            name = url.rpartition("/")[2]
            with tqdm(desc=name, total=size, unit="B", unit_scale=True, disable=None) if tqdm else nullcontext() as bar:
                while chunk := response.read(1 << 16):
                    content += chunk
                    if bar is not None:
                        bar.update(len(chunk))
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    return bytes(content)
