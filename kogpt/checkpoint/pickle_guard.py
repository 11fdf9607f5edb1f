"""Reads the description of the tensors in a `torch.save` file without unpickling anything.

A pickle is a program. This module follows that program on paper: it knows the few instructions
and the few names that a file of weights needs, builds plain descriptions where the program would
build objects, and refuses everything else. Nothing is imported, called or allocated on behalf of
the file, so it may say what it likes. What comes out also serves to look at a file's contents
without loading torch storages; contiguous tensors are then read as the bytes they are.

A file of weights is a zip archive with uncompressed members: `NAME/data.pkl`, the program, and
one `NAME/data/KEY` for each storage.
"""

import math
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from kogpt.checkpoint.archive import Archive, Member
from kogpt.checkpoint.safetensors_file import MAX_NAME, MAX_RANK, is_size
from kogpt.errors import InputRefusedError
from kogpt.textfiles import brief

MAX_PICKLE = 4 << 20  # bytes; the released model takes 60 KB

SAVE_WEIGHTS_ALONE = "of a training checkpoint, save the table of weights by itself"

MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.data/serialization_id"
    r"|\.format_version|\.storage_alignment)"
)

STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Storage:
    """A run of values: member `data/KEY` of the archive."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A view into a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def is_contiguous(self) -> bool:
        """Whether its values lie one after the other in the storage."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


@dataclass(frozen=True)
class Global:
    """A name that the program asks to import."""

    name: str


def describe(path: Path) -> tuple[dict[str, StoredTensor], dict[str, int]]:
    """The tensors of a `torch.save` file, by name, and where storages begin in it, by key.

    Raises:
        InputRefusedError: the archive or its program is anything but plain weights.
    """
    _refuse_old_formats(path)
    archive = Archive(path, MEMBER)
    tops = {name.partition("/")[0] for name in archive.members}
    if len(tops) != 1:
        raise InputRefusedError(f"{path}: an archive of {len(tops)} folders")
    top = tops.pop()
    if f"{top}/data.pkl" not in archive.members:
        raise InputRefusedError(f"{path}: data.pkl is missing")
    byteorder = f"{top}/byteorder"
    if byteorder in archive.members and archive.read(byteorder, 16) != b"little":
        raise InputRefusedError(f"{path}: not written on a little-endian machine")
    tensors = Interpreter(str(path)).run(archive.read(f"{top}/data.pkl", MAX_PICKLE))
    starts = {}
    for name, tensor in tensors.items():
        key = tensor.storage.key
        member = archive.members.get(f"{top}/data/{key}")
        starts[key] = _start_of(tensor.storage, member, f"{path}: {name}")
    return tensors, starts


def _refuse_old_formats(path: Path) -> None:
    """Refuses what torch wrote before it wrote zip archives."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"\x80"):
        raise InputRefusedError(
            f"{path}: a bare pickle, as torch.save wrote before version 1.6; save it anew"
        )
    if head[257:262] == b"ustar":
        raise InputRefusedError(f"{path}: a tar archive, as early torch wrote; save it anew")
    if not head.startswith(b"PK"):
        raise InputRefusedError(f"{path}: not a torch.save file")


def _start_of(storage: Storage, member: Member | None, what: str) -> int:
    needed = storage.numel * storage.dtype.itemsize
    if member is None:
        raise InputRefusedError(f"{what}: its storage data/{storage.key} is missing")
    if member.size != needed:
        raise InputRefusedError(
            f"{what}: its storage data/{storage.key} holds {member.size} bytes, not {needed}"
        )
    return member.offset


class Interpreter:
    """Follows a pickle program on paper.

    The stack holds plain values: None, numbers, texts, tuples, dicts, and descriptions; `marks`
    are the heights of the stack that the program marked.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> dict[str, StoredTensor]:
        """The table of tensors that the program would build.

        Raises:
            InputRefusedError: it would do anything else.
        """
        end = -1
        try:
            for opcode, argument, position in pickletools.genops(program):
                end = position or 0
                if opcode.name != "STOP":
                    self._step(opcode.name, argument)
        except InputRefusedError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
            raise InputRefusedError(f"{self.where}: broken pickle: {brief(str(error))}") from None
        if len(self.stack) != 1 or self.marks or end != len(program) - 1:
            self.refuse("it does not end with its result")
        return self._table(self.stack[0])

    def refuse(self, what: str) -> NoReturn:
        # Weights within another table: what is too much is most likely no attack.
        inner = any(map(_begins_with_a_tensor, self.stack[1:]))
        advice = f"; {SAVE_WEIGHTS_ALONE}" if inner else ""
        raise InputRefusedError(f"{self.where}: unsafe pickle: {what}{advice}")

    def _table(self, value: object) -> dict[str, StoredTensor]:
        if not isinstance(value, dict):
            self.refuse(f"its top is no table of tensors but {brief(value)}")
        if tables := [name for name, inner in value.items() if isinstance(inner, dict)]:
            raise InputRefusedError(
                f"{self.where}: {brief(tables[0])} is a table, where a state dict has tensors"
                f" alone: {SAVE_WEIGHTS_ALONE}"
            )
        for name, tensor in value.items():
            if not isinstance(tensor, StoredTensor):
                self.refuse(f"{brief(name)} is no tensor but {brief(tensor)}")
            if not name.isprintable() or len(name) > MAX_NAME:
                self.refuse(f"{brief(name)} is no name for a tensor")
        return value

    def _step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in ARGUMENTS:
            self.stack.append(argument)
        elif name in STEPS:
            STEPS[name](self, argument)
        else:
            self.refuse(f"instruction {name}")

    def protocol(self, version: int) -> None:
        if version != 2:
            raise InputRefusedError(
                f"{self.where}: a pickle of protocol {version}, where only 2 is read: save it anew"
                " with torch.save, without pickle_protocol"
            )

    def mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def pop_to_mark(self) -> list[Any]:
        items = self.stack[self.marks[-1] :]
        del self.stack[self.marks.pop() :]
        return items

    def pop(self, count: int) -> tuple[Any, ...]:
        at = len(self.stack) - count
        if at < (self.marks[-1] if self.marks else 0):
            self.refuse("too few values")
        items = tuple(self.stack[at:])
        del self.stack[at:]
        return items

    def import_global(self, argument: str) -> None:
        full = argument.replace(" ", ".", 1)
        if full not in STORAGES and full not in CALLS:
            self.refuse(f"it imports {brief(full)}")
        self.stack.append(Global(full))

    def reduce(self, _: object) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Global) or function.name not in CALLS:
            self.refuse(f"it calls {brief(function)}")
        self.stack.append(CALLS[function.name](self, *arguments))

    def persistent(self, _: object) -> None:
        (reference,) = self.pop(1)
        kind, storage_type, key, _location, numel = reference
        if kind != "storage" or not isinstance(storage_type, Global):
            self.refuse(f"a reference to {brief(reference)}")
        if not isinstance(key, str) or not key.isdecimal() or not is_size(numel):
            self.refuse(f"a reference to {brief(reference)}")
        self.stack.append(Storage(STORAGES[storage_type.name], key, numel))

    def set_items(self, items: list[Any]) -> None:
        table = self.stack[-1]
        if type(table) is not dict or len(items) % 2:
            self.refuse(f"it sets items of {brief(table)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                self.refuse(f"the key {brief(key)} is no text")
            if key in table:
                self.refuse(f"{brief(key)} appears twice")
            table[key] = value

    def build(self, _: object) -> None:
        """Sets attributes; of an OrderedDict only, where torch keeps version numbers."""
        target, state = self.pop(2)
        if type(target) is not dict or type(state) is not dict or set(state) - {"_metadata"}:
            self.refuse(f"it sets attributes of {brief(target)}")
        self.stack.append(target)

    def ordered_dict(self, *arguments: object) -> dict[str, Any]:
        if arguments:
            self.refuse("an OrderedDict made from other things")
        return {}

    def tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, hooks: Any, *rest: Any
    ) -> StoredTensor:
        sizes = (offset, *shape, *stride)
        if not isinstance(storage, Storage) or not all(map(is_size, sizes)) or hooks or rest:
            self.refuse("a tensor made of other things than a storage and sizes")
        if len(shape) != len(stride) or len(shape) > MAX_RANK:
            self.refuse(f"a tensor of shape {brief(shape)} and strides {brief(stride)}")
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if math.prod(shape) and offset + last >= storage.numel:
            self.refuse(f"a tensor of shape {brief(shape)} beyond its storage")
        return StoredTensor(storage, offset, shape, stride)

    def parameter(self, tensor: Any, _grad: Any, hooks: Any) -> StoredTensor:
        if not isinstance(tensor, StoredTensor) or hooks:
            self.refuse("a parameter made of other things than a tensor")
        return tensor


def _begins_with_a_tensor(value: object) -> bool:
    """Of a table; all of one that lies there a million times would take hours to look through."""
    return isinstance(value, dict) and isinstance(next(iter(value.values()), None), StoredTensor)


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
STEPS: dict[str, Callable[[Interpreter, Any], None]] = {
    "PROTO": Interpreter.protocol,
    "MARK": Interpreter.mark,
    "GLOBAL": Interpreter.import_global,
    "REDUCE": Interpreter.reduce,
    "BINPERSID": Interpreter.persistent,
    "BUILD": Interpreter.build,
    "EMPTY_DICT": lambda self, _: self.stack.append({}),
    "TUPLE": lambda self, _: self.stack.append(tuple(self.pop_to_mark())),
    "TUPLE1": lambda self, _: self.stack.append(self.pop(1)),
    "TUPLE2": lambda self, _: self.stack.append(self.pop(2)),
    "TUPLE3": lambda self, _: self.stack.append(self.pop(3)),
    "SETITEM": lambda self, _: self.set_items(list(self.pop(2))),
    "SETITEMS": lambda self, _: self.set_items(self.pop_to_mark()),
    "BINPUT": lambda self, slot: self.memo.update({slot: self.stack[-1]}),
    "LONG_BINPUT": lambda self, slot: self.memo.update({slot: self.stack[-1]}),
    "BINGET": lambda self, slot: self.stack.append(self.memo[slot]),
    "LONG_BINGET": lambda self, slot: self.stack.append(self.memo[slot]),
}
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Interpreter.ordered_dict,
    "torch._utils._rebuild_tensor_v2": Interpreter.tensor,
    "torch._utils._rebuild_parameter": Interpreter.parameter,
}
