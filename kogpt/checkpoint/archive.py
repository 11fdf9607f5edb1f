"""Zip archives of tensors, read as what they are: uncompressed members at known offsets.

`torch.save` and `numpy.savez` write such archives. Two programs may read one archive in two ways
if it lies about itself, so one that is not plain through and through is refused.
"""

import os
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kogpt.errors import InputRefusedError
from kogpt.textfiles import brief

MAX_MEMBERS = 100_000
DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    struct.error,
    UnicodeDecodeError,  # of a name that says it is UTF-8
    OverflowError,  # of a place beyond what files can have
)
END = struct.Struct("<4s16xH")  # signature, ..., length of the comment
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of name and extra field


@dataclass(frozen=True)
class Member:
    """A member of an archive: where its bytes lie in the file."""

    offset: int
    size: int


class Archive:
    """The table of members of an archive, checked.

    Attributes:
        path: the file.
        members: by name.
    """

    def __init__(self, path: Path, allowed: re.Pattern[str]) -> None:
        """Reads the table of a file.

        Args:
            path: the file.
            allowed: what names of members look like.

        Raises:
            InputRefusedError: the file is no archive, or more than a plain one.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
                self._check_frame(infos)
                self.members = self._check_members(infos, allowed, archive.start_dir)
        except DAMAGED as error:
            raise InputRefusedError(f"{path}: damaged or cut short: {error}") from None

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a member.

        Raises:
            InputRefusedError: they are more than `limit`.
        """
        member = self.members[name]
        if member.size > limit:
            raise InputRefusedError(f"{self.path}: {name} is larger than {limit} bytes")
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), member.size, member.offset)

    def _check_frame(self, infos: list[zipfile.ZipInfo]) -> None:
        if not infos or len(infos) > MAX_MEMBERS:
            raise InputRefusedError(f"{self.path}: an archive of {len(infos)} members")
        with self.path.open("rb") as file:
            file.seek(-END.size, os.SEEK_END)
            signature, comment = END.unpack(file.read(END.size))
        if signature != b"PK\x05\x06" or comment or infos[0].header_offset != 0:
            raise InputRefusedError(f"{self.path}: something lies before or behind the archive")

    def _check_members(
        self, infos: list[zipfile.ZipInfo], allowed: re.Pattern[str], limit: int
    ) -> dict[str, Member]:
        members: dict[str, Member] = {}
        end = 0
        with self.path.open("rb") as file:
            for info in infos:
                member = self._member(file.fileno(), info)
                if problem := _problem(info, allowed):
                    raise InputRefusedError(f"{self.path}: {brief(info.filename)} {problem}")
                if info.header_offset < end or member.offset + member.size > limit:
                    raise InputRefusedError(f"{self.path}: {brief(info.filename)} overlaps another")
                if info.filename in members:
                    raise InputRefusedError(f"{self.path}: {brief(info.filename)} appears twice")
                end = member.offset + member.size
                members[info.filename] = member
        return members

    def _member(self, descriptor: int, info: zipfile.ZipInfo) -> Member:
        local = os.pread(descriptor, LOCAL_HEADER.size, info.header_offset)
        signature, name, extra = LOCAL_HEADER.unpack(local)
        start = info.header_offset + LOCAL_HEADER.size
        stored_name = os.pread(descriptor, name, start)
        if signature != b"PK\x03\x04" or stored_name != info.orig_filename.encode():
            raise InputRefusedError(f"{self.path}: {brief(info.filename)} has a false header")
        return Member(start + name + extra, info.file_size)


def _problem(info: zipfile.ZipInfo, allowed: re.Pattern[str]) -> str | None:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed"
    if info.flag_bits & 0x1:
        return "is encrypted"
    return None if allowed.fullmatch(info.filename) else "is no part of such a file"
