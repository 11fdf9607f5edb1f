"""Rows of ids that grow together, and the model's view of them.

Dimension key: `B` rows, `L` columns, `T` expected columns, `V` vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kogpt.errors import KoGPTError
from kogpt.generation.processors import History
from kogpt.generation.requests import read
from kogpt.model import KoGPT, KVCache


class Batch:
    """Prompts of any lengths, padded on the left to one width, to which columns are appended.

    Each begins with the model's `prefix_ids`, which the history of a row does not know of.

    Attributes:
        ids: (B, L); padding repeats the first id of its row.
        generated: columns appended to the prompts.
    """

    def __init__(
        self,
        model: KoGPT,
        prompts: Sequence[Sequence[int]],
        *,
        room: int,
        prefill_chunk: int,
        use_cache: bool,
    ) -> None:
        """Lays out the prompts; the model reads them when logits are first asked for.

        Args:
            model: the model, in evaluation mode.
            prompts: at least one id each, none longer than the context behind the prefix.
            room: most columns that will be appended.
            prefill_chunk: most columns the model reads at once, which bounds the memory of long
                prompts. Logits depend on it by rounding alone.
            use_cache: keep keys and values; without, every step reads all columns again.
        """
        device = model.device
        prompts = [[*model.prefix_ids, *prompt] for prompt in prompts]
        width = max(map(len, prompts))
        padded = [[*[prompt[0]] * (width - len(prompt)), *prompt] for prompt in prompts]
        self.model = model
        self.ids = torch.tensor(padded, device=device)
        self.generated = 0
        self.prefill_chunk = prefill_chunk
        self._starts: Tensor | None = None
        if any(len(prompt) < width for prompt in prompts):
            self._starts = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        self._capacity = min(width + room, model.config.n_positions)
        self._cache = KVCache(self._capacity) if use_cache else None
        self._expected = self.ids[:, :0]
        self._ahead: Tensor | None = None  # (B, 1 + T, V), after the last and expected columns

    @property
    def is_full(self) -> bool:
        """Whether the columns fill the context: rows without padding have come to its end."""
        return self.ids.size(1) >= self.model.config.n_positions

    @property
    def history(self) -> History:
        """What the rows have read of real tokens: virtual ones count as padding before them."""
        prefix = len(self.model.prefix_ids)
        if not prefix:
            return History(self.ids, self._starts, self.generated)
        padding = self.ids.new_zeros(len(self.ids)) if self._starts is None else self._starts
        starts = padding + prefix
        first = self.ids.gather(1, starts[:, None])
        is_real = self.ids < self.model.config.vocab_size
        return History(torch.where(is_real, self.ids, first), starts, self.generated)

    @property
    def room(self) -> int:
        """Columns that can still be added."""
        return self._capacity - self.ids.size(1)

    @property
    def is_ahead(self) -> bool:
        """Whether the logits are known without another pass."""
        return self._ahead is not None

    def expect(self, columns: Tensor) -> None:
        """Guesses the next columns (B, T), at most `room`; the next pass reads them as well.

        As long as `append` adds what was expected, the logits after it are known.

        Raises:
            KoGPTError: a layer keeps a state, out of which no wrong guess could be taken.
        """
        if columns.size(1) and self._cache is not None and self._cache.has_state:
            raise KoGPTError("the model keeps a state in its cache: generate without speculation")
        self._expected = columns

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits (B, V) after the last column; reads the columns not yet in the cache."""
        if self._ahead is None:
            self._ahead = self.model.logits(self._read(1 + self._expected.size(1)))
        return self._ahead[:, 0]

    def _read(self, count: int) -> Tensor:
        """The last `count` hidden states (B, count, C) of the columns and those expected."""
        columns = torch.cat((self.ids, self._expected), dim=1)
        if self._cache is None:
            return self.model.transformer(columns, None, self._starts)[:, -count:]
        last: list[Tensor] = []  # no chunk is empty, so `count` of them hold what is wanted
        try:
            for unread in columns[:, self._cache.length :].split(self.prefill_chunk, dim=1):
                last = [*last, read(self.model, unread, self._cache, self._starts)][-count:]
        except KoGPTError:
            if self._cache.length:
                raise
            self._cache = None  # a class of one's own keeps nothing there: all is read each time
            return self._read(count)
        return torch.cat(last, dim=1)[:, -count:]

    @torch.inference_mode()
    def append(self, ids: Tensor) -> None:
        """Adds a column of ids (B,)."""
        if self._expected.size(1) and torch.equal(ids, self._expected[:, 0]):
            assert self._ahead is not None, "expected columns are read before one is added"
            self._expected, self._ahead = self._expected[:, 1:], self._ahead[:, 1:]
        else:
            self._forget_expected()
        if self.is_full:
            self._drop_padding()
        self.ids = torch.cat((self.ids, ids[:, None]), dim=1)
        self.generated += 1

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Makes `rows` of this batch the batch, in that order, repeats allowed."""
        if list(rows) == list(range(len(self.ids))):
            return
        if self._expected.size(1):
            self._forget_expected()
        chosen = torch.tensor(rows, device=self.ids.device)
        self.ids = self.ids[chosen]
        self._expected = self.ids[:, :0]
        if self._ahead is not None:
            self._ahead = self._ahead[chosen]
        if self._starts is not None:
            self._starts = self._starts[chosen]
        if self._cache is not None:
            self._cache = self._cache.select(chosen)

    def _forget_expected(self) -> None:
        """Forgets what was read ahead: it is not what came, or other rows had other guesses."""
        self._expected, self._ahead = self.ids[:, :0], None
        if self._cache is not None and self._cache.length > self.ids.size(1):
            self._cache.truncate(self.ids.size(1))

    def _drop_padding(self) -> None:
        """Drops the columns that are padding in every row; the rest is read anew.

        Only a batch of unequal prompts gets here, when its longest row has ended at the end of
        the context and shorter ones go on.
        """
        assert self._starts is not None, "a row is longer than the context"
        spare = int(self._starts.min())
        self.ids = self.ids[:, spare:]
        self._starts = self._starts - spare
        if self._cache is not None:
            self._cache = KVCache(self._capacity)
