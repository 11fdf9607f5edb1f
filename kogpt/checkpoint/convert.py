"""Converts a checkpoint in any format that is read into a folder as this package writes it."""

import json
import os
import re
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kogpt.checkpoint.dtypes import dtype_name, parse_dtype
from kogpt.checkpoint.files import require_regular
from kogpt.checkpoint.layouts import AssembledTensors, layout_of
from kogpt.checkpoint.manifest import (
    COMPANIONS,
    MANIFEST_FORMATS,
    MANIFEST_NAME,
    NOTICES,
    file_record,
    is_text,
)
from kogpt.checkpoint.names import expand
from kogpt.checkpoint.overflow import FitCounts, clamp_finite, count_misfits
from kogpt.checkpoint.quantization import IN_WORD, Quantization
from kogpt.checkpoint.quantizing import Quantizer
from kogpt.checkpoint.reader import CheckpointReader, open_checkpoint
from kogpt.checkpoint.report import ConversionReport, TensorLine
from kogpt.checkpoint.resources import require_disk
from kogpt.checkpoint.source_hash import SourceHash, printable
from kogpt.checkpoint.staging import (
    Staging,
    partial_of,
    refuse_existing,
    staged_bytes,
    sweep,
)
from kogpt.checkpoint.verifying import read_manifest
from kogpt.checkpoint.writer import (
    MAX_SHARD_SIZE,
    MEMORY,
    ROOM_FOR_SMALL_FILES,
    TensorSpec,
    byte_bar,
    description,
    finish,
    plan_shards,
    write_shards,
)
from kogpt.choices import INTEGERS, ON_OVERFLOW
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.jsonfiles import read_config_object, to_json
from kogpt.model.config import SIZES, KoGPTConfig
from kogpt.ranges import Range, check_choice
from kogpt.textfiles import read_limited

MAX_COMPANION = 64 << 20  # bytes

KOGPT_LICENSE = (
    "CC-BY-NC-ND-4.0, Kakao Brain: weights and tokenizer of KoGPT. Changing the format makes no"
    " adapted material; finetuned, merged or quantised weights may not be shared."
)
OTHER_LICENSE = "not stated here: that of the source applies"

GROUP_SIZE = 128  # as is usual, and as the kernels like it
UNKNOWN_HASH = "0" * 64  # holds the place of the source's hash while it is computed


@dataclass(frozen=True)
class ConversionOptions:
    """How to convert.

    Attributes:
        dtype: of the result; None for that of the source.
        max_shard_size: bytes of a file of weights.
        on_overflow: what to do where float16 cannot hold a finite value: `error` refuses,
            `clamp` takes the largest float16, `bfloat16` writes all weights in that format.
        allow_nonfinite: patterns of names of tensors that may hold NaN or infinity.
        allow_extra: patterns of names of unknown tensors to leave behind.
        license_notice: of the weights; None for that of the source's manifest, or else what is
            known of the release.
        config: the shape of the model; None for the `config.json` of the source.
        quantize: `int8` or `int4`, for the matrices of the linear layers; None for floats. A row
            of int8 has one scale; where the rest is int4, the head is int8.
        group_size: inputs that share a scale of int4; None for 128.
        zero_points: whether groups of int4 need not be symmetric about zero; the head stays float.
        dry_run: only report what would be done.
        quiet: no progress bar, not even on a terminal.

    Raises:
        ValueError: an option is none of those possible.
    """

    dtype: str | torch.dtype | None = None
    max_shard_size: int = MAX_SHARD_SIZE
    on_overflow: str = "error"
    allow_nonfinite: tuple[str, ...] = ()
    allow_extra: tuple[str, ...] = ()
    license_notice: str | None = None
    config: KoGPTConfig | None = None
    quantize: str | None = None
    group_size: int | None = None
    zero_points: bool = False
    dry_run: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None:
            parse_dtype(self.dtype)
        Range(Real, 1).check("max_shard_size", self.max_shard_size)  # such as 5e9
        check_choice("on_overflow", self.on_overflow, ON_OVERFLOW)
        if self.license_notice is not None and not is_text(self.license_notice):
            raise ParameterError(f"license_notice is {self.license_notice!a}, no text in UTF-8")
        self._check_quantize()

    def _check_quantize(self) -> None:
        if self.quantize is not None:
            check_choice("quantize", self.quantize, INTEGERS)
        given = {"group_size": self.group_size is not None, "zero_points": self.zero_points}
        for name, is_given in given.items():
            if is_given and self.quantize != "int4":
                raise ParameterError(f"{name} is of use with quantize int4 alone")
        if self.group_size is not None and (self.group_size < 1 or self.group_size % IN_WORD):
            raise ParameterError(
                f"group_size is {self.group_size}, it must be a multiple of {IN_WORD}"
            )

    @property
    def quantization(self) -> Quantization | None:
        """How matrices are stored; None for as floats."""
        if self.quantize is None:
            return None
        return Quantization.of(self.quantize, self.group_size or GROUP_SIZE, self.zero_points)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    options: ConversionOptions | None = None,
) -> ConversionReport:
    """Converts a checkpoint; `dst` appears complete or not at all.

    The same call resumes after an interruption and then writes the same bytes as without one;
    repeated after it has succeeded, it only says so, by the sizes of files alone.

    Args:
        src: folder or file, in any format that `open_checkpoint` reads.
        dst: the folder to write; must not exist, or be empty.
        options: how; None for the defaults.

    Raises:
        InputRefusedError: the source is damaged, dangerous or of another kind, or `dst` exists.
        NotEnoughResourcesError: the disk has no room.
    """
    options = options or ConversionOptions()
    with open_checkpoint(src, config=options.config) as reader:
        job = _Job(reader, Path(dst), options)
        if options.dry_run:
            job.refuse_other()
        else:
            job.run()
        return job.report()


class _Job:
    """One conversion: what is read, what is to be written, and what came of it."""

    def __init__(self, reader: CheckpointReader, dst: Path, options: ConversionOptions) -> None:
        self.reader, self.dst, self.options = reader, dst, options
        self.begun = self._source()
        self.config = options.config or reader.require_config()
        self.extra = reader.check(self.config, options.allow_extra)
        self.companions = companions(reader.folder)
        self.further = {} if options.config else tokenizer_class(reader.folder)
        self.quantization = self._decide_quantization()
        self.misfits = FitCounts()
        self.dtype = self._decide_dtype()
        # What is rounded keeps our names: others could not read it anyway.
        self.layout = None if self.quantization is not None else layout_of(self.config)
        shapes = expand(self.config)
        self.rounded = Quantizer(self._read, self.quantization, shapes, self.dtype, self._called)
        self.stored = AssembledTensors(
            self.rounded.specs, self.rounded.read, self.config, self.layout
        )
        self.shards = plan_shards(self.stored.specs, options.max_shard_size)
        license_notice = options.license_notice
        if license_notice is None:
            license_notice = license_of(reader.folder, self.config)
        self.metadata = {"format": "pt", "license": license_notice, "source_sha256": UNKNOWN_HASH}
        self.was_complete = False

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    def _decide_quantization(self) -> Quantization | None:
        quantization = self.options.quantization
        if quantization is not None:
            if self.reader.quantization is not None:
                raise InputRefusedError(
                    f"{self.reader.path}: quantised already, {self.reader.quantization};"
                    " quantise the original weights instead"
                )
            quantization.check_fits(self.config, str(self.reader.path))
        return quantization

    def _decide_dtype(self) -> torch.dtype:
        stored, asked = self.reader.stored_dtype, self.options.dtype
        dtype = stored if asked is None else parse_dtype(asked)
        computed = self.reader.quantization is not None  # in float32, of float16
        if dtype != torch.float16 or (stored == torch.float16 and not computed):
            return dtype
        shapes = expand(self.config).items()
        specs = [TensorSpec(name, dtype, shape) for name, shape in shapes]
        self.misfits = count_misfits(self.reader, specs)
        if self.misfits.too_large and self.options.on_overflow == "error":
            name, count = next(iter(self.misfits.overflowed.items()))
            raise InputRefusedError(
                f"{self.reader.path}: {self.misfits.too_large} values in"
                f" {len(self.misfits.overflowed)} tensors overflow float16"
                f" (the first {count} in {name}); choose --on-overflow clamp or bfloat16"
            )
        to_bfloat16 = self.misfits.too_large and self.options.on_overflow == "bfloat16"
        return torch.bfloat16 if to_bfloat16 else dtype

    def refuse_other(self) -> None:
        """Refuses a `dst` that is there and cannot be what this conversion has written."""
        partial_of(self.dst)  # which there is none of beside a mount point
        if self._manifest() is None:
            refuse_existing(self.dst)

    def run(self) -> None:
        sweep(self.dst)
        with SourceHash(self.reader.folder, self.reader.files) as source:
            self.was_complete = self._is_complete(source)
            if self.was_complete:
                return
            refuse_existing(self.dst)
            missing = self.nbytes - staged_bytes(self.dst)
            require_disk(self.dst, missing + ROOM_FOR_SMALL_FILES)
            with Staging(self.dst, self._plan()) as staging:
                self._write(staging, source)

    def _write(self, staging: Staging, source: SourceHash) -> None:
        done = 0
        with byte_bar(self.nbytes, self.options.quiet) as bar:

            def progress(count: int) -> None:
                nonlocal done
                done += count
                bar.update(count)
                source.follow(done / self.nbytes)

            records = write_shards(
                staging,
                self.shards,
                self.stored.read,
                self.metadata,
                allow_nonfinite=self.options.allow_nonfinite,
                progress=progress,
                where=str(self.reader.path),
            )
        hashes = source.result()
        self._refuse_changed()
        metadata = {**self.metadata, "source_sha256": hashes["sha256"]}
        finish(
            staging,
            self.config,
            self.shards,
            records,
            metadata,
            files=self.companions,
            layout=self.layout,
            source=hashes,
            quantization=self.quantization,
            further=self.further,
        )

    def _called(self, name: str) -> str:
        """What messages call a tensor."""
        return f"{self.reader.path}: {self.reader.stored_name(name)}"

    def _read(self, name: str, rows: slice) -> Tensor:
        values = self.reader.read(name, rows)
        clamp = self.misfits.too_large and self.dtype == torch.float16
        return clamp_finite(values) if clamp else values

    def _plan(self) -> dict[str, Any]:
        """All that determines the bytes of the result, to tell whether a rest can be resumed."""
        plan = {
            "source": self.begun,
            "shards": {shard.name: [spec.name for spec in shard.tensors] for shard in self.shards},
            "dtype": dtype_name(self.dtype),
            "config": self.config.to_dict(),
            "quantization": self.quantization and self.quantization.to_dict(),
            "options": {"on_overflow": self.options.on_overflow, "license": self.metadata},
            "nonfinite": list(self.options.allow_nonfinite),
        }
        return json.loads(to_json(plan))

    def _source(self) -> dict[str, list[int]]:
        """By which a file that was changed is known: its size, and when it was written."""
        stats = {printable(path): path.stat() for path in self.reader.files}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

    def _refuse_changed(self) -> None:
        """Refuses files that were written to while they were read, as by a download: what was
        hashed need not be what was converted.
        """
        for name, state in self._source().items():
            if state != self.begun[name]:
                raise InputRefusedError(f"{name}: was changed while it was read")

    def _is_complete(self, source: SourceHash) -> bool:
        """Whether `dst` is already what this conversion would write."""
        manifest = self._manifest()
        return manifest is not None and manifest["source"] == source.result()

    def _manifest(self) -> dict[str, Any] | None:
        """The manifest of `dst`, where by it and by sizes all but the source's hash is right."""
        try:
            manifest = read_manifest(self.dst)
            tensors = {
                name: (entry["file"], entry["dtype"], entry["shape"])
                for name, entry in manifest["tensors"].items()
            }
            sizes = {name: (self.dst / name).stat().st_size for name in manifest["files"]}
            sizes |= {shard.name: (self.dst / shard.name).stat().st_size for shard in self.shards}
        except (InputRefusedError, OSError, KeyError):
            return None  # something else; refused for existing, if it does
        wanted = {
            spec.name: (shard.name, dtype_name(spec.dtype), [*spec.shape])
            for shard in self.shards
            for spec in shard.tensors
        }
        described = description(
            self.config, self.shards, self.layout, self.quantization, self.further
        )
        files = {n: file_record([c]) for n, c in {**described, **self.companions}.items()}
        expected = {name: record["size"] for name, record in files.items()}
        for shard in self.shards:
            expected[shard.name] = len(shard.header(self.metadata)) + shard.nbytes
        same = tensors == wanted and manifest["files"] == files and sizes == expected
        same = same and manifest["license"] == self.metadata["license"]
        return manifest if same else None

    def report(self) -> ConversionReport:
        lines = [
            TensorLine(
                spec.name,
                spec.shape,
                self.reader.stored_as(self.rounded.source[self.stored.source[spec.name]]),
                dtype_name(spec.dtype),
                spec.nbytes,
                shard.name,
            )
            for shard in self.shards
            for spec in shard.tensors
        ]
        return ConversionReport(
            source=str(self.reader.path),
            destination=str(self.dst),
            dry_run=self.options.dry_run,
            already_complete=self.was_complete,
            config=self.config.to_dict(),
            quantization=None if self.quantization is None else str(self.quantization),
            license=self.metadata["license"],
            tensors=lines,
            ignored=list(self.reader.ignored),
            left_out=self.extra,
            copied=list(self.companions),
            overflowed=self.misfits.too_large,
            vanished=self.misfits.vanished if self.dtype == torch.float16 else 0,
            memory_needed=MEMORY + self.stored.memory,
        )


def license_of(folder: Path, config: KoGPTConfig) -> str:
    """The notice that a folder carries, if it was written here, or what is known of it.

    Raises:
        InputRefusedError: its manifest is damaged.
    """
    if (folder / MANIFEST_NAME).exists() and not _is_foreign(folder / MANIFEST_NAME):
        return read_manifest(folder)["license"]
    release = KoGPTConfig()
    if all(getattr(config, size) == getattr(release, size) for size in SIZES):
        return KOGPT_LICENSE
    named = _named_in_card(folder / "README.md")
    return f"{named}, as README.md of the source names it" if named else OTHER_LICENSE


def _named_in_card(card: Path) -> str | None:
    """The licence in the table that a model's card on a hub begins with, if there is one."""
    if not card.is_file() or card.stat().st_size > MAX_COMPANION:
        return None
    text = read_limited(card, MAX_COMPANION).decode(errors="replace")
    table = text.split("\n---", maxsplit=1)[0] if text.startswith("---") else ""
    found = re.search(r"^license:[ \t]*(\S.{,99})$", table, re.MULTILINE)
    return found and found[1].strip()


def _is_foreign(manifest: Path) -> bool:
    """Whether a manifest is of another program; a damaged one is taken for ours."""
    require_regular(manifest)
    try:
        values = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError):
        return False
    form = values.get("format") if isinstance(values, dict) else None
    return not (isinstance(form, str) and form.startswith(MANIFEST_FORMATS))


def tokenizer_class(folder: Path) -> dict[str, str]:
    """What `config.json` says of the tokenizer, by which others open it where no file of its own
    names a class.
    """
    path = folder / "config.json"
    value = read_config_object(path).get("tokenizer_class") if path.is_file() else None
    return {"tokenizer_class": value} if isinstance(value, str) and is_text(value) else {}


def companions(folder: Path) -> dict[str, bytes]:
    """The files of a folder that go with its weights, by name.

    Raises:
        InputRefusedError: one is too large, or no regular file. A notice that is stays behind.
    """
    found = {}
    for name in COMPANIONS:
        path = folder / name
        if os.path.lexists(path):
            require_regular(path)
            found[name] = read_limited(path, MAX_COMPANION)
    for path in map(folder.joinpath, NOTICES):
        if path.is_file() and path.stat().st_size <= MAX_COMPANION:
            found[path.name] = read_limited(path, MAX_COMPANION)
    return found
