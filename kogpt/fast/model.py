"""KoGPT prepared for decoding: what `kogpt.model.KoGPT` computes, with as little as possible to do.

GPT-J's parallel residual lets a block be two products: q, k, v and fc_in read the same normed input
and are one matrix, out_proj and fc_out add into the same sum and are another. (Blocks of its
neighbours are more products: `neighbours.py`.) Weights stay as they are stored, in 16, 8 or 4 bits;
on a CPU large ones also where they are stored, in the file, each on its own, or packed into fewer
bits without loss. The model to read, and the oracle of this one, is `kogpt/model/transformer.py`;
both are called in the same way.

Dimension key as there: `B` batch, `T` new tokens, `S` cached + new tokens, `H` heads, `D` head dim,
`C` n_embd, `F` inner dim, `V` vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kogpt.fast.graph import Graphs, StepInput
from kogpt.kernels import (
    DecodeStep,
    Layers,
    Weight,
    attention,
    linear,
    step_attention,
    step_block,
    step_linear,
    step_norm,
    step_obstacle,
)
from kogpt.kernels.decode import MAX_TOKENS, ROTARY_MULTIPLE, decode_obstacle
from kogpt.kernels.extension import extension_available
from kogpt.kernels.linear import MAX_ROWS, has_kernel
from kogpt.model import KoGPT, KoGPTConfig, KVCache
from kogpt.model.rotary import RotaryEmbedding, Rotation
from kogpt.model.transformer import Transformer


@dataclass(frozen=True)
class Embedding:
    """A table of tokens' embeddings, (V, C)."""

    weight: Tensor

    def __call__(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight)


class Norm(NamedTuple):
    """A LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class LowRank(NamedTuple):
    """A low-rank update B A, which stays beside integer weights: it cannot be added to them.

    Attributes:
        A: (r, K).
        B: (N, r), scaled.
    """

    A: Tensor
    B: Tensor


class Linear(NamedTuple):
    """A linear layer.

    Attributes:
        weight: W, (N, K).
        bias: (N,).
        update: what is added to W.
        is_ready: whether kernels are known to take few rows of what this layer is given, so that
            not each layer of each step has to ask again.
    """

    weight: Weight
    bias: Tensor | None
    update: LowRank | None = None
    is_ready: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_ready and x.shape[:-1].numel() <= MAX_ROWS:
            y = torch.ops.kogpt.linear(x.flatten(0, -2), *self.weight, self.bias)
            y = y.view(*x.shape[:-1], y.size(-1))
        else:
            y = linear(x, self.weight, self.bias)
        if self.update is None:
            return y
        return y + F.linear(F.linear(x, self.update.A), self.update.B)

    def tensors(self) -> list[Tensor]:
        """All of which it is made."""
        parts = (*self.weight, self.bias, *(self.update or ()))
        return [part for part in parts if part is not None]


class Enter(NamedTuple):
    """Linear layers that read the same input: q_proj, k_proj, v_proj, and GPT-J's fc_in.

    Attributes:
        linears: the layers, or one that is all of them, (3C + F, C) or (3C, C).
        widths: of what they give.
    """

    linears: tuple[Linear, ...]
    widths: tuple[int, ...]

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """What each layer gives of x."""
        if len(self.linears) == 1:
            return self.linears[0](x).split(self.widths, dim=-1)
        return [each(x) for each in self.linears]


class Leave(NamedTuple):
    """Linear layers whose results are added: out_proj and fc_out.

    Attributes:
        linears: the layers, or one that is both, (C, C + F).
    """

    linears: tuple[Linear, ...]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The sum of what each layer gives of its own input."""
        if len(self.linears) == 1:
            return self.linears[0](torch.cat(inputs, dim=-1))
        (first, *others), (x, *xs) = self.linears, inputs
        y = first(x)
        for each, x in zip(others, xs, strict=True):
            y += each(x)
        return y


@dataclass
class FastBlock:
    """Attention and MLP side by side, as two products.

    Attributes:
        layer: which block of the model, and so of the cache.
        norm: ln_1.
        enter: q_proj, k_proj, v_proj and fc_in.
        leave: out_proj and fc_out.
    """

    layer: int
    head_dim: int
    norm: Norm
    enter: Enter
    leave: Leave

    def __call__(self, x: Tensor, attend: "Attend") -> Tensor:
        q, k, v, hidden = self.enter(self.norm(x))
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))
        mixed = attend(self.layer, q, k, v).flatten(2)  # (B, T, C)
        # Many tokens take 8 MB for each of q, k and v in the 6B, and 34 for the inner layer.
        del q, k, v
        torch.ops.aten.gelu_(hidden, approximate="tanh")
        return self.leave(mixed, hidden).add_(x)

    def chained(self, x: Tensor, attend: "FewTokens") -> Tensor:
        """The same of rows (B T, C), as a chain of few kernels; `has_chain` tells whether it can.

        Matrices are two, as they are on a GPU. What attention gives takes the place of v, and so
        lies before the MLP's inner layer: the input of `leave`.
        """
        (enter,), (leave,), C = self.enter.linears, self.leave.linears, x.size(1)
        y = step_linear(step_norm(x, *self.norm), *enter[:2], gelu_from=3 * C)
        q, k, v, _ = y.split_with_sizes(self.enter.widths, dim=-1)
        ready = attend.in_place(self.layer, q, k, v)
        return step_linear(y[:, 2 * C :], *leave[:2], residual=x, late=C, ready=ready)

    def norms(self) -> Iterator[Norm]:
        """All that it has, in the order of what they precede."""
        yield self.norm

    def linears(self) -> Iterator[Linear]:
        """All that it has, in the order in which they are multiplied by."""
        yield from (*self.enter.linears, *self.leave.linears)

    @cached_property
    def parts(self) -> tuple[Norm, Layers, Layers]:
        """What `step_block` takes, which a CPU with kernels has for whatever `has_chain` allows."""
        return self.norm, layers(self.enter.linears), layers(self.leave.linears)

    def has_chain(self, x: Tensor) -> bool:
        """Whether there are kernels for a chain on rows (B T, C)."""
        if any(each.update is not None for each in self.linears()):
            return False
        enter, leave = ([each.weight for each in part.linears] for part in (self.enter, self.leave))
        one_format = len({weight.format for weight in enter}) == 1
        kinds = {(weight.scale is None, weight.offset is None) for weight in leave}
        if not one_format or len(kinds) > 1:
            return False
        return step_obstacle(x, *enter, *leave) is None


def layers(linears: Sequence[Linear]) -> Layers:
    """Layers as `step_block` takes them; the last has a bias."""
    columns = zip(*(each.weight for each in linears), strict=True)
    weights, scales, offsets = ([part for part in parts if part is not None] for parts in columns)
    bias = linears[-1].bias
    assert bias is not None, "fc_in and fc_out have one"
    return Layers(weights, scales, offsets, bias)


class Attend(Protocol):
    """Attention of q, k, v (B, T, H, D), and whatever surrounds it; gives (B, T, H, D)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class ManyTokens(NamedTuple):
    """Reads a prompt: rotary, append and attention one after the other."""

    rotate: Rotation
    cache: KVCache | None
    starts: Tensor | None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self.rotate(q), self.rotate(k)
        if self.cache is not None:
            k, v = self.cache.append(layer, k, v)
        return attention(q, k, v, starts=self.starts)


class FewTokens(NamedTuple):
    """Reads up to `MAX_TOKENS` more tokens: rotary, append and attention in one kernel."""

    step: StepInput
    cache: KVCache
    cos: Tensor  # (n_positions, R/2)
    sin: Tensor  # (n_positions, R/2)
    counters: Tensor  # (B, H), zeros
    flags: Sequence[Tensor]  # (1,) for each layer, zeros

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The op itself, whose checks need not be repeated for each layer of each step.
        return torch.ops.kogpt.decode_attention(*self.arguments(layer, q, k, v))

    def in_place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of q, k, v (B T, C); the result takes the place of v.

        Returns:
            The flag that all else is there.
        """
        (B, T), H, ready = self.step.input_ids.shape, self.counters.size(1), self.flags[layer]
        sizes = (B, T, H, q.size(1) // H)
        step_attention(self.arguments(layer, *(x.view(sizes) for x in (q, k, v))), ready)
        return ready

    def arguments(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> DecodeStep:
        """Those of the op for one layer."""
        keys, values = self.cache.buffers(layer, k, v)
        _, lengths, starts = self.step
        return DecodeStep(q, k, v, keys, values, lengths, self.cos, self.sin, starts, self.counters)


class FastTransformer(Transformer):
    """Token embedding, blocks and the final norm: ids in, hidden states out.

    Attributes:
        embedding: gives the embeddings (B, T, C) of tokens, from a table or from a file.
        rotary: pairs neighbouring dims.
        wpe: embeddings of positions, where they are learned.
    """

    def __init__(
        self,
        config: KoGPTConfig,
        embedding: Callable[[Tensor], Tensor],
        blocks: Sequence[FastBlock],
        ln_f: Norm,
        rotary: RotaryEmbedding,
        wpe: Embedding | None = None,
    ) -> None:
        nn.Module.__init__(self)  # what the base class would make is made
        self.n_positions = config.n_positions
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.embedding, self.wpe, self.blocks, self.norm = embedding, wpe, blocks, ln_f
        self.device = ln_f.weight.device
        self.rotary, self.angles = rotary, rotary.table  # (2, n_positions, R/2)
        self.has_kernel = has_decode_kernel(config, self.device, ln_f.weight.dtype)
        row = ln_f.weight[None]  # (1, C)
        self.has_chain = self.has_kernel and all(block.has_chain(row) for block in blocks)
        self.has_block_op = self.has_chain and self.device.type == "cpu"
        self.graphs = Graphs() if self.device.type == "cuda" else None

    def forward(
        self, input_ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, T, C) of `input_ids`; the arguments are those of `KoGPT.forward`.

        Raises:
            ValueError: as there; or the cache is of another batch, model or dtype, or a start on a
                CPU below 0, which kernels would not notice.
        """
        if torch.is_autocast_enabled(self.device.type):  # which would change some of the products
            with torch.autocast(self.device.type, enabled=False):
                return self(input_ids, cache, starts)
        B, T = input_ids.shape
        if starts is not None and starts.device.type == "cpu" and (starts < 0).any():
            raise ValueError(f"starts are {starts.tolist()}, they must be at least 0")
        if cache is not None:
            cache.refuse_other((B, self.n_head, self.head_dim), self.norm.weight.dtype, self.device)
        if cache is None or not self.takes(input_ids, cache, starts):
            positions = self.positions(input_ids, cache, starts)
            attend = ManyTokens(self.rotary(positions), cache, starts)
            hidden = self.read(self.embed(input_ids, positions), attend)
        else:
            lengths = torch.full((B,), cache.length, device=input_ids.device)
            step = StepInput(input_ids, lengths, row_starts(starts, lengths))
            if self.graphs is None:
                hidden = self.read_few(step, cache)
            else:
                hidden = self.graphs(self.read_few, step, cache)
        if cache is not None:
            cache.advance(T)
        return hidden

    def takes(self, input_ids: Tensor, cache: KVCache, starts: Tensor | None) -> bool:
        """Whether a step of such tokens (B, T) goes through the decode kernel."""
        B, T = input_ids.shape
        few = B > 0 and T <= MAX_TOKENS
        fits = cache.length + T <= cache.capacity <= self.n_positions
        alone = starts is None or starts.ndim == 1  # one text in a row
        return self.has_kernel and few and fits and alone

    def read_few(self, step: StepInput, cache: KVCache) -> Tensor:
        """A step through the decode kernel."""
        B, device = step.input_ids.size(0), step.input_ids.device
        if self.has_block_op and step.input_ids.numel() <= MAX_ROWS:
            return self.read_rows(step, cache)
        sizes = B * self.n_head, len(self.blocks)
        counters, flags = torch.zeros(sum(sizes), dtype=torch.int32, device=device).split(sizes)
        cos, sin = self.angles
        attend = FewTokens(step, cache, cos, sin, counters.view(B, -1), flags.split(1))
        x = self.embed(step.input_ids, positions_of(step) if self.wpe else None)
        rows = x.flatten(0, 1)  # (B T, C)
        if not self.has_chain or len(rows) > MAX_ROWS:
            return self.read(x, attend)
        for block in self.blocks:
            rows = block.chained(rows, attend)
        return step_norm(rows, *self.norm).view_as(x)

    def read_rows(self, step: StepInput, cache: KVCache) -> Tensor:
        """The same where a block is one op."""
        input_ids, lengths, starts = step
        x, (cos, sin) = self.embed(input_ids), self.angles
        rows = x.flatten(0, 1)  # (B T, C)
        new = x.new_empty(x.size(0), 0, self.n_head, self.head_dim)
        for block in self.blocks:
            buffers = cache.buffers(block.layer, new, new)
            rows = step_block(rows, *block.parts, buffers, lengths, (cos, sin), starts)
        return step_norm(rows, *self.norm).view_as(x)

    def read(self, x: Tensor, attend: Attend) -> Tensor:
        """All blocks, one after the other."""
        for block in self.blocks:
            x = block(x, attend)
        return self.norm(x)

    def embed(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """The tokens' embeddings (B, T, C), and those of their positions where they are learned."""
        x = self.embedding(input_ids).to(self.norm.weight.dtype)
        if self.wpe is None:
            return x
        assert positions is not None, "they are computed where they are learned"
        return x + self.wpe(positions)


def positions_of(step: StepInput) -> Tensor:
    """Positions (B, T) of a step's tokens in their texts; padding counts as position 0."""
    input_ids, lengths, starts = step
    first = lengths if starts is None else lengths - starts
    return (first[:, None] + torch.arange(input_ids.size(1), device=first.device)).clamp(min=0)


def row_starts(starts: Tensor | None, lengths: Tensor) -> Tensor | None:
    """The start of each row as the decode kernel reads it: like `lengths`, (B,)."""
    if starts is None:
        return None
    return starts.to(lengths.device, torch.int64).expand(lengths.shape).contiguous()


def has_product_kernel(weight: Weight, dtype: torch.dtype) -> bool:
    """Whether `kogpt::linear` has a kernel for such a weight and few rows of a dtype."""
    device = weight.values.device
    row = torch.empty(1, weight.shape[1], dtype=dtype, device=device)
    return has_kernel(row, weight) and extension_available(device)


def has_decode_kernel(config: KoGPTConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `kogpt::decode_attention` has a kernel for such a model there."""
    if config.rotary_width % ROTARY_MULTIPLE or decode_obstacle(device, dtype, config.head_dim):
        return False
    return extension_available(device)


class FastKoGPT(KoGPT):
    """The language model, prepared for decoding; `kogpt.load(..., fast=True)` makes one.

    It is called as `KoGPT` is, and logits are the same but for rounding. It holds no parameters: it
    can be neither trained nor saved, and stays on its device and in its dtype.
    """

    def __init__(self, config: KoGPTConfig, transformer: FastTransformer, lm_head: Linear) -> None:
        nn.Module.__init__(self)  # what the base class would make is made
        self.config = config
        self.transformer: FastTransformer = transformer
        self.lm_head: Linear = lm_head  # type: ignore[assignment]  # called as a module is

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        raise TypeError("a prepared model stays as it is: give kogpt.load its device and dtype")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a prepared model has no state to save: use kogpt.load_model")

    def logits(self, hidden: Tensor) -> Tensor:
        if torch.is_autocast_enabled(self.device.type):
            with torch.autocast(self.device.type, enabled=False):
                return super().logits(hidden)
        return super().logits(hidden)

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in between the products, and kept in the cache."""
        return self.transformer.norm.weight.dtype

    def streamed(self) -> Iterator[Tensor]:
        """Every tensor that a token reads whole: all but the embedding, of which it reads a row."""
        for norm in self.norms():
            yield from (norm.weight, norm.bias)
        for each in self.linears():
            yield from each.tensors()

    @property
    def num_streamed(self) -> int:
        """How many weights these are, in however many bits, with biases."""
        norms = sum(norm.weight.numel() + norm.bias.numel() for norm in self.norms())
        biases = sum(len(each.bias) for each in self.linears() if each.bias is not None)
        return norms + biases + sum(math.prod(each.weight.shape) for each in self.linears())

    def norms(self) -> Iterator[Norm]:
        """All that it has."""
        for block in self.transformer.blocks:
            yield from block.norms()
        yield self.transformer.norm

    def linears(self) -> Iterator[Linear]:
        """All that it has, in the order in which they are multiplied by."""
        for block in self.transformer.blocks:
            yield from block.linears()
        yield self.lm_head
