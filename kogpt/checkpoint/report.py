"""What the commands about checkpoints tell: for people as text, for programs as a dict."""

from dataclasses import asdict, dataclass
from typing import Any

from kogpt.checkpoint.manifest import shown
from kogpt.checkpoint.resources import human
from kogpt.checkpoint.writer import ROOM_FOR_SMALL_FILES
from kogpt.textfiles import aligned


@dataclass(frozen=True)
class TensorLine:
    """One row of the name table."""

    name: str
    shape: tuple[int, ...]
    stored_dtype: str
    dtype: str
    nbytes: int
    file: str


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, or would do.

    Attributes:
        source: as given.
        destination: as given.
        dry_run: nothing was written.
        already_complete: nothing was written, because an equal run had finished before, as far as
            the manifest and the sizes of files tell.
        config: the `config.json` of the result.
        quantization: how matrices are stored, in words; None for as floats.
        license: the notice written to the result.
        tensors: the name table, in network order.
        ignored: tensors of the source that were passed over: derived buffers, a classifier's head.
        left_out: unknown tensors left behind as allowed.
        copied: tokenizer and other files that were copied.
        overflowed: finite values that float16 cannot hold.
        vanished: values other than zero that became zero, where it is stored in float16.
        memory_needed: bytes of memory that it takes beside the interpreter and torch.
    """

    source: str
    destination: str
    dry_run: bool
    already_complete: bool
    config: dict[str, Any]
    quantization: str | None
    license: str
    tensors: list[TensorLine]
    ignored: list[str]
    left_out: list[str]
    copied: list[str]
    overflowed: int
    vanished: int
    memory_needed: int

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(line.nbytes for line in self.tensors)

    @property
    def disk_needed(self) -> int:
        """Bytes the result takes."""
        return self.nbytes + ROOM_FOR_SMALL_FILES

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `--json` prints it."""
        return {**asdict(self), "nbytes": self.nbytes, "disk_needed": self.disk_needed}

    def __str__(self) -> str:
        return "\n".join([*(self._table() if self.dry_run else []), *self._summary()])

    def _table(self) -> list[str]:
        rows = [
            (
                *(line.name, "x".join(map(str, line.shape)), line.stored_dtype),
                *(f"-> {line.dtype}", human(line.nbytes), line.file),
            )
            for line in self.tensors
        ]
        return aligned(rows, "<>><><")

    def _summary(self) -> list[str]:
        files = len({line.file for line in self.tensors})
        verb = "would write" if self.dry_run else "wrote"
        verb = "already holds" if self.already_complete else verb
        checked = " (by sizes; `kogpt verify` checks contents)" if self.already_complete else ""
        return [
            f"{self.destination}: {verb} {len(self.tensors)} tensors, {human(self.nbytes)}"
            f" in {files} files, from {self.source}{checked}",
            f"disk needed {human(self.disk_needed)}, memory needed {human(self.memory_needed)}",
            f"passed over {len(self.ignored)} tensors by name, left out {len(self.left_out)}"
            f" extra tensors, copied {', '.join(self.copied) or 'no tokenizer files'}",
            *([] if self.quantization is None else [f"quantised: {self.quantization}"]),
            *self._losses(),
            f"licence of the weights: {shown(self.license)}",
        ]

    def _losses(self) -> list[str]:
        if not self.overflowed and not self.vanished:
            return []
        if any(line.dtype == "bfloat16" for line in self.tensors):
            return [f"stored as bfloat16: {self.overflowed} values are too large for float16"]
        return [f"float16: {self.overflowed} values too large, {self.vanished} rounded to zero"]
