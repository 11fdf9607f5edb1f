"""Released layouts of the neighbours: read under our names, and written as they were.

A table goes from our layers to theirs, in network order; what follows a layer's name, `weight` or
`bias`, is the same in both. Both ways use the one table. Sources: transformers' `gpt2` and
`gpt_neox`.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kogpt.checkpoint.dtypes import check_float
from kogpt.checkpoint.names import expand, missing
from kogpt.checkpoint.shards import TensorSpec
from kogpt.checkpoint.sources import LookUp, Source, map_tensor, stored_rows
from kogpt.errors import InputRefusedError
from kogpt.model import variants
from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import KoGPT


@dataclass(frozen=True)
class Row:
    """Where a layer of ours is in theirs.

    Attributes:
        theirs: name of the layer.
        transposed: whether matrices are (inputs, outputs), as in GPT-2's Conv1D.
        third: which third of the outputs it is: queries, keys or values; None for all.
        by_head: whether each head has its own thirds, or the layer has them.
        twin: another name, under which the same tensor may lie once more.
    """

    theirs: str
    transposed: bool = False
    third: int | None = None
    by_head: bool = False
    twin: str | None = None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """That of the tensor as it is stored."""
        outputs = ours[0] * (1 if self.third is None else 3)
        shape = (outputs, *ours[1:])
        return shape[::-1] if self.transposed else shape

    def places(self, rows: range, outputs: int, head_dim: int) -> Tensor:
        """Which of the stored outputs are these rows of our `outputs`."""
        places = torch.arange(rows.start, rows.stop, device="cpu")
        if self.third is None:
            return places
        size = head_dim if self.by_head else outputs  # of what is cut into thirds, a third
        return (places // size * 3 + self.third) * size + places % size


def _conv1d(theirs: str, third: int | None = None) -> Row:
    return Row(theirs, transposed=True, third=third)


@dataclass(frozen=True)
class Layout:
    """A released layout.

    Attributes:
        model_class: of the models that are released so.
        outer: rows of the layers outside of blocks.
        blocks: what the names of the blocks' layers begin with, before the index.
        block: rows of the layers of a block.
        variants: what names begin with -> what they begin with in other versions of the layout.
    """

    model_class: type[KoGPT]
    outer: Mapping[str, Row]
    blocks: str
    block: Mapping[str, Row]
    variants: Mapping[str, str]

    @property
    def twins(self) -> set[str]:
        """Names under which a tensor may lie once more."""
        return {f"{row.twin}.weight" for row in self.outer.values() if row.twin is not None}

    def find(self, name: str) -> tuple[Row, str]:
        """The row of a tensor of ours, and the name of the tensor that it lies in."""
        layer, _, leaf = name.rpartition(".")
        if not layer.startswith("transformer.h."):
            row = self.outer.get(layer) or Row(layer)
            return row, f"{row.theirs}.{leaf}"
        index, _, layer = layer.removeprefix("transformer.h.").partition(".")
        row = self.block[layer]
        return row, f"{self.blocks}.{index}.{row.theirs}.{leaf}"

    def names(self, name: str) -> list[str]:
        """The name, and those that it has in other versions of the layout."""
        others = [
            other + name.removeprefix(beginning)
            for beginning, other in self.variants.items()
            if name.startswith(beginning)
        ]
        return [name, *others]

    def version(self, name: str, there: Collection[str]) -> str:
        """The name, or the one that it has in other versions of the layout, if that is there."""
        return next((each for each in self.names(name) if each in there), name)


GPT2 = Layout(
    model_class=variants.GPT2,
    outer={
        "transformer.wte": Row("transformer.wte", twin="lm_head"),
        "transformer.wpe": Row("transformer.wpe"),
        "transformer.ln_f": Row("transformer.ln_f"),
    },
    blocks="transformer.h",
    block={
        "ln_1": Row("ln_1"),
        "attn.q_proj": _conv1d("attn.c_attn", third=0),
        "attn.k_proj": _conv1d("attn.c_attn", third=1),
        "attn.v_proj": _conv1d("attn.c_attn", third=2),
        "attn.out_proj": _conv1d("attn.c_proj"),
        "mlp.fc_in": _conv1d("mlp.c_fc"),
        "mlp.fc_out": _conv1d("mlp.c_proj"),
        "ln_2": Row("ln_2"),
    },
    variants={"transformer.": ""},  # the network without its head has no prefix
)

GPT_NEOX = Layout(
    model_class=variants.GPTNeoX,
    outer={
        "transformer.wte": Row("gpt_neox.embed_in"),
        "transformer.ln_f": Row("gpt_neox.final_layer_norm"),
        "lm_head": Row("embed_out"),
    },
    blocks="gpt_neox.layers",
    block={
        "ln_1": Row("input_layernorm"),
        "attn.q_proj": Row("attention.query_key_value", third=0, by_head=True),
        "attn.k_proj": Row("attention.query_key_value", third=1, by_head=True),
        "attn.v_proj": Row("attention.query_key_value", third=2, by_head=True),
        "attn.out_proj": Row("attention.dense"),
        "mlp.fc_in": Row("mlp.dense_h_to_4h"),
        "mlp.fc_out": Row("mlp.dense_4h_to_h"),
        "ln_2": Row("post_attention_layernorm"),
    },
    variants={"embed_out.": "lm_head."},  # from transformers 5 on
)

# By the model_type of the config.
LAYOUTS: Mapping[str, Layout] = {
    layout.model_class.config_class.released_type: layout for layout in (GPT2, GPT_NEOX)
}


def layout_of(config: KoGPTConfig, model_class: type[KoGPT] | None = None) -> Layout | None:
    """The layout that a model is written in; None for our names.

    These are the released ones of KoGPT, and those of any class of one's own, which others would
    take for what it was made from.

    Args:
        config: the shape of the model.
        model_class: of the model; None for the one that belongs to the config.
    """
    layout = LAYOUTS.get(config.released_type)
    if layout is None or config.model_type != layout.model_class.config_class.model_type:
        return None
    return layout if model_class in (None, layout.model_class) else None


def reading_order(config: KoGPTConfig) -> list[str]:
    """Names of our tensors in the order in which they are read to be written."""
    layout, shapes = layout_of(config), expand(config)
    if layout is None:
        return list(shapes)
    ordered: dict[str, list[str]] = {}
    for name in shapes:
        ordered.setdefault(layout.find(name)[1], []).append(name)
    return [name for names in ordered.values() for name in names]


class ReleasedTensors:
    """The tensors of a checkpoint in a released layout, under our names.

    Attributes:
        path: the checkpoint.
        tensors: those of the model, by our names.
        parts: names of all tensors that they lie in.
    """

    def __init__(
        self, path: Path, owner: Mapping[str, Source], config: KoGPTConfig, layout: Layout
    ) -> None:
        """Finds the tensors and holds them against the config; reads sizes alone.

        Args:
            path: the checkpoint, for messages.
            owner: of each tensor stored.
            config: the shape of the model.
            layout: in which they are stored.

        Raises:
            InputRefusedError: one is missing, misshapen or no float; the message has its stored
                name.
        """
        self.path, self._owner, self._head_dim = path, owner, config.head_dim
        self.tensors: dict[str, TensorSpec] = {}
        self._rows: dict[str, tuple[Row, str]] = {}
        self._twins: dict[str, str] = {}
        for name, shape in expand(config, layout.model_class).items():
            row, theirs = layout.find(name)
            theirs = self._find(layout.names(theirs))
            self._rows[name] = row, theirs
            self.tensors[name] = TensorSpec(name, self._hold(theirs, row.shape(shape)), shape)
            if row.twin is not None and (twin := f"{row.twin}.weight") in owner:
                self._hold(twin, shape)
                self._twins[name] = twin
        self.parts = {theirs for _, theirs in self._rows.values()} | {*self._twins.values()}
        self._kept = threading.local()  # each thread's last tensor that was read whole

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Rows of a tensor of ours.

        Raises:
            InputRefusedError: a tensor that may be stored twice is so, and differs.
        """
        (row, theirs), outputs = self._rows[name], self.tensors[name].shape[0]
        places = row.places(range(*rows.indices(outputs)), outputs, self._head_dim)
        if row.transposed and len(self.tensors[name].shape) > 1:
            return self._whole(theirs)[:, places].T.contiguous()
        first, stop = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        values = self._owner[theirs].read(theirs, slice(first, stop))[places - first]
        if name in self._twins:
            self._compare(theirs, self._twins[name], rows, values)
        return values

    def map(self, name: str) -> Tensor | None:
        """A tensor of ours where it lies in its file; None where it does not lie there as it is."""
        theirs = self._alike(name)
        return None if theirs is None else map_tensor(self._owner[theirs], theirs)

    def rows(self, name: str) -> LookUp | None:
        """Looks up rows of such a tensor in its file; None likewise."""
        theirs = self._alike(name)
        return None if theirs is None else stored_rows(self._owner[theirs], theirs)

    def _alike(self, name: str) -> str | None:
        """The stored tensor that one of ours is, element by element, and that lies there once."""
        row, theirs = self._rows[name]
        is_part = row.transposed or row.third is not None
        return None if is_part or name in self._twins else theirs

    def stored_name(self, name: str) -> str:
        """The name of the tensor that one of ours lies in."""
        return self._rows[name][1]

    def _find(self, names: list[str]) -> str:
        for name in names:
            if name in self._owner:
                return name
        raise InputRefusedError(f"{self.path}: {missing(names, self._owner)}")

    def _hold(self, name: str, shape: tuple[int, ...]) -> torch.dtype:
        found = self._owner[name].tensors[name]
        if found.shape != shape:
            raise InputRefusedError(
                f"{self.path}: {name} has shape {list(found.shape)}, the config asks for"
                f" {list(shape)}"
            )
        check_float(found.dtype, name, str(self._owner[name].path))
        return found.dtype

    def _whole(self, theirs: str) -> Tensor:
        """A tensor of theirs, kept for what else lies in it: its columns cannot be read alone."""
        last: tuple[str, Tensor] | None = getattr(self._kept, "last", None)
        if last is None or last[0] != theirs:
            self._kept.last = last = None  # before the next is read
            self._kept.last = last = theirs, self._owner[theirs].read(theirs)
        return last[1]

    def _compare(self, name: str, twin: str, rows: slice, values: Tensor) -> None:
        other = self._owner[twin].read(twin, rows)
        same = (other == values) | (other.isnan() & values.isnan())  # a NaN is equal to nothing
        if not same.all():
            raise InputRefusedError(
                f"{self.path}: {twin} differs from {name}, whose weights it should share"
            )


class AssembledTensors:
    """The tensors of a checkpoint to be written, put together from ours as they are read.

    Attributes:
        specs: the tensors, in network order.
        source: name of a tensor -> that of ours that lies in it, the first if several do.
    """

    def __init__(
        self,
        specs: Iterable[TensorSpec],
        read: Callable[[str, slice], Tensor],
        config: KoGPTConfig,
        layout: Layout | None,
    ) -> None:
        """Plans the tensors.

        Args:
            specs: of ours.
            read: gives rows of ours.
            config: the shape of the model.
            layout: to be written in; None passes ours on as they are.
        """
        self._read_ours, self._head_dim = read, config.head_dim
        self._parts: dict[str, list[tuple[Row, TensorSpec]]] = {}
        for spec in specs:
            row, theirs = layout.find(spec.name) if layout else (Row(spec.name), spec.name)
            self._parts.setdefault(theirs, []).append((row, spec))
        firsts = {theirs: parts[0] for theirs, parts in self._parts.items()}
        self.specs = [
            TensorSpec(theirs, spec.dtype, row.shape(spec.shape))
            for theirs, (row, spec) in firsts.items()
        ]
        self.source = {theirs: spec.name for theirs, (_, spec) in firsts.items()}
        self._last: tuple[str, Tensor] | None = None

    @property
    def memory(self) -> int:
        """Bytes held at most beside slices: a whole tensor, thrice where it is transposed."""
        return max(
            (
                spec.nbytes * (3 if parts[0][0].transposed else 1)
                for spec, parts in zip(self.specs, self._parts.values(), strict=True)
                if len(parts) > 1 or parts[0][0].transposed
            ),
            default=0,
        )

    def read(self, name: str, rows: slice) -> Tensor:
        """Rows of a tensor."""
        row, spec = self._parts[name][0]
        if len(self._parts[name]) == 1 and not row.transposed:
            return self._read_ours(spec.name, rows)
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next is put together
            self._last = name, self._assemble(self._parts[name])
        return self._last[1][rows]

    def _assemble(self, parts: list[tuple[Row, TensorSpec]]) -> Tensor:
        row, spec = parts[0]
        outputs = spec.shape[0]
        shape = (outputs * (1 if row.third is None else 3), *spec.shape[1:])
        whole = torch.empty(shape, dtype=spec.dtype, device="cpu")
        for part, own in parts:
            for rows in own.slices():
                places = part.places(range(rows.start, rows.stop), outputs, self._head_dim)
                whole[places] = self._read_ours(own.name, rows).to(spec.dtype)
        return whole.T.contiguous() if row.transposed and whole.ndim > 1 else whole
