"""Checkpoints that every process writes its own part of, and the whole ones made of them.

PyTorch's `torch.distributed.checkpoint` with `HuggingFaceStorageWriter` would write the same files
(`kogpt.checkpoint.sliced`), moments of an optimizer among them, as they are named tensors like any
other. Its files are used, and not its writer, because that makes the bytes of a process's whole
part in memory beside a copy of it on the CPU, writes under the final name, and gathers errors by
collectives that nobody answers once a process is killed. Here slices of 8 MB pass through memory,
and the folder gets its name from the first process when every other has told that its part is on
the disk. Its reader would do; but ours is that of every command: a folder of slices is a checkpoint
that `kogpt generate --model` and `kogpt convert` open.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from kogpt.checkpoint.layouts import reading_order
from kogpt.checkpoint.names import check_names
from kogpt.checkpoint.resources import require_disk
from kogpt.checkpoint.safetensors_file import encode_header
from kogpt.checkpoint.shards import TensorSpec
from kogpt.checkpoint.sliced import FILE_NAME, metadata
from kogpt.checkpoint.staging import (
    Staging,
    beside,
    fsync_path,
    partial_of,
    put_in_place,
    refuse_existing,
    sweep,
    write_file,
    writing,
)
from kogpt.checkpoint.writer import (
    ROOM_FOR_SMALL_FILES,
    Content,
    Output,
    raw_bytes,
    write_checkpoint,
    write_header,
)
from kogpt.model import KoGPTConfig
from kogpt.parallel.parts import held, is_cut, part_of, whole
from kogpt.parallel.processes import Parallel

Tensors = Mapping[str, Tensor]


def save_slices(
    dst: Path,
    groups: Mapping[str, Tensors],
    files: Mapping[str, bytes],
    parallel: Parallel,
    *,
    license_notice: str = "not stated",
) -> None:
    """Writes tensors that are cut as a folder of slices, complete or not at all.

    All processes call it with the same names. Where one ends before its part is on the disk, the
    folder does not appear, and the others leave within the time that processes wait.

    Args:
        dst: the folder; must not exist (or be empty).
        groups: tensors by name, by the folder below `dst` that they go to ("." for `dst` itself).
        files: further files of `dst` by name.
        parallel: the processes.
        license_notice: of the weights, as noted in every file.

    Raises:
        InputRefusedError: `dst` exists.
        NotEnoughResourcesError: the disk has no room.
    """
    sweep(dst)
    refuse_existing(dst)
    parts = {group: _own(tensors, parallel) for group, tensors in groups.items()}
    nbytes = sum(held(tensor).nbytes for part in parts.values() for tensor in part.values())
    require_disk(dst, parallel.add_up(nbytes) + ROOM_FOR_SMALL_FILES)
    with _folder(dst, parallel) as folder:
        for group, part in parts.items():
            with writing(folder / group):
                (folder / group).mkdir(exist_ok=True)
            _write_slices(folder / group, part, parallel, license_notice)
        parallel.wait()
        if parallel.first:
            with writing(folder):
                for name, content in files.items():
                    write_file(folder / name, content)


@contextlib.contextmanager
def _folder(dst: Path, parallel: Parallel) -> Iterator[Path]:
    """Where all write; it gets its name at the end, by the first process."""
    if not parallel.first:
        parallel.wait()
        yield partial_of(dst) / "folder"
        parallel.wait()
        return
    with Staging(dst) as staging:
        parallel.wait()
        yield staging.folder
        staging.commit()
    parallel.wait()


def _own(tensors: Tensors, parallel: Parallel) -> dict[str, Tensor]:
    """What this process writes its part of: of several copies the first is written."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if _is_first_copy(tensor, parallel) and not part_of(tensor).is_empty
    }


def _is_first_copy(tensor: Tensor, parallel: Parallel) -> bool:
    if not is_cut(tensor):
        return parallel.first
    mesh = tensor.device_mesh
    if "data" not in (mesh.mesh_dim_names or ()) and parallel.data_rank != 0:
        return False
    place = mesh.get_coordinate()
    assert place is not None, "every process is in the grid"
    return all(
        at == 0 or not placement.is_replicate()
        for at, placement in zip(place, tensor.placements, strict=True)
    )


def _write_slices(folder: Path, tensors: Tensors, parallel: Parallel, notice: str) -> None:
    """Writes the file of this process."""
    specs = [
        TensorSpec(name, tensor.dtype, part_of(tensor).shape) for name, tensor in tensors.items()
    ]
    offsets = {name: part_of(tensor).offsets for name, tensor in tensors.items()}
    header = encode_header(
        ((spec.name, spec.dtype, spec.shape) for spec in specs),
        metadata(offsets, parallel.world_size, notice),
    )
    path = folder / FILE_NAME.format(parallel.rank + 1)
    with writing(path):
        with Output(path, len(header)) as output:
            for spec in specs:
                values = held(tensors[spec.name])
                for rows in spec.slices():
                    output.append(raw_bytes(values[rows].cpu()))
            output.sync()
        write_header(path, header)
        fsync_path(folder)


def write_whole(path: Path, tensors: Tensors, parallel: Parallel) -> None:
    """Writes tensors that are cut as one safetensors file, by the first process.

    All processes call it. One tensor at a time is whole in memory. The file is absent, or as
    before, or complete.
    """
    header = encode_header(((n, t.dtype, tuple(t.shape)) for n, t in tensors.items()), {})
    wholes = (whole(tensor.detach()) for tensor in tensors.values())
    if parallel.first:
        with writing(path), beside(path) as temporary, Output(temporary, 0) as output:
            output.append(memoryview(header))
            for values in wholes:
                output.append(raw_bytes(values.cpu()))
            output.sync()
            put_in_place(temporary, path)
    else:
        for _ in wholes:
            pass
    parallel.wait()


def export(
    dst: Path,
    config: KoGPTConfig,
    tensors: Tensors,
    parallel: Parallel,
    *,
    files: Mapping[str, Content] | None = None,
    license_notice: str = "not stated",
    labels: Sequence[str] | None = None,
) -> None:
    """Writes the weights of a model that is cut as an ordinary checkpoint folder.

    All processes call it; the first writes. One tensor at a time is whole in memory.

    Args:
        dst: the folder; must not exist (or be empty).
        config: the shape of the model.
        parallel: the processes.
        tensors, files, license_notice, labels: as for `write_checkpoint`.

    Raises:
        InputRefusedError: wrong names or shapes, NaN or infinity, or `dst` exists.
        NotEnoughResourcesError: the disk has no room.
    """
    check_names({name: tuple(t.shape) for name, t in tensors.items()}, config, str(dst))
    refuse_existing(dst)
    if not parallel.first:
        # In the order in which they are written, and the head of a classifier last.
        for name in dict.fromkeys([*reading_order(config), *tensors]):
            whole(tensors[name].detach())
        return parallel.wait()
    last: tuple[str, Tensor] = ("", Tensor())

    def read(name: str, rows: slice) -> Tensor:
        nonlocal last
        if last[0] != name:
            last = (name, whole(tensors[name].detach()))
        return last[1][rows].cpu()

    write_checkpoint(
        dst,
        config,
        tensors,
        files=files,
        license_notice=license_notice,
        labels=labels,
        read=read,
    )
    parallel.wait()
