"""What the head of a classifier says of texts.

It looks at the hidden state of a text's last token. The contents of a text, such as two sentences
that are compared, follow one another, each between begin and end: `[BOS] a [EOS] [BOS] b [EOS]`.

Dimension key: `B` rows, `T` tokens, `C` width, `L` outputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kogpt.adapters.head import Head, head_of
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.evaluation.likelihood import Ids
from kogpt.generation.requests import evaluation_mode
from kogpt.model import KoGPT
from kogpt.ranges import AT_LEAST_ONE
from kogpt.tokenizer import Tokenizer

Contents = str | Sequence[str]


@dataclass(frozen=True)
class Prediction:
    """What a head says of a text.

    Attributes:
        outputs: of the head: log-probabilities of classes but for a constant, or one number.
        labels: names of the outputs.
    """

    outputs: tuple[float, ...]
    labels: tuple[str, ...]

    @property
    def value(self) -> float | None:
        """The number, of a head of one output; None of classes."""
        return self.outputs[0] if len(self.outputs) == 1 else None

    @property
    def probabilities(self) -> dict[str, float]:
        """Of each class, by its label; none of a head of one output."""
        if self.value is not None:
            return {}
        shares = torch.tensor(self.outputs, dtype=torch.float64, device="cpu").softmax(0).tolist()
        return dict(zip(self.labels, shares, strict=True))

    @property
    def label(self) -> str | None:
        """The likeliest class; None of a head of one output."""
        return (
            None if self.value is not None else self.labels[self.outputs.index(max(self.outputs))]
        )


def classify(
    model: KoGPT,
    tokenizer: Tokenizer,
    texts: str | Sequence[Contents],
    *,
    batch_size: int = 32,
) -> list[Prediction]:
    """Asks the head of a model of texts, as finetuning with a head or by regression asks it.

    Where the head has one output, several contents are read in both orders, and the mean counts.

    Args:
        model: with a head, as `kogpt.load_classifier` or an adapter gives it.
        tokenizer: of the model.
        texts: one, or several; each a text, or the contents of one, such as a pair.
        batch_size: texts read at once.

    Returns:
        What the head says of each.

    Raises:
        InputRefusedError: a text is empty or longer than the context.
        ValueError: the model has no head, or `texts` are no texts.
    """
    AT_LEAST_ONE.check("batch_size", batch_size)
    head = head_of(model)
    if head is None:
        raise ParameterError("the model has no head: kogpt.load_classifier loads one with it")
    listed = _listed(texts)
    rows = [
        row
        for index, contents in enumerate(listed)
        for row in _rows_of(contents, index, model, tokenizer, head.out_features == 1)
    ]
    found: list[list[Tensor]] = [[] for _ in listed]
    for index, outputs in _outputs(model, head, rows, batch_size):
        found[index].append(outputs)
    means = (torch.stack(of_orders).mean(0) for of_orders in found)
    return [Prediction(tuple(outputs.tolist()), head.labels) for outputs in means]


def for_head(
    tokenizer: Tokenizer, prefix: Ids, contents: Sequence[str], both_orders: bool
) -> tuple[Ids, ...]:
    """The ids that a head looks at the last of: of one text, or of both orders of its contents."""
    bos, eos = tokenizer.bos_id is not None, tokenizer.eos_id is not None
    parts = [tokenizer.encode(content, bos=bos, eos=eos) for content in contents]
    orders = [parts, parts[::-1]] if both_orders and len(parts) > 1 else [parts]
    return tuple((*prefix, *(id for part in order for id in part)) for order in orders)


def _listed(texts: str | Sequence[Contents]) -> list[tuple[str, ...]]:
    """Texts as their contents."""
    listed = []
    for text in [texts] if isinstance(texts, str) else texts:
        contents = (text,) if isinstance(text, str) else text
        is_list = isinstance(contents, Sequence) and len(contents) > 0
        if not is_list or not all(isinstance(content, str) for content in contents):
            raise ParameterError(f"texts hold {text!a}: neither a text nor the contents of one")
        listed.append(tuple(contents))
    return listed


def _rows_of(
    contents: tuple[str, ...], index: int, model: KoGPT, tokenizer: Tokenizer, both_orders: bool
) -> list[tuple[int, Ids]]:
    """What is read of one text."""
    prefix, most = tuple(model.prefix_ids), model.config.n_positions
    orders = for_head(tokenizer, prefix, contents, both_orders)
    if len(orders[0]) == len(prefix):
        raise InputRefusedError(f"text {index}: it is empty")
    if len(orders[0]) > most:
        raise InputRefusedError(
            f"text {index}: it has {len(orders[0])} tokens, the context of the model holds {most}"
        )
    return [(index, ids) for ids in orders]


def _outputs(
    model: KoGPT, head: Head, rows: Sequence[tuple[int, Ids]], batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """What the head says of each row, (L,), with the row's number; those about as long together."""
    rows = sorted(rows, key=lambda row: len(row[1]))
    with evaluation_mode(model), torch.inference_mode():
        for first in range(0, len(rows), batch_size):
            numbers, texts = zip(*rows[first : first + batch_size], strict=True)
            width = max(map(len, texts))  # what fills a row up comes after all that is looked at
            ids = torch.tensor([text + (0,) * (width - len(text)) for text in texts])
            hidden = model.transformer(ids.to(model.device))  # (B, T, C)
            lasts = torch.tensor([len(text) - 1 for text in texts], device=model.device)
            states = hidden[torch.arange(len(texts), device=model.device), lasts]
            yield from zip(numbers, head(states.float()).double().cpu(), strict=True)
