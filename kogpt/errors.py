"""The errors a user can meet, each with the exit code the command line answers it with.

The wrong value of a parameter (`temperature=-1`) and the refused input are a `ValueError` as well.
A plain one is a fault, and its place is to be seen.
"""

import errno

# What the system says where there is no more room on a disk, or no more is allowed.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class KoGPTError(Exception):
    """Something could not be done. The message is one line that names the file, key or value."""

    exit_code = 1


class UsageError(Exception):
    """Arguments of a command that make no sense: told in one line, exit code 2."""


class ParameterError(KoGPTError, ValueError):
    """A parameter has a value that is out of its range, or that does not go with the others.

    Where it is one parameter, the message begins with its name.
    """

    exit_code = 2


class NotFiniteError(KoGPTError):
    """A model computes NaN or infinity."""


class InputRefusedError(KoGPTError, ValueError):
    """An input is damaged, dangerous, or of a kind that cannot be used."""

    exit_code = 3


class NotEnoughResourcesError(KoGPTError):
    """The disk or the memory does not suffice; told before work starts wherever it can be."""

    exit_code = 4
