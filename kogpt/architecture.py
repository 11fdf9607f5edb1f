"""A changed architecture by the name of its file: for the command line, `FILE.py:CLASS`."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

from kogpt.errors import InputRefusedError
from kogpt.model import KoGPT


@cache
def load_architecture(where: str) -> type[KoGPT]:
    """The class that is defined in a file of Python, which is run for that.

    Args:
        where: `FILE.py:CLASS`; the class is a subclass of `KoGPT`.

    Raises:
        InputRefusedError: there is no such file or class, or the file fails; names it.
    """
    file, _, name = where.rpartition(":")
    if not file or not Path(file).is_file():
        raise InputRefusedError(f"architecture {where}: no such file; name it as FILE.py:CLASS")
    found = getattr(_run(Path(file)), name, None)
    if not isinstance(found, type) or not issubclass(found, KoGPT):
        raise InputRefusedError(f"{file}: {name!r} is no subclass of KoGPT there")
    return found


def _run(path: Path) -> object:
    """The module that a file makes; its neighbours can be imported, as of a program."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputRefusedError(f"{path}: not a file of Python")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # where dataclasses look for it, but nobody later
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputRefusedError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
        del sys.modules[spec.name]
        if before is not None:
            sys.modules[spec.name] = before
    return module
