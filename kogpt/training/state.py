"""Checkpoints of a run: folders like any other, with what is needed to go on beside the weights.

A folder `step-*` appears complete or not at all (see `kogpt.checkpoint.staging`), so the newest
one is always good, and older ones are removed only when it is there.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from kogpt.checkpoint.safetensors_file import SafetensorsFile
from kogpt.checkpoint.sliced import SlicedCheckpoint
from kogpt.checkpoint.sources import Source
from kogpt.checkpoint.staging import Staging, beside, locked, put_in_place, writing
from kogpt.checkpoint.writer import write_content
from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import to_json
from kogpt.model import PRESETS
from kogpt.parallel import Parallel
from kogpt.training.config import MAY_CHANGE, RunConfig
from kogpt.training.log import LOG_NAME

Files = Mapping[str, bytes | Mapping[str, Tensor]]

STATE_NAME = "training.json"
MOMENTS_NAME = "optimizer.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint says of its run.

    The step alone says which data comes next and how dropout falls: both are functions of
    (seed, step).

    Attributes:
        step: optimizer steps taken.
        tokens: tokens read.
        config: the settings, as JSON values.
        data: fingerprint of the data.
        base: fingerprint of the weights that a run reads again and does not train; None for none.
        source: fingerprint of the file that a class of one's own is in; None for none.
        network: fingerprint of the sources in `kogpt/model/`.
    """

    step: int
    tokens: int
    config: dict[str, Any]
    data: str
    base: str | None = None
    source: str | None = None
    network: str | None = None

    def at(self, step: int, tokens: int) -> "TrainingState":
        """The same run after so many steps."""
        return dataclasses.replace(self, step=step, tokens=tokens)

    def to_json(self) -> bytes:
        """As it is written."""
        return to_json(dataclasses.asdict(self))

    def require_settings(self, config: RunConfig) -> None:
        """Refuses to go on with other settings.

        Raises:
            InputRefusedError: names a setting that differs, and both values.
        """
        # A kind of run's own settings come last, and defaults of others follow from them.
        for name, now in reversed(config.to_dict().items()):
            before = self.config.get(name)
            if name not in MAY_CHANGE and _place(name, before) != _place(name, now):
                raise InputRefusedError(
                    f"cannot resume with other settings: {name} was {before!r} and is {now!r}"
                )

    def require_same(self, begun: "TrainingState") -> None:
        """Refuses to go on with other data, beside other weights, or with an edited class.

        Args:
            begun: how the run would begin now.

        Raises:
            InputRefusedError: they are others.
        """
        if self.data != begun.data:
            raise InputRefusedError("cannot resume with other data than the run began with")
        if self.source != begun.source:
            architecture = self.config.get("architecture")
            raise InputRefusedError(
                f"cannot resume: {architecture} is not what it was when the run began"
            )
        if self.network != begun.network:
            raise InputRefusedError(
                "cannot resume: kogpt/model/ is not what it was when the run began"
            )
        if self.base != begun.base:
            model = self.config.get("model")
            raise InputRefusedError(
                f"cannot resume: {model} holds other weights than the run began with"
            )


def _place(name: str, value: Any) -> Any:
    """What a setting stands for: a file or folder for itself, however it is spelt."""
    if not isinstance(value, str) or "\0" in value:
        return value
    named = name == "architecture" or (name == "model" and value not in PRESETS)
    return os.path.realpath(value) if named else value


def discard_all_but(count: int, out: Path) -> None:
    """Removes all checkpoints of a run but the newest ones."""
    for old in checkpoints(out)[:-count]:
        # A name that is no checkpoint's, so that half of a folder is never taken for one.
        discarded = old.rename(old.with_name(f".{old.name}.discarded"))
        shutil.rmtree(discarded)


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in out.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def read_state(checkpoint: Path) -> TrainingState:
    """Reads what a checkpoint says of its run.

    Raises:
        InputRefusedError: the file is missing or damaged.
    """
    path = checkpoint / STATE_NAME
    try:
        state = TrainingState(**json.loads(path.read_bytes()))
        for field in ("step", "tokens", "config"):
            expected = dict if field == "config" else int
            if type(value := getattr(state, field)) is not expected:
                raise ValueError(f"{field} is {value!r}")
        return state
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputRefusedError(f"{path}: no training state ({error})") from None


class TensorOnDisk:
    """A tensor on the disk, of which rows are read."""

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name

    def __getitem__(self, rows: slice) -> Tensor:
        return self._source.read(self._name, rows)


@contextmanager
def stored_tensors(path: Path) -> Iterator[dict[str, TensorOnDisk]]:
    """Tensors that a run wrote beside its state.

    Args:
        path: of the file, `NAME.safetensors`. Where several processes wrote, `NAME` is a folder of
            slices instead.

    Raises:
        InputRefusedError: they are missing or damaged.
    """
    folder = path.with_suffix("")
    try:
        source = SlicedCheckpoint(folder) if folder.is_dir() else SafetensorsFile(path)
    except (OSError, InputRefusedError) as error:
        raise InputRefusedError(f"{path}: no {path.stem} state ({error})") from None
    with closing(source):
        yield {name: TensorOnDisk(source, name) for name in source.tensors}


def write_step(folder: Path, files: Files, parallel: Parallel) -> None:
    """Writes a checkpoint of a run, complete or not at all.

    Tensors of several processes, `NAME.safetensors`, become a folder of slices, `NAME`.
    """
    if not parallel.alone:
        return write_slices(folder, files, parallel)
    with writing(folder), Staging(folder) as staging:
        for name, content in files.items():
            write_content(staging.folder / name, content)
        staging.commit()


def write_slices(folder: Path, files: Files, parallel: Parallel, notice: str = "none") -> None:
    """`write_step` of several processes; "." is the folder itself."""
    from kogpt.parallel.saving import save_slices  # slow to import

    groups = {
        name.removesuffix(".safetensors"): content
        for name, content in files.items()
        if not isinstance(content, bytes)
    }
    others = {name: content for name, content in files.items() if isinstance(content, bytes)}
    save_slices(folder, groups, others, parallel, license_notice=notice)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], parallel: Parallel) -> None:
    """Writes tensors so that the file is absent, or as before, or complete."""
    if not parallel.alone:
        from kogpt.parallel.saving import write_whole  # slow to import

        return write_whole(path, tensors, parallel)
    with writing(path), beside(path) as temporary:
        write_content(temporary, tensors)
        put_in_place(temporary, path)


@contextmanager
def claimed(config: RunConfig) -> Iterator[None]:
    """Makes the folder of a run and keeps other processes from training in it.

    A run that could not begin leaves no folder.

    Raises:
        InputRefusedError: it holds a run, and `config.resume` is not set.
        KoGPTError: another process trains in it.
    """
    folder = config.folder
    made = [path for path in (folder, config.out) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputRefusedError(f"{config.out}: is no folder; choose another name") from None
    lock = locked(folder, partial(os.open, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        if not config.resume and (checkpoints(folder) or _has_logged(folder)):
            raise InputRefusedError(
                f"{folder}: holds a run already; resume it or choose another name"
            )
        _sweep(folder)
        yield
    finally:
        for path in made:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
        os.close(lock)


def _has_logged(folder: Path) -> bool:
    """Whether a run has come so far as to tell of a step."""
    log = folder / LOG_NAME
    return log.exists() and log.stat().st_size > 0


def _sweep(out: Path) -> None:
    """Removes what an earlier run was writing or removing when it was killed."""
    for pattern in (".step-*.partial", ".step-*.discarded"):
        for path in out.glob(pattern):
            shutil.rmtree(path)
