"""Loads a checkpoint folder into the prepared model, tensor by tensor, as it is stored."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kogpt.adapters import Adapter, load_adapters, read_adapters, virtual_ids
from kogpt.adapters.files import updated
from kogpt.adapters.head import put_head
from kogpt.adapters.loading import Folders
from kogpt.box import BOX
from kogpt.checkpoint.dtypes import compute_dtype, parse_dtype
from kogpt.checkpoint.loading import ROOM_TO_RUN, load_model, on_device
from kogpt.checkpoint.reader import CheckpointReader, open_checkpoint
from kogpt.checkpoint.resources import require_memory
from kogpt.checkpoint.sources import LookUp
from kogpt.fast.fusing import common_format, side_by_side
from kogpt.fast.model import (
    Embedding,
    Enter,
    FastBlock,
    FastKoGPT,
    FastTransformer,
    Leave,
    Linear,
    LowRank,
    Norm,
    has_product_kernel,
)
from kogpt.fast.neighbours import FastSequentialBlock, FastTwoNormBlock
from kogpt.kernels import Weight, extension_available
from kogpt.kernels.linear import packs
from kogpt.kernels.packing import pack, row_bytes
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.rotary import RotaryEmbedding
from kogpt.model.source import change
from kogpt.model.variants import GPTNeoX, GPTNeoXConfig, class_of
from kogpt.notes import say

# A matrix of so many bytes stays in its file. It need not be copied, which for billions of weights
# takes seconds, and memory for all of them; but then each matrix of a block is a product of its
# own. Where matrices are packed, it is those of one product that have so many bytes together.
MAPPED = 8 << 20
READERS = 2  # one thread alone copies at half of the speed of memory
PIECE = 16 << 20  # bytes read at once: small enough for memory to be used again and again
PACKED_PIECE = 1 << 20  # the same to be packed: allocators keep larger pieces of each thread


def load_fast(
    path: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
    adapters: Folders = (),
) -> KoGPT:
    """Loads a model prepared for decoding. Where `kogpt/model/` was changed, that is the network to
    run, and this does what `load_model` does.

    On a CPU, large matrices of safetensors files are not read but mapped: their memory is that of
    the system's cache of the file. Those of bfloat16 are packed instead where that makes decoding
    faster: `kogpt.kernels.packing`. Of the embedding, rows are read as they are needed.

    Args:
        path: as for `kogpt.load_model`; a quantised folder stays as it is in memory too.
        dtype: to compute in, and of weights that are not quantised. None takes what is stored; on a
            CPU, float16 weights are then kept, and computed with in float32.
        device: to load to, a number for that GPU; None for the CPU.
        adapters: folder of an adapter, or of several, as for `kogpt.load`. Updates become part of
            weights that are floats; beside integers they stay products of their own.

    Raises:
        InputRefusedError: the checkpoint is damaged, dangerous, or not of this architecture; or an
            adapter is.
        NotEnoughResourcesError: the device has no room for the weights.
        ValueError: `dtype` is none that weights come in.
    """
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda" and device.index is None:  # each thread has its own current device
        device = torch.device("cuda", torch.cuda.current_device())
    with open_checkpoint(BOX if path is None else path) as reader:
        config = reader.require_config()
        if changed := change(class_of(config)):
            say(f"kogpt: {changed} was changed: running the readable network")
            model = load_model(path, dtype, device)
            load_adapters(model, adapters)
            return model
        reader.check(config)
        loader = _Loader(reader, config, dtype, device, read_adapters(adapters, config))
        require_memory(device, loader.nbytes + ROOM_TO_RUN, str(reader.path))
        return loader.model().eval()


class Place(NamedTuple):
    """A matrix in the one that several become."""

    name: str
    rows: slice
    columns: slice


class _Loader:
    """Makes the parts of a prepared network out of the tensors of a checkpoint.

    Matrices that are multiplied in one go come as a grid of their layers' names: rows one under the
    other, whose outputs follow each other, and in a row side by side, whose inputs do.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        config: KoGPTConfig,
        dtype: str | torch.dtype | None,
        device: torch.device,
        adapters: Sequence[Adapter],
    ) -> None:
        self.adapters = adapters
        self.reader, self.config, self.device = reader, config, device
        self.names = frozenset(reader.names)
        self.is_tied = "lm_head.weight" not in self.names
        stored = reader.stored_dtype
        self.dtype = compute_dtype(stored, device) if dtype is None else parse_dtype(dtype)
        # A CPU's kernels widen weights as they read them; PyTorch's products do not.
        keeps = dtype is None and device.type == "cpu" and extension_available(device)
        self.weight_dtype = stored if keeps else self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the model takes."""
        return sum(map(self._size, self.reader.names))

    def _size(self, name: str) -> int:
        shape = self.reader.shape(name)
        if self.reader.is_integer(name):
            return self.reader.stored_bytes(name)
        if len(shape) == 2 and self.may_pack([[name.removesuffix(".weight")]]):
            return shape[0] * row_bytes(shape[1])  # or else it stays in its file
        return math.prod(shape) * self.weight_dtype.itemsize

    def model(self) -> FastKoGPT:
        with ThreadPoolExecutor(READERS) as pool:
            # The largest matrix is first, so that no thread waits for another at the end.
            heads = pool.submit(self.linears, [["transformer.wte" if self.is_tied else "lm_head"]])
            blocks = list(pool.map(self.block, range(self.config.n_layer)))
        (head,) = heads.result()
        network = FastTransformer(
            self.config,
            self.embedding(head),
            blocks,
            ln_f=self.norm("transformer.ln_f"),
            rotary=self.rotary(),
            wpe=self.wpe(),
        )
        model = FastKoGPT(self.config, network, head)
        model.prefix_ids = virtual_ids(self.adapters, self.config)
        for adapter in self.adapters:
            if adapter.head is not None:
                put_head(model, adapter.head)
        return model.requires_grad_(False)

    def embedding(self, head: Linear) -> LookUp:
        """Looks up embeddings: of the tokens, and behind them of virtual ones, (V + n, C)."""
        prompts = [adapter.prompt for adapter in self.adapters if adapter.prompt is not None]
        name = "transformer.wte"
        if not prompts and self.stays(f"{name}.weight"):
            stored = self.reader.stored_rows(f"{name}.weight")
            if stored is not None:
                return stored
        if self.is_tied and not prompts and head.weight.values.is_floating_point():
            return Embedding(head.weight.values)
        wte = self.matrix([[name]], spare=sum(map(len, prompts))).values
        if prompts:
            wte[self.config.vocab_size :] = torch.cat(prompts)
        return Embedding(wte)

    def wpe(self) -> Embedding | None:
        """Looks up embeddings of positions, where they are learned."""
        name = "transformer.wpe.weight"
        return Embedding(self.vector(name)) if name in self.names else None

    def rotary(self) -> RotaryEmbedding:
        """Angles for neighbouring dims; blocks that pair others put these side by side."""
        sizes = self.config.rotary_width, self.config.n_positions
        with self.device:
            if isinstance(self.config, GPTNeoXConfig):
                return RotaryEmbedding(*sizes, base=self.config.rotary_base)
            return RotaryEmbedding(*sizes)

    def block(self, layer: int) -> FastBlock:
        C, F = self.config.n_embd, self.config.inner_dim
        h, attn, mlp = (f"transformer.h.{layer}{part}" for part in ("", ".attn", ".mlp"))
        qkv, fc_in = [[f"{attn}.{name}_proj"] for name in "qkv"], [f"{mlp}.fc_in"]
        out_proj, fc_out = f"{attn}.out_proj", f"{mlp}.fc_out"
        ln_1 = self.norm(f"{h}.ln_1")
        own: dict[str, Any] = {"layer": layer, "head_dim": self.config.head_dim, "norm": ln_1}
        if class_of(self.config) is KoGPT:
            return FastBlock(
                **own,
                enter=Enter(self.linears([*qkv, fc_in]), (C, C, C, F)),
                leave=Leave(self.linears([[out_proj, fc_out]])),
            )
        (inner,) = self.linears([fc_in])
        enter = Enter(self.linears(qkv), (C, C, C))
        own |= {"norm_2": self.norm(f"{h}.ln_2"), "enter": enter, "inner": inner}
        if class_of(self.config) is GPTNeoX:
            leave = Leave(self.linears([[out_proj, fc_out]]))
            return FastTwoNormBlock(**own, leave=leave, approximate="none", order=self.order)
        leave = Leave((*self.linears([[out_proj]]), *self.linears([[fc_out]])))
        return FastSequentialBlock(**own, leave=leave, approximate="tanh", order=None)

    @cached_property
    def order(self) -> Tensor:
        """Dims of a head, those side by side that GPT-NeoX has half of the rotated ones apart."""
        R, D = self.config.rotary_width, self.config.head_dim
        halves = torch.arange(R, device=self.device).view(2, -1)
        return torch.cat((halves.T.flatten(), torch.arange(R, D, device=self.device)))

    def linears(self, grid: Sequence[Sequence[str]]) -> tuple[Linear, ...]:
        """Linear layers, each where it lies in its file; or as one, if one of them cannot."""
        packed = self.packed(grid)
        if packed is not None:
            return (self.linear(packed, grid),)
        names = [name for row in grid for name in row]
        mapped = [self.mapped(name) for name in names]
        weights = [weight for weight in mapped if weight is not None]
        if len(weights) == len(names):
            return tuple(self.linear(w, [[name]]) for w, name in zip(weights, names, strict=True))
        return (self.linear(self.matrix(grid), grid),)

    def linear(self, weight: Weight, grid: Sequence[Sequence[str]]) -> Linear:
        """A layer, with its biases, and with the updates that are not in its weight."""
        is_ready = has_product_kernel(weight, self.dtype)
        return Linear(weight, self.bias(grid), self.low_rank(grid), is_ready)

    def bias(self, grid: Sequence[Sequence[str]]) -> Tensor | None:
        """The bias of the layer that a grid becomes: of those side by side, the sum."""
        total = torch.zeros(self.height(grid), dtype=torch.float32, device="cpu")
        places = [place for place in self.places(grid) if f"{place.name}.bias" in self.names]
        for place in places:
            total[place.rows] += self.reader.read(f"{place.name}.bias")
        return total.to(self.device, self.dtype) if places else None

    def mapped(self, name: str) -> Weight | None:
        """A large matrix where it lies in its file; None where it has to be copied or changed."""
        full = f"{name}.weight"
        if not self.stays(full):
            return None
        if not self.is_integer(name):
            changed = any(name in adapter.updates for adapter in self.adapters)
            if changed or self.reader.dtype(full) != self.weight_dtype:
                return None
        return self.reader.map_weight(full)

    def stays(self, full: str) -> bool:
        """Whether a matrix is so large that it stays in its file if it can."""
        return self.device.type == "cpu" and self.reader.stored_bytes(full) >= MAPPED

    def low_rank(self, grid: Sequence[Sequence[str]]) -> LowRank | None:
        """The updates of integer matrices in a grid as one, each in its rows and columns."""
        places = list(self.places(grid))
        updates = [
            (place, adapter.updates[place.name])
            for adapter in self.adapters
            for place in places
            if place.name in adapter.updates and self.is_integer(place.name)
        ]
        if not updates:
            return None
        last = places[-1]
        like = updates[0][1].A  # float32, on the CPU
        A = like.new_zeros(sum(len(update.A) for _, update in updates), last.columns.stop)
        B, first = like.new_zeros(last.rows.stop, len(A)), 0
        for place, update in updates:
            ranks = slice(first, first + len(update.A))
            A[ranks, place.columns] = update.A
            B[place.rows, ranks] = update.scale * update.B
            first = ranks.stop
        return LowRank(A.to(self.device, self.dtype), B.to(self.device, self.dtype))

    def places(self, grid: Sequence[Sequence[str]]) -> Iterator[Place]:
        """Where each matrix of a grid lies in the whole."""
        top = 0
        for row in grid:
            left, height = 0, self.reader.shape(f"{row[0]}.weight")[0]
            for name in row:
                width = self.reader.shape(f"{name}.weight")[1]
                yield Place(name, slice(top, top + height), slice(left, left + width))
                left += width
            top += height

    def norm(self, name: str) -> Norm:
        weight, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        return Norm(weight, bias, self.config.layer_norm_epsilon)

    def matrix(self, grid: Sequence[Sequence[str]], spare: int = 0) -> Weight:
        """Linear layers as one matrix: rows of the grid one under the other, each side by side.

        There are `spare` rows more below, yet to be filled.
        """
        whole = None
        for rows, part in self.parts(grid, PIECE):
            if whole is None:
                whole = _empty_like(part, self.height(grid) + spare)
            _copy(part, whole.rows(rows))
        assert whole is not None, "no matrix is empty"
        return whole

    def packed(self, grid: Sequence[Sequence[str]]) -> Weight | None:
        """The same in 12 bits a weight; None where that is not possible, or not worth it."""
        if not self.may_pack(grid):
            return None
        nbytes = row_bytes(self.width(grid))
        values = torch.empty(self.height(grid), nbytes, dtype=torch.uint8, device="cpu")
        parts = self.parts(grid, PACKED_PIECE)
        done = all(pack(part.values, values[rows]) for rows, part in parts)
        return Weight(values) if done else None

    def may_pack(self, grid: Sequence[Sequence[str]]) -> bool:
        """Whether the matrix that a grid becomes is packed, if its numbers allow it."""
        names = [name for row in grid for name in row]
        nbytes = sum(self.reader.stored_bytes(f"{name}.weight") for name in names)
        large = self.device.type == "cpu" and nbytes >= MAPPED
        floats = self.weight_dtype == torch.bfloat16 and not any(map(self.is_integer, names))
        return large and floats and packs(self.width(grid))

    def height(self, grid: Sequence[Sequence[str]]) -> int:
        """Outputs of the matrix that a grid becomes."""
        return sum(self.reader.shape(f"{row[0]}.weight")[0] for row in grid)

    def width(self, grid: Sequence[Sequence[str]]) -> int:
        """Its inputs."""
        return sum(self.reader.shape(f"{name}.weight")[1] for name in grid[0])

    def parts(self, grid: Sequence[Sequence[str]], nbytes: int) -> Iterator[tuple[slice, Weight]]:
        """The matrix that a grid becomes, some of its outputs at a time, read in `nbytes`."""
        names = [name for row in grid for name in row]
        format = common_format([self.weight(name, slice(0)) for name in names], self.weight_dtype)
        first = 0
        for row in grid:
            height = self.height([row])
            for rows in self.pieces(row, height, nbytes):
                place = slice(first + rows.start, first + rows.stop)
                yield place, side_by_side([self.weight(name, rows) for name in row], format)
            first += height

    def pieces(self, row: Sequence[str], height: int, nbytes: int) -> Iterator[slice]:
        """Rows to read at once, in so many bytes, of matrices that lie side by side."""
        whole = sum(self.reader.stored_bytes(f"{name}.weight") for name in row)
        step = max(1, nbytes * height // whole)
        return (slice(start, min(start + step, height)) for start in range(0, height, step))

    def weight(self, name: str, rows: slice) -> Weight:
        stored = self.reader.read_weight(f"{name}.weight", rows)
        if stored.scale is None:
            values = updated(stored.values, self.adapters, name, rows)
            return Weight(values.to(self.device, self.weight_dtype))
        return on_device(stored, self.dtype, self.device)

    def is_integer(self, name: str) -> bool:
        return self.reader.is_integer(f"{name}.weight")

    def vector(self, name: str) -> Tensor:
        return self.reader.read(name).to(self.device, self.dtype)


def _empty_like(weight: Weight, outputs: int) -> Weight:
    def empty(part: Tensor) -> Tensor:
        return part.new_empty(outputs, part.size(1))

    return weight.with_values(empty(weight.values), empty)


def _copy(source: Weight, destination: Weight) -> None:
    for new, place in zip(source, destination, strict=True):
        if new is not None and place is not None:
            place.copy_(new)
