"""Pickles and archives with ill intent: refused before torch sees them, harming nothing."""

import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from kogpt.checkpoint import open_checkpoint
from kogpt.checkpoint.pickle_guard import Interpreter, Storage
from kogpt.errors import InputRefusedError
from tests.checkpoint.tiny import released_state, tiny_state, write_config
from tests.scale import scaled

CANARY = "canary-was-here"
EMPTY = b"}"
BIN = "pytorch_model.bin"


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def calling(module: str, name: str, argument: bytes) -> bytes:
    """A program whose result is NAME(argument)."""
    return program(b"c", f"{module}\n{name}\n".encode(), argument, b"\x85R")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


TOUCH = text(f"touch {CANARY}")


def good_members() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(released_state(), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def with_program(data: bytes):
    def write(path):
        members = good_members()
        members[next(name for name in members if name.endswith("data.pkl"))] = data
        write_zip(path, members)

    return write


def with_member(name: str, data: bytes):
    return lambda path: write_zip(path, {**good_members(), name: data})


def with_object(value):
    return lambda path: torch.save({**tiny_state(), "lm_head.bias": value}, path)


def bomb(path):
    """A thousandth of the size that it would grow to."""
    members = good_members()
    top = next(iter(members)).split("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        with archive.open(f"{top}/data/99", "w") as file:
            for _ in range(scaled(4, 64)):
                file.write(bytes(16 << 20))


def duplicate_member(path):
    members = good_members()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        name = next(name for name in members if name.endswith("data.pkl"))
        archive.writestr(name, calling("os", "system", TOUCH))


def patch(find: bytes, replace: bytes, last=False):
    """A good archive with some bytes of its tables changed."""

    def write(path):
        torch.save(released_state(), path)
        data = path.read_bytes()
        at = data.rfind(find) if last else data.find(find)
        path.write_bytes(data[:at] + replace + data[at + len(replace) :])

    return write


def lie_about_size(path):
    """The central directory says a storage is 2^62 bytes, by a zip64 field."""
    members = good_members()
    write_zip(path, members)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    path.write_bytes(bytes(data))


def numel_lie(path):
    """A storage said to hold more than its member does: the shape of CVE-2026-24747."""
    members = good_members()
    name = next(name for name in members if name.endswith("data.pkl"))
    needle = b"M" + struct.pack("<H", 97 * 16)
    assert needle in members[name]
    members[name] = members[name].replace(needle, b"M" + struct.pack("<H", 60000))
    write_zip(path, members)


def longer_member(path):
    """A storage said to hold less than its member does."""
    members = good_members()
    name = next(name for name in members if name.endswith("/data/0"))
    write_zip(path, {**members, name: members[name] + bytes(2)})


def shape_beyond_storage(path, rows=b"\xff"):
    members = good_members()
    name = next(name for name in members if name.endswith("data.pkl"))
    needle = b"Ka" + b"K\x10\x86"  # (97, 16)
    assert needle in members[name]
    members[name] = members[name].replace(needle, b"K" + rows + b"K\x10\x86")
    write_zip(path, members)


def shape_one_row_beyond_storage(path):
    shape_beyond_storage(path, rows=b"b")


def with_attribute(name: str):
    """The table of a good archive, with an attribute set."""

    def write(path):
        members = good_members()
        at = next(name for name in members if name.endswith("data.pkl"))
        assert members[at].endswith(b".")
        members[at] = members[at][:-1] + EMPTY + text(name) + EMPTY + b"sb."
        write_zip(path, members)

    return write


def old_tar(path):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("sys_info")
        data = pickle.dumps(Call(os.system, f"touch {CANARY}"))
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def torchscript(path):
    class Double(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    torch.jit.script(Double()).save(str(path))


def prepended(path):
    torch.save(released_state(), path)
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {CANARY}"))[:40] + path.read_bytes())


def appended_archive(path):
    """A second archive behind the first: readers disagree on which one it is."""
    torch.save(released_state(), path)
    other = path.with_name("other")
    with_program(calling("os", "system", TOUCH))(other)
    path.write_bytes(path.read_bytes() + other.read_bytes())
    other.unlink()


def another_name(path):
    """A member has one name where it lies, another in the table."""
    write_zip(path, good_members())
    path.write_bytes(path.read_bytes().replace(b"archive/data.pkl", b"archive/evil.pkl", 1))


def encrypted(path):
    """The table says that a member is encrypted."""
    write_zip(path, good_members())
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def stored_in_fewer_bytes(path):
    """The table says that a member takes fewer bytes than it has, and that it is stored as is."""
    write_zip(path, good_members())
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 20 : at + 24] = struct.pack("<I", struct.unpack_from("<I", data, at + 24)[0] - 1)
    path.write_bytes(data)


def comment_of_nothing(path):
    """The end tells of a comment that is not there."""
    write_zip(path, good_members())
    path.write_bytes(path.read_bytes()[:-2] + b"\x05\0")


def one_in_another(path):
    """A member that lies within the bytes of the one before."""
    inner, outer = "archive/data/98", "archive/data/99"
    header = struct.pack("<4s5H3I2H", b"PK\x03\x04", *[0] * 5, 0, 4, 4, len(inner), 0)
    held = header + inner.encode() + b"abcd"
    write_zip(path, {**good_members(), outer: held, inner: b"abcd"})
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 42 : at + 46] = struct.pack("<I", data.find(held))
    path.write_bytes(data)


MARK = b"("
HOSTILE = {
    "os.system": with_program(calling("os", "system", TOUCH)),
    "posix.system": with_program(calling("posix", "system", TOUCH)),
    "eval": with_program(calling("builtins", "eval", text(f"open('{CANARY}', 'w')"))),
    "exec in the old module": with_program(calling("__builtin__", "exec", text("1"))),
    "subprocess": with_program(calling("subprocess", "getoutput", TOUCH)),
    "getattr": with_program(calling("builtins", "getattr", text("x"))),
    "torch.hub.load": with_program(calling("torch.hub", "load", text("evil/repo"))),
    "torch.load itself": with_program(calling("torch", "load", text(CANARY))),
    "torch.load by its long name": with_program(calling("torch.serialization", "load", text("x"))),
    "numpy's reader": with_program(calling("numpy", "load", text(CANARY))),
    "a dotted name": with_program(calling("torch", "_utils.os.system", TOUCH)),
    "a name with spaces": with_program(calling("collections OrderedDict", "x", TOUCH)),
    "an allowed name with a wrong argument": with_program(
        calling("collections", "OrderedDict", text("x"))
    ),
    "a storage that is called": with_program(calling("torch", "FloatStorage", b"K\x05")),
    "inst": with_program(program(MARK, TOUCH, b"ios\nsystem\n")),
    "obj": with_program(program(MARK, b"cos\nsystem\n", TOUCH, b"o")),
    "newobj": with_program(program(b"cos\nsystem\n", TOUCH, b"\x85\x81")),
    "stack_global": with_program(b"\x80\x04" + text("os") + text("system") + b"\x93" + b"."),
    "protocol 4": lambda path: torch.save(released_state(), path, pickle_protocol=4),
    "protocol 0": with_program(pickle.dumps({"a": 1}, 0)),
    "an extension code": with_program(program(b"\x82\x01")),
    "build of a global": with_program(
        program(b"ccollections\nOrderedDict\n", EMPTY, text("x"), text("y"), b"s", b"b")
    ),
    "a foreign attribute": with_attribute("__class__"),
    "a persistent id that is text": with_program(program(text("os.system"), b"Q")),
    "an old persistent id": with_program(program(b"Pos.system\n")),
    "a memo that was never set": with_program(program(b"h\x07")),
    "an endless nest of tuples": with_program(program(b"N" + b"\x85" * 100_000)),
    "tuples that double": with_program(
        program(b"N" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(100)))
    ),
    "a table in itself": with_program(program(EMPTY, b"q\x00", text("x"), b"h\x00", b"s")),
    "two programs": with_program(program(EMPTY) + calling("os", "system", TOUCH)),
    "no end": with_program(program(EMPTY)[:-1]),
    "an empty program": with_program(b""),
    "bytes of chance": with_program(bytes(range(256))),
    "a long text": with_program(program(b"X" + struct.pack("<I", 2**31))),
    "an object among tensors": with_object(Call(os.system, f"touch {CANARY}")),
    "a class of numbers": with_object(Call(complex, 1.0, 2.0)),
    "a sparse tensor": with_object(torch.eye(3).to_sparse()),
    "a tensor with hooks": with_program(program(b"ctorch._utils\n_rebuild_tensor\n")),
    "a float among tensors": with_object(3.5),
    "nested tables": with_object(OrderedDict(a=torch.ones(2))),
    "deflated": lambda path: write_zip(path, good_members(), zipfile.ZIP_DEFLATED),
    "bzip2": lambda path: write_zip(path, good_members(), zipfile.ZIP_BZIP2),
    "a deflated bomb": bomb,
    "a member twice": duplicate_member,
    "a member that leaves the archive": with_member("archive/../../../x", b"x"),
    "an absolute member": with_member("/etc/x", b"x"),
    "a second top folder": with_member("other/data.pkl", b"\x80\x02}."),
    "program code": with_member("archive/code/__torch__.py", b"import os"),
    "TorchScript": torchscript,
    "constants": with_member("archive/constants.pkl", calling("os", "system", TOUCH)),
    "big-endian": with_member("archive/byteorder", b"big"),
    "a lie about sizes": lie_about_size,
    "a storage smaller than said": numel_lie,
    "a storage larger than said": longer_member,
    "a shape beyond its storage": shape_beyond_storage,
    "a shape one row beyond its storage": shape_one_row_beyond_storage,
    "something before the archive": prepended,
    "another archive behind": appended_archive,
    "a false local header": patch(b"PK\x03\x04", b"PK\x07\x08"),
    "a member of two names": another_name,
    "an encrypted member": encrypted,
    "a member stored in fewer bytes": stored_in_fewer_bytes,
    "a comment that is not there": comment_of_nothing,
    "a member within another": one_in_another,
    "a torn table": patch(b"PK\x01\x02", b"\0\0\0\0"),
    "a torn end": patch(b"PK\x05\x06", b"\0\0\0\0", last=True),
    "a bare pickle": lambda p: p.write_bytes(pickle.dumps(Call(os.system, f"touch {CANARY}"))),
    "the format before zip": lambda path: torch.save(
        released_state(), path, _use_new_zipfile_serialization=False
    ),
    "a tar of early torch": old_tar,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_without_harm(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / BIN
    HOSTILE[name](path)
    write_config(tmp_path)

    def never(*args, **kwargs):
        raise AssertionError("torch was handed the file")

    monkeypatch.setattr(torch, "load", never)
    tracemalloc.start()
    try:
        with pytest.raises(InputRefusedError) as caught:
            open_checkpoint(tmp_path).__exit__()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert BIN in message and "\n" not in message and len(message) < 500
    assert not (tmp_path / CANARY).exists()
    assert peak < 2 * path.stat().st_size + (8 << 20)


def test_the_canary_would_sing(tmp_path, monkeypatch):
    """The programs above do harm where nothing guards: otherwise this file proves nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(calling("os", "system", TOUCH))
    assert (tmp_path / CANARY).exists()


def test_there_are_as_many_hostile_files_as_asked_for():
    assert len(HOSTILE) >= 30


def test_a_good_file_passes(tmp_path):
    write_config(tmp_path)
    torch.save(released_state(), tmp_path / BIN)
    with open_checkpoint(tmp_path) as reader:
        assert reader.names == list(tiny_state())
        assert torch.equal(reader.read("lm_head.bias"), tiny_state()["lm_head.bias"].half())


def test_version_numbers_that_torch_keeps_as_an_attribute_pass(tmp_path):
    write_config(tmp_path)
    with_attribute("_metadata")(tmp_path / BIN)
    with open_checkpoint(tmp_path) as reader:
        assert reader.names == list(tiny_state())


def trained_state() -> dict:
    """What an optimizer keeps once it has made a step: keys that are numbers, and lists."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"epoch": 3}, "'{}' is a table"),
        ({"optimizer": trained_state(), "epoch": 3}, "the key 0 is no text"),
        ({"buffer_names": [], "global_steps": 3}, "instruction EMPTY_LIST"),
        ({"args": Path("out")}, "it imports 'pathlib"),
    ],
    ids=["a number", "an optimizer", "a list", "an object"],
)
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_training_checkpoint_is_refused_with_advice(tmp_path, key, others, reason):
    first = {"epoch": 3, key: dict(tiny_state())}
    torch.save(first | others, tmp_path / BIN)
    message = f"{reason.format(key)}.*of a training checkpoint, save the table of weights by itself"
    with pytest.raises(InputRefusedError, match=message):
        open_checkpoint(tmp_path / BIN)


def test_advice_is_for_weights_within_another_table_alone(tmp_path):
    torch.save({**tiny_state(), "epoch": [3]}, tmp_path / BIN)
    with pytest.raises(InputRefusedError, match="unsafe pickle: instruction EMPTY_LIST$"):
        open_checkpoint(tmp_path / BIN)


def test_another_protocol_is_told(tmp_path):
    torch.save(tiny_state(), tmp_path / BIN, pickle_protocol=4)
    with pytest.raises(InputRefusedError, match="bin: a pickle of protocol 4.*save it anew with"):
        open_checkpoint(tmp_path / BIN)


def test_a_view_ends_with_its_storage():
    storage = Storage(torch.float32, "0", 4)
    for offset, shape, stride in (
        (0, (4,), (1,)),
        (1, (3,), (1,)),
        (1, (2,), (2,)),
        (9, (0,), (1,)),
    ):
        Interpreter("file").tensor(storage, offset, shape, stride, False, {})
    for offset, shape, stride in ((1, (4,), (1,)), (0, (5,), (1,)), (2, (2,), (2,))):
        with pytest.raises(InputRefusedError, match="beyond its storage"):
            Interpreter("file").tensor(storage, offset, shape, stride, False, {})
