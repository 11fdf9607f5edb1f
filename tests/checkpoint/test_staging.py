"""What is left of unfinished work, and who may go on with it."""

import errno
import fcntl
import os

import pytest

from kogpt.checkpoint import resources, write_checkpoint, writer
from kogpt.checkpoint.staging import (
    Staging,
    _lock,
    beside,
    put_in_place,
    refuse_existing,
    refuse_strangers,
    sweep,
    write_file,
    writing,
)
from kogpt.errors import InputRefusedError, NotEnoughResourcesError
from tests.checkpoint.tiny import CONFIG, tiny_state


@pytest.mark.parametrize(("plan", "kept"), [({"shards": 2}, True), ({"shards": 3}, False)])
def test_a_rest_is_resumed_by_the_same_work_alone(plan, kept, tmp_path):
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "dst", {"shards": 2}) as staging:
        (staging.folder / "part").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "dst", plan) as staging:
        assert (staging.folder / "part").exists() is kept
        raise KeyboardInterrupt


def test_work_without_a_plan_leaves_nothing_to_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "dst") as staging:
        (staging.folder / "part").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_the_room_of_a_container_counts_its_cache_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "Path", lambda _: tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 100\nfile 500\nkernel 7\n")
    assert resources._cgroup_room() == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert resources._cgroup_room() == 1 << 62


def test_what_the_system_writes_in_parts_is_written_whole(tmp_path, monkeypatch):
    """Linux takes 2 GB at a time at most."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:7], at))
    write_file(tmp_path / "file", b"x" * 100, b"y" * 50)
    assert (tmp_path / "file").read_bytes() == b"x" * 100 + b"y" * 50


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_file_that_has_no_room_is_told_as_such(tmp_path, number):
    told = pytest.raises(NotEnoughResourcesError, match="file: cannot be written")
    with told, writing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_a_name_is_on_the_disk_before_anything_else_is_done(tmp_path, monkeypatch):
    """Of a file that was put in place, and of a folder that was committed."""
    synced, real = [], os.fsync

    def fsync(file):
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "file.tmp").write_text("whole")
    put_in_place(tmp_path / "file.tmp", tmp_path / "file")
    assert synced == [str(tmp_path)]
    with Staging(tmp_path / "dst") as staging:
        synced.clear()
        staging.commit()
    assert synced[-1] == str(tmp_path)


def test_links_are_neither_followed_nor_written_over(tmp_path):
    (tmp_path / "dst").symlink_to("nowhere")
    with pytest.raises(InputRefusedError, match="exists already"):
        refuse_existing(tmp_path / "dst")
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "folder").symlink_to(tmp_path)
    with pytest.raises(InputRefusedError):
        refuse_strangers(tmp_path / "partial")
    (tmp_path / "link").symlink_to(tmp_path / "partial")
    with pytest.raises(OSError):
        _lock(tmp_path / "link")


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_name_that_is_taken_meanwhile_is_refused(tmp_path, is_folder):
    dst = tmp_path / "dst"
    with pytest.raises(InputRefusedError, match="exists already"), Staging(dst) as staging:
        (staging.folder / "part").write_text("whole")
        (dst / "theirs").mkdir(parents=True) if is_folder else dst.write_text("theirs")
        staging.commit()
    assert list(tmp_path.iterdir()) == [dst]
    assert [path.name for path in dst.iterdir()] == ["theirs"] if is_folder else dst.is_file()


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """By the process that held it, which has finished."""
    real, folder, calls = fcntl.flock, tmp_path / "folder", []

    def flock(descriptor, how):
        real(descriptor, how)
        calls.append(descriptor)
        if len(calls) == 1:
            folder.rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = _lock(folder)
    assert len(calls) == 2 and os.path.samestat(os.fstat(lock), folder.stat())
    os.close(lock)


def test_what_an_interruption_keeps_is_told(tmp_path, capsys):
    for plan, told in (({}, f"is kept in {tmp_path}/.dst.partial; the same"), (None, "")):
        with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "dst", plan):
            raise KeyboardInterrupt
        assert told in capsys.readouterr().err and (tmp_path / ".dst.partial").exists() == bool(
            told
        )
    with pytest.raises(ValueError), Staging(tmp_path / "dst", {}):
        raise ValueError
    assert capsys.readouterr().err == ""


def test_a_name_that_leaves_no_room_for_a_temporary_one_is_refused(tmp_path):
    Staging(tmp_path / ("가" * 82)).__enter__().__exit__(None)
    with pytest.raises(InputRefusedError, match="its name is 3 bytes too long$"):
        Staging(tmp_path / ("가" * 83))


def test_work_that_can_be_resumed_is_not_swept_away(tmp_path):
    unfinished = tmp_path / ".dst.partial" / "folder"
    unfinished.mkdir(parents=True)
    (tmp_path / "dst").mkdir()
    sweep(tmp_path / "dst")
    assert unfinished.exists()
    unfinished.rmdir()
    sweep(tmp_path / "dst")
    assert not unfinished.parent.exists()


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "free_disk", lambda *_: 0)
    with pytest.raises(NotEnoughResourcesError):
        write_checkpoint(tmp_path / "dst", CONFIG, tiny_state())
    assert not list(tmp_path.iterdir())


def test_what_the_disk_refuses_in_the_background_is_told_at_the_end(tmp_path, monkeypatch):
    """The system tells of it once, to whoever syncs first."""
    real, told = os.fsync, []

    def fsync(file):
        if not told:
            told.append(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(writer, "FLUSH", 4)
    with writer.Output(tmp_path / "file", 0) as output:
        output.append(memoryview(b"12345"))
        with pytest.raises(OSError, match="Input/output error"):
            output.sync()


def test_a_file_that_could_not_be_written_leaves_nothing_beside(tmp_path):
    with pytest.raises(KeyError), beside(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())
