"""Looking at files before opening them, and reading values at known places in them."""

import math
import os
import stat
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from kogpt.errors import InputRefusedError


def require_regular(path: Path) -> None:
    """Refuses what is no readable regular file: opening a pipe would wait for ever.

    Raises:
        InputRefusedError: missing, a folder, a pipe, a device, or not readable.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputRefusedError(f"{path}: {reason}") from None
    if not stat.S_ISREG(mode):
        raise InputRefusedError(f"{path}: not a regular file")
    if not os.access(path, os.R_OK):
        raise InputRefusedError(f"{path}: no permission to read it")


def read_rows(
    file: FileIO, dtype: torch.dtype, shape: tuple[int, ...], offset: int, rows: slice, what: str
) -> Tensor:
    """Reads a contiguous tensor, or a range of its first dimension, if it has one.

    Args:
        file: unbuffered.
        dtype: of the tensor.
        shape: of the whole tensor.
        offset: of its first byte in the file.
        rows: the range, without a step.
        what: is read, for messages.

    Raises:
        InputRefusedError: the file ends before.
    """
    if shape:
        start, stop, _ = rows.indices(shape[0])
        shape = (max(stop - start, 0), *shape[1:])
        offset += start * math.prod(shape[1:]) * dtype.itemsize
    result = torch.empty(shape, dtype=dtype, device="cpu")
    if result.numel():
        read_exactly(file, result.view(-1).view(torch.uint8).numpy().data, offset, what)
    return result


def read_exactly(file: FileIO, buffer: memoryview, offset: int, what: str) -> None:
    """Fills a buffer with the bytes of a file from an offset on.

    Raises:
        InputRefusedError: the file ends before; names `what` was to be read.
    """
    while buffer:
        # At an offset of its own, so that threads may read at once.
        count = os.preadv(file.fileno(), [buffer], offset)
        if not count:
            raise InputRefusedError(f"{what} ends early: the file was truncated")
        buffer, offset = buffer[count:], offset + count


# First bytes of formats that are none of ours, with what to say about them.
ORIGINAL = "convert from the original weights instead"
FOREIGN = {
    b"GGUF": f"a GGUF file; {ORIGINAL}",
    b"lmgg": f"a ggml file; {ORIGINAL}",
    b"fmgg": f"a ggml (ggmf) file; {ORIGINAL}",
    b"tjgg": f"a ggml (ggjt) file; {ORIGINAL}",
    b"\x89HDF": f"an HDF5 file; {ORIGINAL}",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
}


def refuse_foreign(path: Path) -> None:
    """Refuses weights in formats that are not read, by their name.

    Raises:
        InputRefusedError: the first bytes are those of such a format.
    """
    with path.open("rb") as file:
        head = file.read(32)
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise InputRefusedError(f"{path}: {what}")
    if not head:
        raise InputRefusedError(f"{path}: empty")
