"""After kill -9, a full disk or a power cut, the final name is absent or complete."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kogpt.checkpoint import convert, verify
from tests.checkpoint.faults import (
    convert_small,
    quantize_small,
    run,
    save_small,
    write_small_adapter,
)
from tests.checkpoint.tiny import write_released
from tests.scale import scaled
from tests.server import SERVER

SHARDS = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A source, and in a folder for each action what comes of it undisturbed.

    In memory where possible: thousands of syncs wait for no disk, and the order of calls, which
    is what is tested, is the same.
    """
    home = tmp_path_factory.mktemp("home")
    if os.access("/dev/shm", os.W_OK):
        home = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="kogpt-crash-"))
    write_released(home / "src")
    for action in (convert_small, quantize_small, save_small):
        target = home / action.__name__
        target.mkdir()
        (target / "src").symlink_to(home / "src")
        assert run(action, target) == 0
        assert len(list((target / "dst").glob("model-*.safetensors"))) >= SHARDS
    yield home
    shutil.rmtree(home)


def fresh(home: Path, name: str) -> Path:
    root = home / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    (root / "src").symlink_to(home / "src")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def calls_of(action, home: Path) -> list[str]:
    """All calls of an undisturbed run that change the disk."""
    root = fresh(home, "count")
    assert run(action, root, trace=home / "trace") == 0
    return (home / "trace").read_text().split("\n")


def check_absent_or_complete(root: Path, expected: Path) -> None:
    assert set(os.listdir(root)) <= {"src", "dst", ".dst.partial"}
    if (root / "dst").exists():
        assert contents(root / "dst") == contents(expected / "dst")


def check_resumes(action, root: Path, expected: Path) -> None:
    """The same command again: at most one shard redone, identical bytes, no orphans."""
    partial, was_there = root / ".dst.partial", (root / "dst").exists()
    begun = {path.name for path in partial.glob("folder/model-*")}
    done = {path.name[len("done-") : -len(".json")] for path in partial.glob("done-*.json")}
    trace = root.parent / "trace"
    code = run(action, root, trace=trace)
    if action is not save_small:
        assert code == 0 and len(begun - done) <= 1
        opened = {c.rpartition("/")[2] for c in trace.read_text().split("\n") if c[:5] == "open "}
        assert not done & opened
    else:  # a save starts anew, and does not touch one that is complete
        assert code == (3 if was_there else 0)
    assert contents(root / "dst") == contents(expected / "dst")
    assert sorted(os.listdir(root)) == ["dst", "src"]


@pytest.mark.parametrize("action", [convert_small, quantize_small, save_small])
def test_kill_at_every_call_that_changes_the_disk(home, action):
    calls = calls_of(action, home)
    assert len(calls) > 40
    for at in range(1, len(calls) + 1, scaled(2 if action is convert_small else 5, 1)):
        root = fresh(home, "kill")
        assert run(action, root, "kill", at) == -signal.SIGKILL, calls[at - 1]
        check_absent_or_complete(root, home / action.__name__)
        check_resumes(action, root, home / action.__name__)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failing_disk_at_every_write_leaves_nothing_behind(home, number):
    """Calls that only give back space are left out: no disk is too full for them."""
    calls = calls_of(convert_small, home)
    step = scaled(3 if number == errno.ENOSPC else 10, 1)
    for at in range(1, len(calls) + 1, step):
        if calls[at - 1].startswith(("unlink", "rmdir")):
            continue
        root = fresh(home, "full")
        code = run(convert_small, root, number, at)
        if not calls[at - 1].startswith("mkdir"):  # which may fail where the folder exists
            assert code == (1 if number == errno.EIO else 4), calls[at - 1]
        check_absent_or_complete(root, home / "convert_small")
        assert not (root / ".dst.partial").exists(), calls[at - 1]
        check_resumes(convert_small, root, home / "convert_small")


def test_an_interruption_at_every_call_can_be_resumed(home):
    calls = calls_of(convert_small, home)
    for at in range(1, len(calls) + 1, scaled(5, 1)):
        root = fresh(home, "interrupt")
        assert run(convert_small, root, "interrupt", at) in (0, 130)
        check_absent_or_complete(root, home / "convert_small")
        check_resumes(convert_small, root, home / "convert_small")


def test_a_kill_never_leaves_an_adapter_described_as_another(home):
    root = fresh(home, "adapter")
    write_small_adapter(root, alpha=2.0)
    before = contents(root / "dst")
    assert run(write_small_adapter, root, trace=home / "trace") == 0
    after, calls = contents(root / "dst"), (home / "trace").read_text().split("\n")
    assert before.keys() == after.keys() and not before.items() & after.items()
    for at in range(1, len(calls) + 1):
        root = fresh(home, "adapter")
        write_small_adapter(root, alpha=2.0)
        assert run(write_small_adapter, root, "kill", at) == -signal.SIGKILL
        found = {name: data for name, data in contents(root / "dst").items() if name in after}
        whole = found.items() <= before.items() or found.items() <= after.items()
        assert whole or "adapter_config.json" not in found, calls[at - 1]
        assert "adapter_model.safetensors" in found
        write_small_adapter(root)
        assert contents(root / "dst") == after


def test_kill_at_random_times(home):
    chance = random.Random(0)
    start = time.perf_counter()
    assert run(convert_small, fresh(home, "random")) == 0
    usual = time.perf_counter() - start
    for i in range(scaled(10, 200)):
        action = (convert_small, save_small)[i % 2]
        root = fresh(home, "random")
        process = SERVER.Process(target=action, args=(root,))
        process.start()
        time.sleep(chance.uniform(0, usual))
        process.kill()
        process.join()
        check_absent_or_complete(root, home / action.__name__)
        check_resumes(action, root, home / action.__name__)


def test_two_processes_and_one_folder(home):
    for _ in range(scaled(5, 50)):
        root = fresh(home, "race")
        racers = [SERVER.Process(target=convert_small, args=(root,)) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        # The loser was told so (an error), or came late and found the work done.
        assert sorted(racer.exitcode for racer in racers) in ([0, 0], [0, 1])
        assert contents(root / "dst") == contents(home / "convert_small" / "dst")
        assert sorted(os.listdir(root)) == ["dst", "src"]


def test_a_finished_shard_that_has_lost_bytes_is_written_again(home):
    calls = calls_of(convert_small, home)
    last = max(i for i, call in enumerate(calls, 1) if call.startswith("rename"))
    for damage in (lambda path: os.truncate(path, 100), os.unlink):
        root = fresh(home, "lost")
        assert run(convert_small, root, "kill", last) == -signal.SIGKILL
        damage(next((root / ".dst.partial" / "folder").glob("model-00002-*")))
        assert run(convert_small, root) == 0
        assert contents(root / "dst") == contents(home / "convert_small" / "dst")


# A power cut: what was not synced is lost.


class Disk:
    """Replays a trace of calls on two pictures of the files: as seen, and as surely on disk."""

    def __init__(self) -> None:
        self.seen: dict[str, bytearray] = {}
        self.durable: dict[str, bytes] = {}

    def write(self, path: str, offset: int, data: bytes) -> None:
        file = self.seen.setdefault(path, bytearray())
        file.extend(bytes(max(0, offset + len(data) - len(file))))
        file[offset : offset + len(data)] = data

    def sync(self, path: str) -> None:
        if path in self.seen:
            self.durable[path] = bytes(self.seen[path])

    def rename(self, old: str, new: str) -> None:
        for table in (self.seen, self.durable):
            for path in [p for p in table if p == old or p.startswith(f"{old}/")]:
                table[new + path[len(old) :]] = table.pop(path)

    def lost(self, prefix: str) -> list[str]:
        """Files whose name is there but whose bytes are not."""
        return [p for p in self.seen if p.startswith(prefix) and self._is_lost(p)]

    def _is_lost(self, path: str) -> bool:
        return self.durable.get(path) != bytes(self.seen[path])


def recorded(root: Path, log: Path) -> None:
    """A conversion whose writes are logged with their data, in the order they happen."""
    import json
    import threading

    real = {name: getattr(os, name) for name in ("pwrite", "fsync", "fdatasync", "rename")}
    lock, lines = threading.Lock(), []

    def path_of(descriptor):
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def pwrite(descriptor, data, offset):
        with lock:
            count = real["pwrite"](descriptor, data, offset)
            lines.append(["write", path_of(descriptor), offset, bytes(data[:count]).hex()])
        return count

    def fsync(descriptor):
        # Only what was written before the call began is known to be on the disk after it.
        with lock:
            lines.append(["sync", path_of(descriptor)])
            return real["fsync"](descriptor)

    def rename(old, new):
        with lock:
            lines.append(["rename", str(old), str(new)])
            return real["rename"](old, new)

    os.pwrite, os.fsync, os.fdatasync, os.rename = pwrite, fsync, fsync, rename
    convert_small(root)
    log.write_text(json.dumps(lines))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_no_name_is_given_before_its_bytes_are_on_the_disk(home):
    """A power cut after every call: what is named is whole, in the order of syncs and renames."""
    import json

    root = fresh(home, "power")
    process = SERVER.Process(target=recorded, args=(root, home / "log"))
    process.start()
    process.join()
    assert process.exitcode == 0
    disk, renames, folder_synced = Disk(), 0, False
    named: set[str] = set()  # files whose names are on the disk, too
    for line in json.loads((home / "log").read_text()):
        if line[0] == "write":
            disk.write(line[1], line[2], bytes.fromhex(line[3]))
            assert not line[1].startswith(f"{root}/dst")
        elif line[0] == "sync":
            disk.sync(line[1])
            folder_synced = line[1].endswith(".dst.partial/folder")
            named |= {path for path in disk.seen if path.startswith(f"{line[1]}/")}
        else:
            renames += 1
            assert not disk.lost(line[1]), "renamed before it was synced"
            if line[2].endswith("/dst"):
                assert folder_synced, "the folder's names were not synced last before its rename"
            if "/done-" in line[2]:
                shard = line[2].rpartition("/done-")[2].removesuffix(".json")
                assert not disk.lost(f"{root}/.dst.partial/folder/{shard}")
                assert f"{root}/.dst.partial/folder/{shard}" in named
            disk.rename(line[1], line[2])
        assert not disk.lost(f"{root}/dst")
    assert renames == 2 + len(list((root / "dst").glob("model-*")))
    assert {k.rpartition("/")[2]: v for k, v in disk.durable.items() if "/dst/" in k} == contents(
        home / "convert_small" / "dst"
    )


# The same with the real calls of the real command, where strace is at hand.

COMMAND = """
import sys
from pathlib import Path
from tests.checkpoint.faults import convert_small
convert_small(Path(sys.argv[1]))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("call", ["pwrite64", "fsync", "rename"])
def test_kill_at_real_system_calls(home, call):
    points = range(1, 60) if scaled(0, 1) else (2,)
    killed = 0
    for at in points:
        root = fresh(home, "strace")
        inject = f"inject={call}:signal=KILL:when={at}"
        command = ["strace", "-f", "-o", os.devnull, "-e", f"trace={call}", "-e", inject]
        command += [sys.executable, "-c", COMMAND, str(root)]
        code = subprocess.run(command, cwd=Path(__file__).parents[2]).returncode
        check_absent_or_complete(root, home / "convert_small")
        check_resumes(convert_small, root, home / "convert_small")
        if code == 0:
            break
        killed += 1
    assert killed >= (1 if len(points) == 1 else 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk_is_told_before_the_start_or_suffices(home, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    for size in [100_000, 1 << 20, 4 << 20][: scaled(3, 3)]:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("cannot mount")
        try:
            (disk / "src").symlink_to(home / "src")
            code = run(convert_small, disk)
            assert code == (0 if size > 2 << 20 else 4)
            assert sorted(os.listdir(disk)) == (["dst", "src"] if code == 0 else ["src"])
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def test_what_was_resumed_is_verified(home):
    verify(home / "convert_small" / "dst", quiet=True)
    assert convert(home / "src", home / "once more").tensors
