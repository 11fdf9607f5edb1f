"""Loads a checkpoint folder into the prepared model, tensor by tensor, as it is stored."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from kogpt.box import BOX
from kogpt.checkpoint.dtypes import compute_dtype, parse_dtype
from kogpt.checkpoint.loading import ROOM_TO_RUN
from kogpt.checkpoint.reader import CheckpointReader, open_checkpoint
from kogpt.checkpoint.resources import require_memory
from kogpt.fast.fusing import common_format, side_by_side
from kogpt.fast.model import FastBlock, FastKoGPT, FastTransformer, Linear, Norm
from kogpt.kernels import Weight, extension_available
from kogpt.model import KoGPTConfig

READERS = 2  # one thread alone copies at half of the speed of memory
PIECE = 16 << 20  # bytes read at once: small enough for memory to be used again and again


def load_fast(
    path: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> FastKoGPT:
    """Loads a model prepared for decoding.

    Args:
        path: as for `kogpt.load_model`; a quantised folder stays as it is in memory too.
        dtype: to compute in, and of weights that are not quantised. None takes what is stored; on a
            CPU, float16 weights are then kept, and computed with in float32.
        device: to load to; None for the CPU.

    Raises:
        InputRefusedError: the checkpoint is damaged, dangerous, or not of this architecture.
        NotEnoughResourcesError: the device has no room for the weights.
        ValueError: `dtype` is none that weights come in.
    """
    device = torch.device(device or "cpu")
    with open_checkpoint(BOX if path is None else path) as reader:
        config = reader.require_config()
        reader.check(config)
        loader = _Loader(reader, config, dtype, device)
        require_memory(device, loader.nbytes + ROOM_TO_RUN, str(reader.path))
        return loader.model().eval()


class _Loader:
    def __init__(
        self,
        reader: CheckpointReader,
        config: KoGPTConfig,
        dtype: str | torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.reader, self.config, self.device = reader, config, device
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
        if self.reader.stored_as(name).startswith("int"):
            return self.reader.stored_bytes(name)
        return math.prod(self.reader.shape(name)) * self.weight_dtype.itemsize

    def model(self) -> FastKoGPT:
        with ThreadPoolExecutor(READERS) as pool:
            blocks = list(pool.map(self.block, range(self.config.n_layer)))
        wte = self.matrix([["transformer.wte"]]).values
        transformer = FastTransformer(self.config, wte, blocks, self.norm("transformer.ln_f"))
        head = Linear(self.matrix([["lm_head"]]), self.vector("lm_head.bias"))
        return FastKoGPT(self.config, transformer, head)

    def block(self, layer: int) -> FastBlock:
        C, F = self.config.n_embd, self.config.inner_dim
        attn, mlp = f"transformer.h.{layer}.attn", f"transformer.h.{layer}.mlp"
        readers = [[f"{attn}.q_proj"], [f"{attn}.k_proj"], [f"{attn}.v_proj"], [f"{mlp}.fc_in"]]
        bias = self.vector(f"{mlp}.fc_in.bias")
        return FastBlock(
            layer=layer,
            head_dim=self.config.head_dim,
            widths=(C, C, C, F),
            norm=self.norm(f"transformer.h.{layer}.ln_1"),
            enter=Linear(self.matrix(readers), torch.cat((bias.new_zeros(3 * C), bias))),
            leave=Linear(
                self.matrix([[f"{attn}.out_proj", f"{mlp}.fc_out"]]),
                self.vector(f"{mlp}.fc_out.bias"),
            ),
        )

    def norm(self, name: str) -> Norm:
        weight, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        return Norm(weight, bias, self.config.layer_norm_epsilon)

    def matrix(self, grid: Sequence[Sequence[str]]) -> Weight:
        """Linear layers as one matrix: rows of the grid one under the other, each side by side."""
        names = [name for row in grid for name in row]
        format = common_format([self.weight(name, slice(0)) for name in names], self.weight_dtype)
        heights = [self.reader.shape(f"{row[0]}.weight")[0] for row in grid]
        whole, first = None, 0
        for row, height in zip(grid, heights, strict=True):
            for rows in self.pieces(row, height):
                piece = side_by_side([self.weight(name, rows) for name in row], format)
                if whole is None:
                    whole = _empty_like(piece, sum(heights))
                _copy(piece, whole.rows(slice(first, None)).rows(rows))
            first += height
        assert whole is not None, "no matrix is empty"
        return whole

    def pieces(self, row: Sequence[str], height: int) -> Iterator[slice]:
        """Rows to read at once of matrices that lie side by side."""
        nbytes = sum(self.reader.stored_bytes(f"{name}.weight") for name in row)
        step = max(1, PIECE * height // nbytes)
        return (slice(start, min(start + step, height)) for start in range(0, height, step))

    def weight(self, name: str, rows: slice) -> Weight:
        stored = self.reader.read_weight(f"{name}.weight", rows)
        if stored.scale is None:
            return Weight(stored.values.to(self.device, self.weight_dtype))
        # A GPU's kernels want scales in the dtype of x; a CPU's take any.
        scales = (stored.scale, stored.offset)
        dtype = None if self.device.type == "cpu" else self.dtype
        moved = (part if part is None else part.to(self.device, dtype) for part in scales)
        return Weight(stored.values.to(self.device), *moved)

    def vector(self, name: str) -> Tensor:
        return self.reader.read(name).to(self.device, self.dtype)


def _empty_like(weight: Weight, outputs: int) -> Weight:
    scale, offset = (
        part if part is None else part.new_empty(outputs, part.size(1)) for part in weight[1:]
    )
    return Weight(weight.values.new_empty(outputs, weight.values.size(1)), scale, offset)


def _copy(source: Weight, destination: Weight) -> None:
    for new, place in zip(source, destination, strict=True):
        if new is not None and place is not None:
            place.copy_(new)
