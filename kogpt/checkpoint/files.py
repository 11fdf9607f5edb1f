"""Looking at files before opening them."""

import os
import stat
from pathlib import Path

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


# First bytes of formats that are none of ours, with what to say about them.
FOREIGN = {
    b"GGUF": "a GGUF file",
    b"lmgg": "a ggml file",
    b"fmgg": "a ggml (ggmf) file",
    b"tjgg": "a ggml (ggjt) file",
    b"\x89HDF": "an HDF5 file",
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
            raise InputRefusedError(f"{path}: {what}; convert from the original weights instead")
    if not head:
        raise InputRefusedError(f"{path}: empty")
