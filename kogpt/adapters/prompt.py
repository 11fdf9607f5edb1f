"""Soft prompts: virtual tokens, each of an id behind the vocabulary, that every text begins with.

A prompt of n tokens is n more rows of the embedding, and `KoGPT.prefix_ids` their ids. So a text
with its prompt is a list of ids like any other: batches, padding, caches and shared beginnings need
know nothing of it.

Dimension key as in the model, and `n` virtual tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kogpt.adapters.config import PromptConfig, freeze, home, refuse_prepared
from kogpt.errors import ParameterError
from kogpt.model import KoGPT


class SoftPrompt(nn.Module):
    """The embeddings of virtual tokens, (n, C), float32."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)

    def forward(self) -> Tensor:
        return self.embedding.weight


class MLPPrompt(SoftPrompt):
    """The same, computed by an MLP of three layers from embeddings of their own."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__(tokens, width)
        self.hidden = hidden
        self.mlp_head = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )

    def forward(self) -> Tensor:
        with _full_precision(self.embedding.weight):
            return self.mlp_head(self.embedding.weight)


class LSTMPrompt(SoftPrompt):
    """The same, computed by a bidirectional LSTM of two layers and an MLP of two.

    Source: Liu et al. (arXiv 2103.10385), section 3.2; names and sizes are those of peft.
    """

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__(tokens, width)
        self.hidden = hidden
        self.lstm_head = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.mlp_head = nn.Sequential(
            nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width)
        )

    def forward(self) -> Tensor:
        with _full_precision(self.embedding.weight):
            return self.mlp_head(self.lstm_head(self.embedding.weight)[0])


class PromptedEmbedding(nn.Module):
    """An embedding with the virtual tokens' rows behind its own.

    Attributes:
        base: the embedding: `nn.Embedding`, or this again where there is a prompt already.
        prompt: gives the rows of the virtual tokens (n, C); asked once in a forward pass.
        real_ids_alone: no id is virtual for now, and the prompt need not be asked.
    """

    def __init__(self, base: nn.Module, prompt: SoftPrompt) -> None:
        super().__init__()
        self.base, self.prompt = base, prompt
        self.real_ids_alone = False

    @property
    def weight(self) -> Tensor:
        """The table of real tokens (V, C)."""
        weight = self.base.weight
        assert isinstance(weight, Tensor), "an embedding has a table"
        return weight

    @property
    def num_embeddings(self) -> int:
        return self.first_id + self.prompt.embedding.num_embeddings

    @property
    def first_id(self) -> int:
        """The id of the first virtual token."""
        first = self.base.num_embeddings
        assert isinstance(first, int), "an embedding has a number of rows"
        return first

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.real_ids_alone:
            return self.base(input_ids)
        places = input_ids - self.first_id
        is_virtual = places >= 0
        x = self.base(input_ids.masked_fill(is_virtual, 0))
        virtual = F.embedding(places.clamp(min=0), self.prompt()).to(x.dtype)
        return torch.where(is_virtual[..., None], virtual, x)  # (B, T, C)


def attach_prompt(
    model: KoGPT,
    config: PromptConfig,
    generator: torch.Generator | None = None,
    init_ids: Sequence[int] | None = None,
) -> None:
    """Has every text begin with virtual tokens, and freezes all but them.

    Args:
        model: changed in place.
        config: how many tokens, and what computes their embeddings.
        generator: of a CPU; None for the global one.
        init_ids: without an encoder, tokens whose embeddings the virtual ones begin as, repeated
            or cut to their number; None draws from the vocabulary.

    Raises:
        ValueError: the prompt leaves no room in the context, `init_ids` is empty, holds an id that
            the model has not, or is given with an encoder; or the model, of a class of one's own,
            embeds tokens otherwise.
    """
    refuse_prepared(model)
    _refuse_other_embeddings(model)
    room = model.config.n_positions - len(model.prefix_ids) - 1
    if config.tokens > room:
        raise ParameterError(
            f"a soft prompt has {config.tokens} tokens, the context leaves room for {room}"
        )
    if init_ids is not None:
        _check_ids(init_ids, config, model.config.vocab_size)
    # The layers of an encoder draw from the global generator alone: for them it is this one.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        prompt = _new_prompt(config, model.config.n_embd)
        if config.encoder == "none":
            ids = init_ids or torch.randint(model.config.vocab_size, (config.tokens,)).tolist()
            begin = torch.tensor([ids[place % len(ids)] for place in range(config.tokens)])
            rows = model.transformer.wte(begin.to(model.device))
            prompt.embedding.weight.data = rows.detach().float()
    freeze(model)
    put_prompt(model, prompt)


def _refuse_other_embeddings(model: KoGPT) -> None:
    """Refuses a model to which a virtual token would be more than a row of `wte`."""
    width, table = model.config.n_embd, model.transformer.wte
    if table.weight.size(1) != width:
        raise ParameterError(
            f"a soft prompt is {width} wide, transformer.wte {table.weight.size(1)}"
        )
    if type(model.transformer).__module__.startswith("kogpt."):
        return  # whose other tables are not read by ids, though they may be as long
    for name, other in model.transformer.named_modules():
        is_table = isinstance(other, nn.Embedding) and name.partition(".")[0] != "wte"
        if is_table and other.num_embeddings == model.config.vocab_size:
            raise ParameterError(
                f"a soft prompt has rows of transformer.wte alone, and transformer.{name} is read"
                " by ids too"
            )


def put_prompt(model: KoGPT, prompt: SoftPrompt) -> None:
    """Has every text begin with these virtual tokens, behind those there are already."""
    if prompt.embedding.weight.device != model.device:  # parameters without contents stay put
        prompt.to(home(model))
    table = PromptedEmbedding(model.transformer.wte, prompt)
    model.transformer.set_submodule("wte", table.train(model.training))
    model.prefix_ids = (*model.prefix_ids, *range(table.first_id, table.num_embeddings))


def prompt_embeddings(model: KoGPT) -> Tensor | None:
    """The embeddings of all virtual tokens (n, C), float32, as they are computed now; or None."""
    parts = [table.prompt().detach().float() for table in _tables(model)]
    return torch.cat(parts[::-1]) if parts else None


@contextmanager
def real_ids_alone(model: KoGPT) -> Iterator[None]:
    """Promises that the model will read no virtual tokens here, so that none is computed."""
    tables = list(_tables(model))
    for table in tables:
        table.real_ids_alone = True
    try:
        yield
    finally:
        for table in tables:
            table.real_ids_alone = False


def _tables(model: KoGPT) -> Iterator[PromptedEmbedding]:
    """The embeddings that add virtual tokens, the last ones first."""
    table: nn.Module = model.transformer.wte
    while isinstance(table, PromptedEmbedding):
        yield table
        table = table.base


def _new_prompt(config: PromptConfig, width: int) -> SoftPrompt:
    hidden = config.hidden or width
    if config.encoder == "mlp":
        return MLPPrompt(config.tokens, width, hidden)
    if config.encoder == "lstm":
        return LSTMPrompt(config.tokens, width, hidden)
    return SoftPrompt(config.tokens, width)


def _check_ids(ids: Sequence[int], config: PromptConfig, size: int) -> None:
    if config.encoder != "none":
        raise ParameterError(
            f"init_ids begins embeddings, the encoder {config.encoder!r} has its own"
        )
    if not ids or not all(0 <= id < size for id in ids):
        raise ParameterError(f"init_ids is {list(ids)}, it must hold ids of 0 to {size - 1}")


def _full_precision(like: Tensor) -> torch.autocast:
    """Where autocast does nothing: an encoder is small, and its output is what is stored."""
    return torch.autocast(like.device.type, enabled=False)
