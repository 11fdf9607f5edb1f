"""Checkpoints of several processes: any number reads them, PyTorch too, and a crash leaves none."""

import errno
import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from kogpt.checkpoint import convert, load_model, open_checkpoint, verify, writer
from kogpt.checkpoint.sliced import SlicedCheckpoint
from kogpt.checkpoint.writer import ROOM_FOR_SMALL_FILES
from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.parallel import Parallel, parts, saving
from kogpt.parallel.loading import load_parallel
from kogpt.parallel.parts import fill, whole
from kogpt.parallel.saving import export, save_slices, write_whole
from kogpt.parallel.sharding import as_forward
from kogpt.training.optimizer import optimizer_tensors
from tests.parallel.launch import begin, finish, run
from tests.parallel.test_steps import cutter, difference, loss_of
from tests.parallel.tiny import CONFIG, GPT2_CONFIG, some_ids, tiny_model, write_tiny
from tests.scale import scaled, some

CONFIG_FILE = {"config.json": json.dumps(CONFIG.to_dict()).encode()}


def save(parallel, source, dst):
    """Saves weights and moments after a step."""
    model = load_parallel(source, parallel, cut=cutter(parallel))
    optimizer = train_a_step(model, parallel)
    groups = {
        ".": dict(model.named_parameters()),
        "optimizer": optimizer_tensors(optimizer, model, 1),
    }
    save_slices(Path(dst), groups, {**CONFIG_FILE, "training.json": b"{}"}, parallel)


def train_a_step(model, parallel):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = as_forward(model, lambda rows: loss_of(model, rows))
    loss(parallel.share(some_ids(4))).backward()
    optimizer.step()
    return optimizer


def restore(parallel, source, checkpoint):
    """Differences of weights and moments from those of one process after the same step."""
    expected = load_model(source)
    wanted = optimizer_tensors(train_a_step(expected, type(parallel)()), expected, 1)
    model = load_parallel(checkpoint, parallel, cut=cutter(parallel))
    slices = SlicedCheckpoint(Path(checkpoint) / "optimizer")
    moments = 0.0
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            moment = f"{name}.{key}"
            found = torch.empty_like(parameter, requires_grad=False)
            fill(found, lambda rows, moment=moment: slices.read(moment, rows))
            error = (whole(found) - wanted[moment]).norm() / wanted[moment].norm()
            moments = max(moments, error.item())
    return [difference(model, expected), moments]


@pytest.mark.parametrize(
    ("saved", "loaded"),
    some([((2, 2), (1, 1)), ((2, 1), (2, 2)), ((4, 2), (2, 1)), ((2, 1), (4, 2))], 2),
)
def test_what_some_processes_save_any_others_load(tmp_path, saved, loaded):
    source, folder = write_tiny(tmp_path / "model"), tmp_path / "step"
    run(saved[0], save, str(source), str(folder), tensor=saved[1])
    assert not list(tmp_path.glob(".step*"))
    for found in run(loaded[0], restore, str(source), str(folder), tensor=loaded[1]):
        # The first step of Adam moves every weight by the rate, whatever the size of its gradient;
        # one of rounding alone has no sure sign.
        assert found[0] < 1e-5
        assert found[1] < 1e-5


def read_by_pytorch(parallel, folder):
    """Reads a folder through torch.distributed.checkpoint into a model cut otherwise."""
    model = load_parallel(Path(folder).parent / "model", parallel, cut=cutter(parallel))
    state = {name: torch.zeros_like(p.detach()) for name, p in model.named_parameters()}
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(folder))
    moments = {
        f"{name}.exp_avg": torch.zeros_like(p.detach()) for name, p in model.named_parameters()
    }
    dcp.load(moments, storage_reader=dcp.HuggingFaceStorageReader(f"{folder}/optimizer"))
    weights, slices = open_checkpoint(folder), SlicedCheckpoint(Path(folder) / "optimizer")
    return [
        all(torch.equal(whole(tensor), weights.read(name)) for name, tensor in state.items()),
        all(torch.equal(whole(tensor), slices.read(name)) for name, tensor in moments.items()),
    ]


def test_pytorch_reads_the_folder_of_two_processes(tmp_path):
    source, folder = write_tiny(tmp_path / "model"), tmp_path / "step"
    run(2, save, str(source), str(folder), tensor=1)
    assert run(2, read_by_pytorch, str(folder), tensor=2) == [[True, True]] * 2


def write_by_pytorch(parallel, source, folder):
    model = load_parallel(source, parallel, cut=cutter(parallel))
    state = {name: p.detach() for name, p in model.named_parameters()}
    writer = dcp.HuggingFaceStorageWriter(folder, save_distributed=True)
    dcp.save(state, storage_writer=writer)


@pytest.mark.parametrize(("processes", "tensor"), some([(2, 1), (4, 2)], 1))
def test_a_folder_that_pytorch_writes_is_a_checkpoint(tmp_path, processes, tensor):
    source, folder = write_tiny(tmp_path / "model"), tmp_path / "written"
    run(processes, write_by_pytorch, str(source), str(folder), tensor=tensor)
    (folder / "config.json").write_bytes(CONFIG_FILE["config.json"])
    model, expected = load_model(folder), tiny_model()
    assert difference(model, expected) == 0.0


def test_a_folder_of_slices_is_converted_to_an_ordinary_one(tmp_path):
    source, folder = write_tiny(tmp_path / "model"), tmp_path / "step"
    run(2, save, str(source), str(folder), tensor=2)
    convert(folder, tmp_path / "converted")
    verify(tmp_path / "converted")
    assert difference(load_model(tmp_path / "converted"), load_model(folder)) == 0.0


def export_both(parallel, source, dst):
    model = load_parallel(source, parallel, cut=cutter(parallel))
    export(Path(dst), model.config, dict(model.named_parameters()), parallel)


@pytest.mark.parametrize(
    ("config", "processes", "tensor"), [(CONFIG, 4, 2), (GPT2_CONFIG, 2, 1)], ids=["kogpt", "gpt2"]
)
def test_a_sharded_model_is_exported_tensor_by_tensor_to_the_same_files(
    tmp_path, config, processes, tensor
):
    source, folder = write_tiny(tmp_path / "model", config), tmp_path / "exported"
    run(processes, export_both, str(source), str(folder), tensor=tensor)
    for path in source.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def save_again_and_again(parallel, source, out):
    """Saves step after step, until it is killed."""
    model = load_parallel(source, parallel, cut=cutter(parallel))
    tensors = dict(model.named_parameters())
    big = {f"{name}.{i}": p for name, p in tensors.items() for i in range(40)}
    for number in range(10_000):
        groups = {".": tensors, "optimizer": big}
        save_slices(Path(out) / f"step-{number:08}", groups, CONFIG_FILE, parallel)


@pytest.mark.parametrize("attempt", range(scaled(1, 10)))
def test_a_process_killed_while_saving_ends_the_other_and_leaves_the_last_checkpoint(
    tmp_path, attempt
):
    source, out = write_tiny(tmp_path / "model"), tmp_path / "run"
    out.mkdir()
    chance = random.Random(attempt)
    started = begin(2, save_again_and_again, str(source), str(out), seconds=20)
    while not (out / "step-00000001").exists():
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    partial = out / ".step-00000002.partial"
    while not partial.exists() and not (out / "step-00000003").exists():
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.02))
    began = time.monotonic()
    started[attempt % 2].kill()
    ended = finish(started)
    assert time.monotonic() - began < 30
    code, _, errors = ended[1 - attempt % 2]
    (line,) = errors.splitlines()
    assert code == 1
    assert line.endswith("another process has ended, or kept silent for 20 s")
    for folder in out.glob("step-*"):
        assert difference(load_model(folder), tiny_model()) == 0.0
        assert len(SlicedCheckpoint(folder / "optimizer").tensors) == 40 * 25


def hang(parallel, folder):
    if parallel.rank == 1:
        time.sleep(600)
    save_slices(Path(folder), {".": dict(tiny_model().named_parameters())}, CONFIG_FILE, parallel)


def test_a_process_that_hangs_ends_the_other_within_the_time_that_processes_wait(tmp_path):
    started = begin(2, hang, str(tmp_path / "step"), seconds=5)
    code, _, errors = finish(started[:1], timeout=60)[0]
    finish(started[1:] if started[1].kill() is None else [])
    assert code == 1
    (line,) = errors.splitlines()
    assert line.endswith("another process has ended, or kept silent for 5 s")
    assert not (tmp_path / "step").exists()


def fail(parallel, folder):
    tensors = {".": dict(tiny_model().named_parameters())}
    if parallel.rank == 1:
        raise InputRefusedError("no")
    save_slices(Path(folder), tensors, CONFIG_FILE, parallel)


def test_a_process_that_fails_ends_the_other_and_nothing_is_left(tmp_path):
    (code, _, line), (second, _, reason) = finish(begin(2, fail, str(tmp_path / "step")))
    assert (code, second) == (1, 3)
    assert reason == "kogpt (process 1): no\n"
    assert line.endswith("another process has ended, or kept silent for 60 s\n")
    assert list(tmp_path.iterdir()) == []


def sliced(folder, files):
    """A folder of slices of a tensor x."""
    from kogpt.checkpoint.safetensors_file import encode_header
    from kogpt.checkpoint.sliced import FILE_NAME, metadata

    folder.mkdir()
    for number, (offsets, values, count) in enumerate(files, start=1):
        texts = metadata({"x": offsets}, count, "none")
        header = encode_header([("x", values.dtype, tuple(values.shape))], texts)
        (folder / FILE_NAME.format(number)).write_bytes(header + values.numpy().tobytes())
    return folder


ROWS = torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([((0, 0), ROWS[:2], 2)], "holds 1 files of slices of '2'"),
        ([((0, 0), ROWS[:2], 2), ((1, 0), ROWS[1:], 2)], "slices of x overlap or leave gaps"),
        ([((0, 0), ROWS[:2], 2), ((3, 0), ROWS[3:], 2)], "slices of x overlap or leave gaps"),
        # As many numbers as there should be, some of them twice.
        (
            [((0, 0), ROWS[:1], 3), ((0, 0), ROWS[:1], 3), ((2, 0), ROWS[2:], 3)],
            "slices of x overlap or leave gaps",
        ),
        ([((0, 0), ROWS[:2], 2), ((2, 0), ROWS[2:].int(), 2)], "slices of x differ in kind"),
        ([((0,), ROWS, 1)], "bad DCP_SHARDING_INFO: .*x has 1 offsets and 2 dimensions"),
        ([((0, -1), ROWS, 1)], "bad DCP_SHARDING_INFO: .*x begins at"),
        ([((0, True), ROWS, 1)], "bad DCP_SHARDING_INFO: .*x begins at"),
        ([((1 << 70, 0), ROWS, 1)], "bad DCP_SHARDING_INFO: .*x begins at"),
        ([((1, 0), ROWS, 1)], "slices of x overlap or leave gaps"),
    ],
)
def test_slices_that_do_not_make_a_tensor_are_refused(tmp_path, files, message):
    with pytest.raises(InputRefusedError, match=message):
        SlicedCheckpoint(sliced(tmp_path / "folder", files))


@pytest.mark.parametrize("text", ["{", json.dumps(GPT2_CONFIG.to_released_dict())])
def test_slices_that_are_refused_after_a_look_at_the_config_are_closed(tmp_path, recwarn, text):
    folder = sliced(tmp_path / "folder", [((0, 0), ROWS, 1)])
    (folder / "config.json").write_text(text)
    with pytest.raises(InputRefusedError, match=r"not JSON|wte\.weight is missing"):
        open_checkpoint(folder)
    assert not [each for each in recwarn if each.category is ResourceWarning]


def test_rows_are_read_across_slices(tmp_path):
    boxes = [((0, 0), ROWS[:3, :1]), ((0, 1), ROWS[:1, 1:]), ((1, 1), ROWS[1:, 1:])]
    boxes += [((3, 0), ROWS[3:, :1])]
    folder = sliced(tmp_path / "folder", [(at, x.contiguous(), 4) for at, x in boxes])
    slices = SlicedCheckpoint(folder)
    for start in range(5):
        for stop in range(start, 5):
            assert torch.equal(slices.read("x", slice(start, stop)), ROWS[start:stop])
    slices.close()


def test_a_tensor_is_filled_some_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(parts, "SLICE", 100)
    values, found, asked = torch.arange(35.0).view(7, 5), torch.zeros(7, 5), []

    def read(rows):
        asked.append((rows.start, rows.stop))
        return values[rows]

    fill(found, read)
    assert torch.equal(found, values)
    assert asked == [(0, 5), (5, 7)]


def disk_asked(parallel, source, folder):
    asked = []
    saving.require_disk = lambda _, needed: asked.append(needed - ROOM_FOR_SMALL_FILES)
    model = load_parallel(source, parallel, cut=cutter(parallel))
    save_slices(Path(folder), {".": dict(model.named_parameters())}, CONFIG_FILE, parallel)
    return asked


def test_room_on_the_disk_is_asked_for_what_all_processes_write(tmp_path):
    source = write_tiny(tmp_path / "model")
    asked = run(2, disk_asked, str(source), str(tmp_path / "step"), tensor=2)
    assert asked == [[4 * CONFIG.num_parameters]] * 2


def share_a_row(parallel, folder):
    """A tensor of fewer rows than processes: one of them holds nothing."""
    from torch.distributed.tensor import Shard, distribute_tensor

    row = torch.arange(3.0).view(1, 3)
    x = distribute_tensor(row, parallel.mesh["data"], [Shard(0)])
    save_slices(Path(folder), {".": {"x": x}}, CONFIG_FILE, parallel)
    found, slices = torch.zeros_like(x), SlicedCheckpoint(Path(folder))
    fill(found, lambda rows: slices.read("x", rows))
    return torch.equal(whole(found), row)


def test_a_process_may_hold_nothing_of_a_tensor(tmp_path):
    assert run(2, share_a_row, str(tmp_path / "step")) == [True, True]


def save_late(parallel, folder):
    """The second process takes its time."""
    if not parallel.first:
        write = saving._write_slices
        saving._write_slices = lambda *arguments: (time.sleep(0.5), write(*arguments))[1]
    groups = {".": dict(tiny_model().named_parameters())}
    save_slices(Path(folder), groups, CONFIG_FILE, parallel)
    return len(SlicedCheckpoint(Path(folder)).tensors)


def test_a_folder_gets_its_name_when_the_last_part_is_written(tmp_path):
    count = len(dict(tiny_model().named_parameters()))
    assert run(2, save_late, str(tmp_path / "step")) == [count, count]


def noted(monkeypatch):
    """Notes what is brought to the disk, and what gets its name, in order."""
    done, fsync, rename = [], os.fsync, os.rename

    def note_fsync(file):
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{file}")).name))
        fsync(file)

    def note_rename(path, new):
        done.append(("rename", Path(path).name))
        rename(path, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    return done


@pytest.mark.skipif(sys.platform != "linux", reason="files are told by Linux's /proc")
def test_a_whole_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    path = tmp_path / "moments.safetensors"
    path.write_bytes(b"of the step before")
    done = noted(monkeypatch)
    write_whole(path, {"x": ROWS}, Parallel())
    temporary = "moments.safetensors.tmp"
    assert done == [("fsync", temporary), ("rename", temporary), ("fsync", tmp_path.name)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="files are told by Linux's /proc")
def test_slices_are_on_the_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    done = noted(monkeypatch)
    save_slices(tmp_path / "step", {".": {"x": ROWS}, "optimizer": {"x": ROWS}}, {}, Parallel())
    places = [done.index(("fsync", "optimizer")), done.index(("rename", "folder"))]
    assert places == sorted(places)
    assert sum(name.endswith(".safetensors") for what, name in done if what == "fsync") >= 2


@pytest.mark.skipif(sys.platform != "linux", reason="files are told by Linux's /proc")
def test_a_disk_that_fails_midway_leaves_no_folder(tmp_path, monkeypatch):
    errors, fsync = [OSError(errno.EIO, "Input/output error")], os.fsync

    def fail_once(file):
        if errors and os.readlink(f"/proc/self/fd/{file}").endswith(".safetensors"):
            raise errors.pop()
        fsync(file)

    monkeypatch.setattr(writer, "FLUSH", 1)
    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(KoGPTError, match="cannot be written: Input/output error"):
        save_slices(tmp_path / "step", {".": {"x": ROWS}}, {}, Parallel())
    assert not (tmp_path / "step").exists()


def test_a_row_that_is_more_than_is_in_hand_at_a_time_is_read_alone(monkeypatch):
    monkeypatch.setattr(parts, "SLICE", 1)
    found = torch.zeros_like(ROWS)
    fill(found, ROWS.__getitem__)
    assert found.equal(ROWS)
