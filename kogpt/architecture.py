"""A changed architecture by the name of its file: for the command line, `FILE.py:CLASS`."""

import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from kogpt.errors import InputRefusedError, ParameterError
from kogpt.model import KoGPT, KoGPTConfig


def load_architecture(where: str | None) -> type[KoGPT] | None:
    """The class that is defined in a file of Python, which is run for that.

    Args:
        where: `FILE.py:CLASS`; the class is a subclass of `KoGPT`. None for none: a checkpoint
            then names its class.

    Raises:
        ValueError: `where` is not of that form.
        InputRefusedError: there is no such file or class, or the file fails; names it.
    """
    if where is None:
        return None
    file, _, name = where.rpartition(":")
    if not file or not name:
        raise ParameterError(f"architecture is {where}, it must be of the form FILE.py:CLASS")
    if not Path(file).is_file():
        raise InputRefusedError(f"architecture {where}: no such file; name it as FILE.py:CLASS")
    found = getattr(_run(Path(file).resolve()).module, name, None)
    if not isinstance(found, type) or not issubclass(found, KoGPT):
        raise InputRefusedError(f"{file}: {name!r} is no subclass of KoGPT there")
    if not found.forward.__module__.startswith("kogpt."):
        raise InputRefusedError(
            f"{file}: {name}.forward would be passed over, generation and training call its parts:"
            " change `logits`, or the forward of its `transformer_class`"
        )
    try:
        inspect.signature(found.init_weights).bind(None, None)
    except TypeError:
        raise InputRefusedError(f"{file}: {name}.init_weights must take a generator") from None
    if not isinstance(found.block_class, type):
        raise InputRefusedError(
            f"{file}: {name}.block_class is no class: blocks that differ by layer are made in the "
            "`__init__` of one, or of the `transformer_class`"
        )
    for kind in found.config_class.__mro__:
        fields = inspect.get_annotations(kind) if "__dataclass_fields__" not in vars(kind) else {}
        if issubclass(kind, KoGPTConfig) and any("ClassVar" not in str(x) for x in fields.values()):
            raise InputRefusedError(
                f"{file}: {kind.__name__} has fields that would not be read: write"
                " @dataclass(frozen=True) above it"
            )
    return found


def source_fingerprint(where: str, model: KoGPT) -> str:
    """Hash of the file that `load_architecture` ran, of all that it imported beside it, and of
    where else the classes of a model's parts are from, but for installed packages.
    """
    source = _run(Path(where.rpartition(":")[0]).resolve())
    further = sorted(_own_files(model) - source.files)
    if not further:
        return source.sha256
    digest = hashlib.sha256(source.sha256.encode())
    for file in further:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _own_files(model: KoGPT) -> set[Path]:
    paths = sysconfig.get_paths()
    places = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed = [*map(Path, places), Path(torch.__file__).parent, Path(__file__).parent]
    kinds = {kind for part in (*model.modules(), model.config) for kind in type(part).__mro__}
    files = {getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in kinds}
    found = {Path(file).resolve() for file in files if file}
    return {file for file in found if not any(file.is_relative_to(at) for at in installed)}


@dataclass(frozen=True)
class _Source:
    """A file that was run.

    Attributes:
        files: it and its neighbours.
        sha256: of these, as they were then.
    """

    module: ModuleType
    files: set[Path]
    sha256: str


@cache
def _run(path: Path) -> _Source:
    """Runs a file once; its neighbours can be imported, as of a program."""
    spec = importlib.util.spec_from_file_location(_own_name(path), path)
    if spec is None or spec.loader is None:
        raise InputRefusedError(f"{path}: not a file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and torch.compile look for it
    with _importing_beside(path) as neighbours:
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[spec.name]
            raise InputRefusedError(f"{path}: {type(error).__name__}: {error}") from error
    digest = hashlib.sha256()
    for file in [path, *sorted(neighbours)]:
        digest.update(file.read_bytes())
    files = {file.resolve() for file in (path, *neighbours)}
    return _Source(module, files, digest.hexdigest())


@contextmanager
def _importing_beside(path: Path) -> Iterator[list[Path]]:
    """Lets modules of the same folder be imported; gives their files in the end.

    They keep no name that those of another folder may have too: another file is to get its own.
    """
    before, files = set(sys.modules), list[Path]()
    sys.path.insert(0, str(path.parent))
    try:
        yield files
    finally:
        sys.path.remove(str(path.parent))
        for name in [name for name in sys.modules if _is_beside(path, name, before)]:
            module = sys.modules.pop(name)
            if file := getattr(module, "__file__", None):
                module.__name__ = _own_name(Path(file))
                sys.modules[module.__name__] = module
                files.append(Path(file))


def _is_beside(path: Path, name: str, before: set[str]) -> bool:
    """Whether a module, or the package that it is in, lies beside a file and is new with it."""
    top = name.partition(".")[0]
    spec = getattr(sys.modules.get(top), "__spec__", None)
    if top in before or spec is None:
        return False
    places = spec.submodule_search_locations or [spec.origin]
    return any(Path(place).parent == path.parent for place in places if place)


def _own_name(path: Path) -> str:
    """A module's name that no other file has."""
    return f"{path.stem.replace('.', '_')}_{hashlib.sha256(bytes(path)).hexdigest()[:6]}"
