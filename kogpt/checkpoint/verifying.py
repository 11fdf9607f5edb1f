"""Checks a checkpoint folder against its manifest, byte for byte."""

import hashlib
import math
import os
import re
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kogpt.checkpoint.files import require_regular
from kogpt.checkpoint.index import name_problem, read_index
from kogpt.checkpoint.manifest import (
    COMPANIONS,
    FORMAT,
    INDEX_NAME,
    MANIFEST_NAME,
    TensorRecord,
    file_record,
    is_text,
    shown,
)
from kogpt.checkpoint.mesh import is_mesh_checkpoint
from kogpt.checkpoint.resources import human
from kogpt.checkpoint.safetensors_file import SafetensorsFile
from kogpt.checkpoint.shards import TensorSpec
from kogpt.checkpoint.sliced import is_sliced
from kogpt.checkpoint.source_hash import hash_file
from kogpt.checkpoint.statistics import Statistics
from kogpt.checkpoint.writer import byte_bar, raw_bytes
from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import parse_json
from kogpt.textfiles import brief, read_limited

MAX_MANIFEST = 64 << 20  # bytes

WEIGHTS = re.compile(r"(model|pytorch_model).*\.(safetensors|bin)", re.DOTALL)
LOADED = (*COMPANIONS, "adapter_config.json")


@dataclass(frozen=True)
class Verification:
    """A folder that is as its manifest says.

    Attributes:
        path: the folder.
        tensors: count of tensors checked.
        nbytes: bytes of the files of weights.
        files: names of the other files checked.
        license: the notice in the manifest.
        source: SHA-256 of what the weights were converted from; None if they were not.
    """

    path: str
    tensors: int
    nbytes: int
    files: list[str]
    license: str
    source: str | None

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `--json` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.tensors} tensors ({human(self.nbytes)}) and {len(self.files)}"
            f" files are as the manifest says\nlicence of the weights: {shown(self.license)}"
        )


def verify(path: str | os.PathLike[str], *, quiet: bool = False) -> Verification:
    """Re-reads a folder and compares all of it with its manifest.

    Args:
        path: a folder written by `convert` or `write_checkpoint`.
        quiet: no progress bar, not even on a terminal.

    Raises:
        InputRefusedError: something differs, is missing or is not in the manifest; the message
            names file and key.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        require_regular(folder / name)
        _compare(folder / name, hash_file(folder / name), entry)
    index = read_index(folder / INDEX_NAME, ".safetensors")
    shards = list(manifest["headers"])
    if index.files != shards:
        raise InputRefusedError(f"{folder / INDEX_NAME}: lists other files than the manifest")
    _refuse_strangers(folder, manifest)
    size = sum((folder / name).stat().st_size for name in shards)
    with byte_bar(size, quiet) as bar:
        for name in shards:
            _check_shard(folder / name, manifest, bar)
    source = manifest["source"]
    return Verification(
        path=str(folder),
        tensors=len(manifest["tensors"]),
        nbytes=size,
        files=list(manifest["files"]),
        license=manifest["license"],
        source=None if source is None else source["sha256"],
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, its form checked; InputRefusedError where that is bad."""
    path = folder / MANIFEST_NAME
    if folder.is_dir() and not path.exists():
        raise InputRefusedError(
            f"{folder}: no {MANIFEST_NAME}, which kogpt convert writes, to compare it with; kogpt"
            " inspect looks at other folders"
        )
    require_regular(path)
    data = read_limited(path, MAX_MANIFEST)
    try:
        manifest = parse_json(data)
        _check_form(manifest)
    except ValueError as error:
        raise InputRefusedError(f"{path}: bad manifest: {error}") from None
    return manifest


def _check_form(manifest: object) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"it is not of the format {FORMAT}")
    tables = {key: manifest.get(key) for key in ("files", "headers", "tensors")}
    for key, table in tables.items():
        if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
            raise ValueError(f"{key} is no table")
    for name in [*manifest["files"], *manifest["headers"]]:
        if problem := name_problem(name):
            raise ValueError(f"{brief(name)}: {problem}")
    for name in ("config.json", INDEX_NAME):
        if name not in manifest["files"]:
            raise ValueError(f"files: {name} is missing")
    for name, entry in manifest["tensors"].items():
        if str(entry.get("file")) not in manifest["headers"]:
            raise ValueError(f"tensors: {brief(name)}: its file is not among the headers")
    source = manifest.get("source")
    if source is not None and not (isinstance(source, dict) and is_hash(source.get("sha256"))):
        raise ValueError("source has no sha256")
    notice = manifest.get("license")
    if not isinstance(notice, str) or not is_text(notice) or "source" not in manifest:
        raise ValueError("license, which must be text in UTF-8, or source is missing")


def is_hash(value: object) -> bool:
    """Whether a value is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _refuse_strangers(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuses what this or another program would load beside or in place of what was checked."""
    if is_mesh_checkpoint(folder) or is_sliced(folder):
        raise InputRefusedError(f"{folder}: holds slices of weights that are not in the manifest")
    for path in sorted(folder.iterdir()):
        is_weights = WEIGHTS.fullmatch(path.name) and path.name not in manifest["headers"]
        is_companion = path.name in LOADED and path.name not in manifest["files"]
        if is_weights or is_companion:
            raise InputRefusedError(f"{path}: not in the manifest")


def _check_shard(path: Path, manifest: dict[str, Any], bar: tqdm) -> None:
    wanted = {n: entry for n, entry in manifest["tensors"].items() if entry["file"] == path.name}
    with closing(SafetensorsFile(path)) as file:
        header = file.read_raw(0, file.header.data_start)
        _compare(path, file_record([header]), manifest["headers"][path.name])
        _check_metadata(path, file.header.metadata, manifest)
        if list(file.tensors) != list(wanted):
            raise InputRefusedError(f"{path}: holds other tensors than the manifest says")
        for name, tensor in file.tensors.items():
            if not math.prod(tensor.shape) or not tensor.shape:
                raise InputRefusedError(f"{path}: {name}: has shape {list(tensor.shape)}")
        bar.update(len(header))
        for name, entry in wanted.items():
            record = measure(file, name, bar).to_dict()
            for key in sorted(record.keys() | entry.keys()):
                if record.get(key) != entry.get(key):
                    raise InputRefusedError(
                        f"{path}: {name}: {key} is {brief(record.get(key))},"
                        f" the manifest says {brief(entry.get(key))}"
                    )


def _check_metadata(path: Path, found: dict[str, str], manifest: dict[str, Any]) -> None:
    """Holds what a shard says of the licence and the source against the manifest."""
    wanted = {"license": manifest["license"]}
    if manifest["source"] is not None:
        wanted["source_sha256"] = manifest["source"]["sha256"]
    for key, value in wanted.items():
        if found.get(key) != value:
            raise InputRefusedError(
                f"{path}: {key} is {brief(found.get(key))}, the manifest says {brief(value)}"
            )


def measure(file: SafetensorsFile, name: str, bar: tqdm) -> TensorRecord:
    """Hashes and measures one tensor of a file."""
    entry = file.tensors[name]
    digest, seen = hashlib.sha256(), Statistics(entry.dtype)
    for rows in TensorSpec(name, entry.dtype, entry.shape).slices():
        values = file.read(name, rows)
        seen.update(values)
        digest.update(raw_bytes(values))
        bar.update(values.nbytes)
    return TensorRecord.of(file.path.name, entry.dtype, entry.shape, digest.hexdigest(), seen)


def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in ("size", "sha256"):
        if found[key] != wanted.get(key):
            raise InputRefusedError(
                f"{path}: {key} is {found[key]}, the manifest says {brief(wanted.get(key))}"
            )
