"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the path of an empty temporary file that takes the place of ``path`` when the block ends well.

    The temporary file lies in the same folder; it is flushed to the disk before it is renamed, and the folder after.
    So a crash or an error half-way leaves the old file whole (or no file), never half of the new one. The new file
    has the permissions of the old one, or those the umask gives; a symbolic link stays and its target is replaced.

    A process that is killed meanwhile leaves the temporary file, ``.gradflow-….tmp``, and what the writer may have put
    beside it (the safetensors package a ``.tmp…``). Nothing reads them, and they may be deleted.

    Raises:
        OSError: the folder does not exist or cannot be written to, or ``path`` is write-protected or is no file.

    >>> import os, tempfile
    >>> from gradflow.files import replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/notes.txt") as temporary, open(temporary, "w") as file:
    ...         _ = file.write("all of it")
    ...     os.listdir(folder)
    ['notes.txt']
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "No such folder", folder)
    # A rename would walk over both: write protection is a property of the file, and /dev/null is no file to replace.
    if os.path.exists(target) and not (os.path.isfile(target) and os.access(target, os.W_OK)):
        raise PermissionError(errno.EACCES, "Not a file that may be overwritten", target)
    temporary = os.path.join(folder, f".gradflow-{os.urandom(8).hex()}.tmp")
    with open(temporary, "xb"):
        mode = os.stat(target if os.path.exists(target) else temporary).st_mode
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.chmod(temporary, mode)  # the writer may have put a file of its own here, with other permissions
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # without it the rename itself may be lost with the power
        finally:
            os.close(descriptor)
