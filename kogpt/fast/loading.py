"""Loads a checkpoint folder into the prepared model, tensor by tensor, as it is stored."""

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from kogpt.box import BOX
from kogpt.checkpoint.dtypes import compute_dtype, parse_dtype
from kogpt.checkpoint.loading import ROOM_TO_RUN
from kogpt.checkpoint.reader import CheckpointReader, open_checkpoint
from kogpt.checkpoint.resources import require_memory
from kogpt.fast.fusing import fuse
from kogpt.fast.model import FastBlock, FastKoGPT, FastTransformer, Linear, Norm
from kogpt.kernels import Weight, extension_available
from kogpt.model import KoGPTConfig


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
        blocks = [self.block(layer) for layer in range(self.config.n_layer)]
        wte = self.matrix(["transformer.wte"]).values
        transformer = FastTransformer(self.config, wte, blocks, self.norm("transformer.ln_f"))
        head = Linear(self.matrix(["lm_head"]), self.vector("lm_head.bias"))
        return FastKoGPT(self.config, transformer, head)

    def block(self, layer: int) -> FastBlock:
        C, F = self.config.n_embd, self.config.inner_dim
        own = f"transformer.h.{layer}"
        read = [f"{own}.attn.q_proj", f"{own}.attn.k_proj", f"{own}.attn.v_proj"]
        bias = self.vector(f"{own}.mlp.fc_in.bias")
        return FastBlock(
            layer=layer,
            head_dim=self.config.head_dim,
            widths=(C, C, C, F),
            norm=self.norm(f"{own}.ln_1"),
            enter=Linear(
                self.matrix([*read, f"{own}.mlp.fc_in"]),
                torch.cat((bias.new_zeros(3 * C), bias)),
            ),
            leave=Linear(
                self.matrix([f"{own}.attn.out_proj", f"{own}.mlp.fc_out"], dim=1),
                self.vector(f"{own}.mlp.fc_out.bias"),
            ),
        )

    def norm(self, name: str) -> Norm:
        weight, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        return Norm(weight, bias, self.config.layer_norm_epsilon)

    def matrix(self, names: Sequence[str], dim: int = 0) -> Weight:
        """Matrices of linear layers as one; see `fuse`."""
        return fuse([self.weight(f"{name}.weight") for name in names], dim, self.weight_dtype)

    def weight(self, name: str) -> Weight:
        stored = self.reader.read_weight(name)
        if stored.scale is None:
            return Weight(stored.values.to(self.device, self.weight_dtype))
        # A GPU's kernels want scales in the dtype of x; a CPU's take any.
        scales = (stored.scale, stored.offset)
        dtype = None if self.device.type == "cpu" else self.dtype
        moved = (part if part is None else part.to(self.device, dtype) for part in scales)
        return Weight(stored.values.to(self.device), *moved)

    def vector(self, name: str) -> Tensor:
        return self.reader.read(name).to(self.device, self.dtype)
