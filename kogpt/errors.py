"""The errors a user can meet, each with the exit code the command line answers it with.

A wrong value of a parameter (`temperature=-1`) is a plain `ValueError` that names the allowed
range; the command line answers it with exit code 2, like any other misuse.
"""

import errno

# What the system says where there is no more room on a disk, or no more is allowed.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class KoGPTError(Exception):
    """Something could not be done. The message is one line that names the file, key or value."""

    exit_code = 1


class UsageError(Exception):
    """Arguments of a command that make no sense: told in one line, exit code 2."""


class NotFiniteError(KoGPTError):
    """A model computes NaN or infinity."""


class InputRefusedError(KoGPTError, ValueError):
    """An input is damaged, dangerous, or of a kind that cannot be used."""

    exit_code = 3


class NotEnoughResourcesError(KoGPTError):
    """The disk or the memory does not suffice; told before work starts wherever it can be."""

    exit_code = 4
