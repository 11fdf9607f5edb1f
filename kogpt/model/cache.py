"""The key-value cache: what attention remembers of the tokens already read."""

from typing import NamedTuple

import torch
from torch import Tensor


class Mark(NamedTuple):
    """Where a cache was, to go back to: its length, and copies of the states."""

    length: int
    states: dict[int, Tensor]


class KVCache:
    """Keys and values of up to `capacity` tokens per row, for every layer that appends to it.

    A cache is passed into `KoGPT.forward` and belongs to the caller. A layer's buffers are made
    when it first appends, with the shape, dtype and device of what it appends, so one class
    serves every width, precision and number of key heads. Buffers are (B, H, capacity, D): the
    keys of one head lie together, which is the order in which decoding reads them.

    Attributes:
        capacity: most tokens a row can hold.
        length: tokens held now, the same for every row (shorter rows are padded on the left).
    """

    # No others: rows are selected and tokens forgotten of what is in here alone.
    __slots__ = ("__weakref__", "_appended", "_layers", "_states", "capacity", "length")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._states: dict[int, Tensor] = {}
        self._appended: set[int] = set()  # layers, since the cache last advanced

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers and states that were made."""
        layers = (*self._layers.values(), self._states.values())
        return sum(part.nbytes for parts in layers for part in parts)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values of one layer behind those held.

        Args:
            layer: index of the layer, which appends once before the cache advances.
            k: new keys (B, T, H, D), already rotated.
            v: new values (B, T, H, D).

        Returns:
            All keys and all values of the layer, (B, S, H, D) views with S = length + T.

        Raises:
            ValueError: S exceeds the capacity; what is held is of another batch, model, dtype or
                device; or the layer appends again, as one does that stands for several, and would
                write over what it has just written.
        """
        end = self.length + k.size(1)
        if end > self.capacity:
            raise ValueError(f"{end} tokens do not fit a cache of {self.capacity}")
        if layer in self._appended:
            raise ValueError(
                f"layer {layer} appends twice: every layer needs an index of its own; after a pass "
                "that was broken off, truncate the cache to its length"
            )
        keys, values = self.buffers(layer, k, v)
        _refuse_other_kind(_kind(keys), _kind(k))
        self._appended.add(layer)
        keys[:, self.length : end] = k
        values[:, self.length : end] = v
        return keys[:, :end], values[:, :end]

    def buffers(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All places of a layer, full and empty, (B, capacity, H, D) views of its two buffers.

        Made when first asked for, for keys and values such as `k` and `v`; then always the same.
        What is of no position is lost there when tokens are forgotten: `state` is for it.
        """
        if layer not in self._layers:
            self._layers[layer] = self._buffer(k), self._buffer(v)
        keys, values = self._layers[layer]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def state(self, layer: int, like: Tensor) -> Tensor:
        """What a layer keeps of all tokens at once, as a recurrence does, to be written in place.

        Zeros when first asked for, of the shape (B, ...), dtype and device of `like`; then always
        the same tensor. A layer that keeps several takes an index of its own for each, such as
        `n_layer + layer` for the second.

        Raises:
            ValueError: what is held there is of another shape, dtype or device.
        """
        if layer not in self._states:
            self._states[layer] = torch.zeros_like(like)
        state = self._states[layer]
        held, asked = ((x.shape, x.dtype, x.device) for x in (state, like))
        if held != asked:
            told, would = (f"{tuple(s)} {dtype} {device}" for s, dtype, device in (held, asked))
            raise ValueError(f"state {layer} of the cache is {told} and would be {would}")
        return state

    @property
    def has_state(self) -> bool:
        """Whether a layer keeps a state, from which no single token can be taken away."""
        return bool(self._states)

    def refuse_other(
        self, sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Refuses new keys of another kind than those held, for which kernels do not look.

        Args:
            sizes: batch, heads and head dim of new keys.
            dtype: of new keys.
            device: of new keys.

        Raises:
            ValueError: what is held is of another batch, model, dtype or device.
        """
        if not self._layers:
            return
        keys, _ = next(iter(self._layers.values()))
        _refuse_other_kind(_kind(keys.transpose(1, 2)), (*sizes, dtype, device))

    def advance(self, count: int) -> None:
        """Counts `count` tokens as held, once every layer has appended them."""
        self.length += count
        self._appended.clear()

    def truncate(self, length: int) -> None:
        """Forgets all tokens from position `length` on, and what was appended behind them.

        Raises:
            ValueError: so many are not held; or a layer keeps a state, which forgets all or none.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        if 0 < length < self.length and self._states:
            raise ValueError(
                f"cannot truncate a cache of {self.length} tokens to {length}: it holds a state"
            )
        if length == 0:
            for state in self._states.values():
                state.zero_()
        self.length = length
        self._appended.clear()

    def mark(self) -> Mark:
        """Where the cache is now. It costs memory for states alone."""
        return Mark(self.length, {layer: state.clone() for layer, state in self._states.items()})

    def go_back(self, mark: Mark) -> None:
        """Forgets all tokens since a mark was taken of this cache, in states too."""
        for layer, state in self._states.items():
            state.copy_(mark.states[layer]) if layer in mark.states else state.zero_()
        self.length = mark.length
        self._appended.clear()

    def select(self, rows: Tensor) -> "KVCache":
        """A new cache whose batch is `rows` (B',) of this one, in that order, repeats allowed."""
        chosen = KVCache(self.capacity)
        chosen.length = self.length
        chosen._layers = {
            layer: (k.index_select(0, rows), v.index_select(0, rows))
            for layer, (k, v) in self._layers.items()
        }
        chosen._states = {layer: x.index_select(0, rows) for layer, x in self._states.items()}
        return chosen

    def first(self, rows: int) -> "KVCache":
        """A cache of the first `rows` of the batch, which shares the memory of what is held here.

        Whatever it appends is in this cache's buffers too, behind what this one counts as held.
        States, which are written over, are copied.
        """
        part = KVCache(self.capacity)
        part.length = self.length
        part._layers = {layer: (k[:rows], v[:rows]) for layer, (k, v) in self._layers.items()}
        part._states = {layer: state[:rows].clone() for layer, state in self._states.items()}
        return part

    def _buffer(self, like: Tensor) -> Tensor:
        B, _, H, D = like.shape
        return like.new_zeros(B, H, self.capacity, D)


Kind = tuple[int, int, int, torch.dtype, torch.device]


def _kind(keys: Tensor) -> Kind:
    """What keys (B, T, H, D) of one cache have in common."""
    return keys.size(0), keys.size(2), keys.size(3), keys.dtype, keys.device


def _refuse_other_kind(held: Kind, asked: Kind) -> None:
    if held != asked:
        told, would = (" ".join(map(str, kind)) for kind in (held, asked))
        raise ValueError(
            f"the cache holds keys of another kind: batch, heads, head dim, dtype, device"
            f" are {told} and would be {would}"
        )
