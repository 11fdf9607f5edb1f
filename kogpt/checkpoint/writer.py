"""Writes a checkpoint folder: safetensors shards streamed tensor by tensor, index, manifest.

Each tensor passes through memory once, in slices, and is hashed, measured and written on the
way. The folder is built by `Staging`, so its name appears when all of it is on the disk.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kogpt.checkpoint.dtypes import dtype_name, parse_dtype
from kogpt.checkpoint.lanes import Lanes
from kogpt.checkpoint.layouts import AssembledTensors, Layout, layout_of
from kogpt.checkpoint.manifest import (
    FORMAT,
    INDEX_NAME,
    MANIFEST_NAME,
    TensorRecord,
    file_record,
)
from kogpt.checkpoint.names import CLASSIFIER, check_names, expand, numbered_labels
from kogpt.checkpoint.quantization import Quantization
from kogpt.checkpoint.resources import require_disk
from kogpt.checkpoint.safetensors_file import encode_header
from kogpt.checkpoint.shards import MAX_SHARD_SIZE, Shard, TensorSpec, plan_shards
from kogpt.checkpoint.staging import (
    Staging,
    refuse_existing,
    sweep,
    write_file,
    write_fully,
    writing,
)
from kogpt.checkpoint.statistics import Statistics
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.jsonfiles import to_json
from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import KoGPT

FLUSH = 256 << 20  # bytes after which the disk is set to work, rather than all at the end
MEMORY = 256 << 20  # bytes, held at most: slices in flight, their casts, and buffers
ROOM_FOR_SMALL_FILES = 1 << 20  # bytes

Read = Callable[[str, slice], Tensor]
Progress = Callable[[int], None]
Content = bytes | Path | Mapping[str, Tensor]


def byte_bar(total: int, quiet: bool) -> tqdm:
    """A progress bar of bytes, shown on a terminal alone, and there unless `quiet`."""
    return tqdm(total=total, unit="B", unit_scale=True, disable=True if quiet else None)


def write_checkpoint(
    dst: str | os.PathLike[str],
    config: KoGPTConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: str | torch.dtype | None = None,
    files: Mapping[str, Content] | None = None,
    license_notice: str = "not stated",
    max_shard_size: int = MAX_SHARD_SIZE,
    allow_nonfinite: Collection[str] = (),
    labels: Sequence[str] | None = None,
    read: Read | None = None,
    model_class: type[KoGPT] | None = None,
) -> None:
    """Writes the weights of a model in memory as a checkpoint folder, complete or not at all.

    Args:
        dst: the folder; must not exist (or be empty).
        config: the shape of the model.
        tensors: the state dict, by its released names. The head of a classifier may be among
            them, `score.weight` (outputs, C); it stays float32, and one output is a regression.
        dtype: to cast to; None keeps what the tensors have.
        files: further files by name: bytes, a file to copy, or tensors for a safetensors file.
        license_notice: of the weights, as noted in the manifest and in every shard.
        max_shard_size: bytes.
        allow_nonfinite: patterns of names of tensors that may hold NaN or infinity.
        labels: names of a classifier's outputs, for `config.json`; None numbers them.
        read: gives rows of a tensor by name, on the CPU, in network order and the head last; None
            takes them from `tensors`, which else need have but shapes and dtypes.
        model_class: of the model; None for the one that belongs to the config.

    Raises:
        InputRefusedError: wrong names or shapes, NaN or infinity, or `dst` exists.
        ValueError: there are other than one label for each output, or `dtype` is none that weights
            come in.
        NotEnoughResourcesError: the disk has no room.
    """
    target = None if dtype is None else parse_dtype(dtype)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_names(shapes, config, str(dst), model_class=model_class)
    specs = [
        TensorSpec(name, target or tensors[name].dtype, shape)
        for name, shape in expand(config, model_class).items()
    ]
    head = tensors.get(CLASSIFIER)
    if head is not None:
        specs.append(classifier_spec(head.size(0), config))
    further = None if head is None else describe_classifier(head.size(0), labels)

    def own(name: str, rows: slice) -> Tensor:
        return tensors[name].detach()[rows].cpu()

    write_folder(
        Path(dst),
        config,
        specs,
        read or own,
        layout=layout_of(config, model_class),
        files=files or {},
        license_notice=license_notice,
        max_shard_size=max_shard_size,
        allow_nonfinite=allow_nonfinite,
        further=further,
    )


def write_folder(
    dst: Path,
    config: KoGPTConfig,
    specs: Iterable[TensorSpec],
    read: Read,
    *,
    layout: Layout | None,
    files: Mapping[str, Content],
    license_notice: str,
    max_shard_size: int = MAX_SHARD_SIZE,
    allow_nonfinite: Collection[str] = (),
    further: dict[str, Any] | None = None,
    quiet: bool = True,
) -> int:
    """Writes tensors that are read rows at a time as a checkpoint folder, complete or not at all.

    Args:
        dst: the folder; must not exist (or be empty).
        config: the shape of the model.
        specs: the tensors, by our names, in network order.
        read: gives rows of them, in any dtype.
        layout: to write them in; None for our names.
        files: further files by name.
        license_notice, max_shard_size, allow_nonfinite: as for `write_checkpoint`.
        further: keys of `config.json`.
        quiet: no progress bar, not even on a terminal.

    Returns:
        Bytes of the weights.

    Raises:
        InputRefusedError: NaN or infinity, or `dst` exists.
        NotEnoughResourcesError: the disk has no room.
    """
    stored = AssembledTensors(specs, read, config, layout)
    shards = plan_shards(stored.specs, max_shard_size)
    nbytes = sum(shard.nbytes for shard in shards)
    sweep(dst)
    refuse_existing(dst)
    require_disk(dst, nbytes + sum(map(_size, files.values())) + ROOM_FOR_SMALL_FILES)
    metadata = {"format": "pt", "license": license_notice}
    with Staging(dst) as staging, byte_bar(nbytes, quiet) as bar:
        records = write_shards(
            staging,
            shards,
            stored.read,
            metadata,
            allow_nonfinite=allow_nonfinite,
            progress=bar.update,
        )
        finish(
            staging, config, shards, records, metadata, files=files, layout=layout, further=further
        )
    return nbytes


def classifier_spec(outputs: int, config: KoGPTConfig) -> TensorSpec:
    """The head of a classifier, as it is written."""
    return TensorSpec(CLASSIFIER, torch.float32, (outputs, config.n_embd))


def describe_classifier(outputs: int, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """What `config.json` says of a head, by the keys of transformers.

    Raises:
        ValueError: there are other than one label for each output.
    """
    labels = numbered_labels(outputs) if labels is None else labels
    if len(labels) != outputs:
        raise ParameterError(f"there are {len(labels)} labels, the head has {outputs} outputs")
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "regression" if outputs == 1 else "single_label_classification",
    }


def write_shards(
    staging: Staging,
    shards: list[Shard],
    read: Read,
    metadata: Mapping[str, str],
    *,
    allow_nonfinite: Collection[str] = (),
    progress: Progress = lambda count: None,
    where: str = "",
) -> dict[str, TensorRecord]:
    """Writes the data of all shards that are not done yet; `finish` writes their headers.

    Args:
        staging: the unfinished folder.
        shards: what to write.
        read: gives rows of a tensor by name, in any dtype.
        metadata: of the headers to come; here only the lengths of its texts matter.
        allow_nonfinite: patterns of names of tensors that may hold NaN or infinity.
        progress: told the number of bytes of each finished slice.
        where: what the tensors are of, for messages.

    Returns:
        What is known of every tensor, in order.

    Raises:
        InputRefusedError: a tensor holds NaN or infinity and no pattern allows it.
    """
    records: dict[str, TensorRecord] = {}
    for shard in shards:
        done = staging.done(shard.name)
        path, start = staging.folder / shard.name, len(shard.header(metadata))
        if done is None or not path.exists() or path.stat().st_size != start + shard.nbytes:
            with writing(path):
                written = _write_data(path, shard, start, read, progress)
            for name, record in written.items():
                _check_finite(name, record, allow_nonfinite, where)
            staging.mark_done(shard.name, {n: record.to_dict() for n, record in written.items()})
        else:
            written = {name: TensorRecord.from_dict(record) for name, record in done.items()}
            progress(shard.nbytes)
        records |= written
    return records


def _write_data(
    path: Path,
    shard: Shard,
    offset: int,
    read: Read,
    progress: Progress,
) -> dict[str, TensorRecord]:
    """Streams the tensors of one shard to its file, from `offset` on."""
    digests = {spec.name: hashlib.sha256() for spec in shard.tensors}
    seen = {spec.name: Statistics(spec.dtype) for spec in shard.tensors}
    with Output(path, offset) as output, Lanes("hash", "measure", "write") as lanes:
        for spec in shard.tensors:
            for rows in spec.slices():
                values = read(spec.name, rows).to(spec.dtype).contiguous()
                data = raw_bytes(values)
                lanes.submit(
                    hash=partial(digests[spec.name].update, data),
                    measure=partial(seen[spec.name].update, values),
                    write=partial(output.append, data),
                )
                progress(len(data))
        lanes.wait()
        output.sync()
    return {
        spec.name: TensorRecord.of(
            shard.name, spec.dtype, spec.shape, digests[spec.name].hexdigest(), seen[spec.name]
        )
        for spec in shard.tensors
    }


def _check_finite(name: str, seen: TensorRecord, allowed: Collection[str], where: str) -> None:
    if (seen.nan or seen.inf) and not any(fnmatchcase(name, pattern) for pattern in allowed):
        raise InputRefusedError(
            f"{where and f'{where}: '}{name} holds {seen.nan} NaN and {seen.inf} infinite values,"
            " which only `kogpt convert --allow-nonfinite` lets pass"
        )


class Output:
    """A growing file that keeps the disk busy from early on, instead of all at the end.

    What is on the disk is dropped from the system's cache, which else would fill with it and
    spend more time on making room than the conversion takes.
    """

    def __init__(self, path: Path, offset: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o666)
        self._offset = self._flushed = offset
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flush: Future[None] | None = None

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._flusher.shutdown(wait=True)
        os.close(self._file)

    def append(self, data: memoryview) -> None:
        write_fully(self._file, data, self._offset)
        self._offset += len(data)
        if self._offset - self._flushed >= FLUSH:
            self._join()
            self._flush = self._flusher.submit(self._settle, self._flushed, self._offset)
            self._flushed = self._offset

    def sync(self) -> None:
        """Waits until everything is on the disk."""
        self._join()
        self._settle(self._flushed, self._offset)

    def _settle(self, start: int, end: int) -> None:
        os.fsync(self._file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, start, end - start, os.POSIX_FADV_DONTNEED)

    def _join(self) -> None:
        if self._flush is not None:
            self._flush.result()


def finish(
    staging: Staging,
    config: KoGPTConfig,
    shards: list[Shard],
    records: Mapping[str, TensorRecord],
    metadata: Mapping[str, str],
    *,
    files: Mapping[str, Content],
    layout: Layout | None = None,
    source: Mapping[str, Any] | None = None,
    quantization: Quantization | None = None,
    further: dict[str, Any] | None = None,
) -> None:
    """Writes headers, index, config, other files and, last, the manifest; then commits.

    Args:
        staging: the unfinished folder, its shards written.
        config: the shape of the model.
        shards: the files.
        records: of every tensor.
        metadata: of the headers.
        files: further files by name.
        layout: of the tensors; None for our names.
        source: what the weights were converted from, for the manifest.
        quantization: how matrices are stored; None for as they are.
        further: keys of `config.json`.
    """
    described = description(config, shards, layout, quantization, further)
    contents: dict[str, Content] = {**described, **files}
    with writing(staging.folder):
        headers = {
            shard.name: write_header(staging.folder / shard.name, shard.header(metadata))
            for shard in shards
        }
        written = {name: write_content(staging.folder / name, c) for name, c in contents.items()}
        manifest = {
            "format": FORMAT,
            "license": metadata["license"],
            "source": source,
            "files": written,
            "headers": headers,
            "tensors": {name: record.to_dict() for name, record in records.items()},
        }
        write_file(staging.folder / MANIFEST_NAME, to_json(manifest))
    staging.commit()


def description(
    config: KoGPTConfig,
    shards: list[Shard],
    layout: Layout | None = None,
    quantization: Quantization | None = None,
    further: dict[str, Any] | None = None,
) -> dict[str, bytes]:
    """What a folder says of its weights: `config.json` and the index; arguments as of `finish`."""
    values = _config(config, shards, layout, quantization) | (further or {})
    return {"config.json": to_json(values), INDEX_NAME: to_json(_index(shards))}


def _index(shards: list[Shard]) -> dict[str, Any]:
    weight_map = {spec.name: shard.name for shard in shards for spec in shard.tensors}
    return {
        "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
        "weight_map": weight_map,
    }


def _config(
    config: KoGPTConfig,
    shards: list[Shard],
    layout: Layout | None,
    quantization: Quantization | None,
) -> dict[str, Any]:
    specs = (spec for shard in shards for spec in shard.tensors)
    dtypes = {spec.dtype for spec in specs if spec.name != CLASSIFIER}
    name = dtype_name(reduce(torch.promote_types, dtypes))  # integers give way to floats
    values = config.to_released_dict() if layout else config.to_dict()
    # The older and the newer name of the key in the wider ecosystem.
    values |= {"torch_dtype": name, "dtype": name}
    return values | ({"quantization_config": quantization.to_dict()} if quantization else {})


def write_header(path: Path, header: bytes) -> dict[str, Any]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        write_fully(descriptor, header, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return file_record([header])


def write_content(path: Path, content: Content) -> dict[str, Any]:
    """Writes one further file, waits until it is on the disk, and gives its manifest entry."""
    if isinstance(content, Path):
        content = content.read_bytes()
    if isinstance(content, bytes):
        write_file(path, content)
        return file_record([content])
    header = encode_header(((n, t.dtype, tuple(t.shape)) for n, t in content.items()), {})
    write_file(path, header, *(raw_bytes(t.detach().cpu()) for t in content.values()))
    return file_record([header, *(raw_bytes(t.detach().cpu()) for t in content.values())])


def _size(content: Content) -> int:
    if isinstance(content, Path):
        return content.stat().st_size
    if isinstance(content, bytes):
        return len(content)
    return sum(tensor.nbytes for tensor in content.values())


def raw_bytes(values: Tensor) -> memoryview:
    """The bytes of a tensor, row-major; shares the memory of a contiguous one."""
    return values.contiguous().view(-1).view(torch.uint8).numpy().data
