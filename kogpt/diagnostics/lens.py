"""What a model does with one prompt: where its heads look, and what its layers would predict.

Both are read off while the readable network runs, by hooks that are gone afterwards.

Dimension key as in the model, and `L` layers, `N` shown tokens (the last of S), `K` predictions.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from kogpt.checkpoint.dtypes import dtype_name
from kogpt.diagnostics.capture import Attend, Undo, over_attend
from kogpt.diagnostics.lens_labels import Piece, Token, completed, piece_of, tokens_of
from kogpt.errors import ParameterError
from kogpt.generation.requests import Prompt, evaluation_mode, prompt_ids
from kogpt.generation.scoring import refuse_unusable
from kogpt.model import KoGPT
from kogpt.ranges import AT_LEAST_ONE
from kogpt.tokenizer import Tokenizer

# How far from 1 weights may sum. Rounding to float32 makes 1e-6 of it; an attention that computes
# in half precision, whatever it is given, makes up to this.
SUM_ERROR = 0.01


@dataclass(frozen=True)
class Layers:
    """What each layer would predict: its hidden state, read by the model's last norm and head.

    The first of the L + 1 rows is the embedding, the last one the model's own prediction; layers
    are counted as they run.

    Attributes:
        top_ids: the likeliest next tokens, (L + 1, N, K).
        top_probabilities: their probabilities, (L + 1, N, K).
        entropy: of the whole distribution, in bits, (L + 1, N).
        next_probability: of the token that really follows, (L + 1, N); NaN where none does.
        next_rank: its place, 1 for the likeliest, (L + 1, N); 0 where none does.
    """

    top_ids: Tensor
    top_probabilities: Tensor
    entropy: Tensor
    next_probability: Tensor
    next_rank: Tensor


@dataclass(frozen=True)
class Lens:
    """One prompt, seen through a model; tensors are on the CPU.

    Attributes:
        prompt: the text, or that of the ids.
        tokens: the N shown tokens.
        skipped: tokens ahead of those, which the model has read too.
        attention: weights (L, H, N, N), at least float32: from a token (third) to a token (fourth).
            Rows sum to 1, less what goes to skipped tokens.
        layers: what each layer would predict.
        pieces: what the predicted ids stand for.
        shape: of the model: layers, heads, width, vocabulary, parameters, dtype.
    """

    prompt: str
    tokens: list[Token]
    skipped: int
    attention: Tensor
    layers: Layers
    pieces: dict[int, Piece]
    shape: dict[str, Any]

    def predictions(self, layer: int, position: int) -> list[dict[str, Any]]:
        """The likeliest next tokens behind one token, after so many layers."""
        found = []
        ids = self.layers.top_ids[layer, position].tolist()
        probabilities = self.layers.top_probabilities[layer, position].tolist()
        for id, probability in zip(ids, probabilities, strict=True):
            piece = self.pieces[id]
            whole = completed(self.tokens[position].pending, piece.data)
            entry = {"id": id, "piece": piece.label, "probability": probability}
            found.append(entry | ({"completes": whole} if whole else {}))
        return found

    def following(self, layer: int, position: int) -> dict[str, Any] | None:
        """Probability and rank of the token that really follows; None where none does."""
        rank = int(self.layers.next_rank[layer, position])
        if not rank:
            return None
        return {"probability": float(self.layers.next_probability[layer, position]), "rank": rank}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain objects."""
        rows, columns = self.layers.entropy.shape
        return {
            "prompt": self.prompt,
            "model": self.shape,
            "skipped": self.skipped,
            "tokens": [_as_dict(token) for token in self.tokens],
            "attention": self.attention.tolist(),
            "layers": [
                [self._cell(row, column) for column in range(columns)] for row in range(rows)
            ],
        }

    def _cell(self, layer: int, position: int) -> dict[str, Any]:
        return {
            "top": self.predictions(layer, position),
            "entropy": float(self.layers.entropy[layer, position]),
            "next": self.following(layer, position),
        }

    def __str__(self) -> str:
        """What each layer would write behind the prompt, a line each."""
        last = len(self.tokens) - 1
        names = ["embedding", *(f"layer {n}" for n in range(1, len(self.layers.entropy)))]
        lines = []
        for row, name in enumerate(names):
            found = self.predictions(row, last)
            shown = "  ".join(f"{one['piece']} {one['probability']:.1%}" for one in found)
            lines.append(f"{name:9}  {float(self.layers.entropy[row, last]):4.1f} bits  {shown}")
        return "\n".join(lines)


def look(
    model: KoGPT, tokenizer: Tokenizer, prompt: Prompt, *, top: int = 5, last: int | None = None
) -> Lens:
    """Has the model read a prompt and keeps where it looked and what it would have written.

    Weights of attention are exact for any attention that averages values, whatever the average:
    `attend` is linear in the values, so it is asked once more with unit vectors for values.

    The hidden state after each layer goes through the model's last norm and head, as if there
    were no layers between. Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).

    Args:
        model: the readable network, of any attention; dropout is off while this runs.
        tokenizer: its tokenizer.
        prompt: a text, or ids.
        top: how many of the likeliest tokens are kept.
        last: how many tokens are shown, the last ones; None for all. All are read.

    Raises:
        ValueError: `top` or `last` is below 1, the model is one prepared for decoding, or its
            attention does not average values.
        InputRefusedError: the prompt is longer than the context, or empty without a bos.
    """
    for name, value in (("top", top), ("last", last)):
        if value is not None:
            AT_LEAST_ONE.check(name, value)
    text_ids = prompt_ids(prompt, "the prompt", model, tokenizer)
    ids = [*model.prefix_ids, *text_ids]
    shown = min(last or len(ids), len(ids))
    with torch.inference_mode(), evaluation_mode(model), recording(model, shown) as record:
        read = model.transformer(torch.tensor([ids], device=model.device))[0, -shown:]
        layers = read_layers(model, record.hidden, read, ids, min(top, model.config.vocab_size))
    attention = torch.stack(record.attention)
    known = {id: piece_of(tokenizer, id) for id in layers.top_ids.unique().tolist()}
    return Lens(
        prompt=prompt if isinstance(prompt, str) else tokenizer.decode(text_ids),
        tokens=tokens_of(tokenizer, ids, len(model.prefix_ids))[-shown:],
        skipped=len(ids) - shown,
        attention=attention,
        layers=layers,
        pieces=known,
        shape=shape_of(model, attention),
    )


def shape_of(model: KoGPT, attention: Tensor) -> dict[str, Any]:
    return {
        "layers": attention.size(0),
        "heads": attention.size(1),
        "width": model.config.n_embd,
        "vocabulary": model.config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype_name(model.dtype),
    }


@dataclass
class Record:
    """What hooks keep of a run.

    Attributes:
        hidden: the embedding and the state after each block, (N, C) each.
        attention: weights of each layer, (H, N, N).
    """

    hidden: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)


@contextmanager
def recording(model: KoGPT, shown: int) -> Iterator[Record]:
    """Keeps states and weights of the last `shown` tokens of what the model reads meanwhile.

    Raises:
        ValueError: the model has no blocks to hook into.
    """
    blocks = getattr(model.transformer, "h", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ParameterError(
            "this model is prepared for decoding: load it with fast=False to look in"
        )
    record = Record()
    with ExitStack() as undo:

        def keep(block: nn.Module, arguments: tuple[Any, ...], state: Tensor) -> None:
            record.hidden.append(state[0, -shown:])

        def keep_first(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not record.hidden:
                keep(block, (), signature(block.forward).bind(*args, **kwargs).args[0])

        for block in blocks:
            undo.callback(block.register_forward_pre_hook(keep_first, with_kwargs=True).remove)
            undo.callback(block.register_forward_hook(keep).remove)
            undo.callback(_note_weights(block, record, shown))
        yield record


def _note_weights(block: nn.Module, record: Record, shown: int) -> Undo:
    """Has `attend` of one layer note its weights, each time before it answers as ever."""
    attention = getattr(block, "attn", None)
    if attention is None or not hasattr(attention, "attend"):
        raise ParameterError(f"{type(block).__name__} has no `attn` with an `attend` to look into")

    def answer(attend: Attend, args: list[Any]) -> Tensor:
        q, k, v, *rest = args

        def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, *rest)

        weights = attention_weights(mix, q, k, v, shown)
        layer = len(record.attention)
        if layer == len(record.hidden):  # what has entered the first block, and left those before
            raise ParameterError(f"layer {layer} attends more than once: a picture shows one way")
        refuse_no_average(weights, layer)
        record.attention.append(weights[:, :, -shown:].cpu())
        return attend(*args)

    return over_attend(attention, answer)


def attention_weights(attend: Attend, q: Tensor, k: Tensor, v: Tensor, shown: int) -> Tensor:
    """The weights by which `attend` mixes the values of one row (B = 1), as it itself has them.

    With column j of the identity for values, dim j of the result is the weight of token j. Values
    keep their width, which a kernel may rely on, so columns are asked for D at a time.

    Returns:
        (H, N, 1 + N) for the last N = `shown` tokens: the sum of all S weights of a token, then
        those of the shown ones. At least float32, as are the q and k that it is asked with.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)
    S, D = v.size(1), v.size(3)
    columns = torch.eye(S, dtype=wide, device=v.device)[:, S - shown :]
    columns = torch.cat((columns.new_ones(S, 1), columns), dim=1)  # (S, 1 + N)
    parts = []
    for part in columns.split(D, dim=1):
        values = torch.nn.functional.pad(part, (0, D - part.size(1)))
        values = values[None, :, None].expand(1, S, v.size(2), D)
        parts.append(attend(q, k, values.contiguous())[0, -shown:])  # (N, H, D)
    return torch.cat(parts, dim=2)[..., : 1 + shown].movedim(1, 0)


def refuse_no_average(weights: Tensor, layer: int) -> None:
    """Raises ValueError if weights (H, N, 1 + N), sums first, are not those of an average."""
    sums, lowest = weights[..., 0], float(weights.min())
    worst = float(sums.flatten()[(sums - 1).abs().argmax()])
    if not (abs(worst - 1) < SUM_ERROR and lowest > -SUM_ERROR):
        raise ParameterError(
            f"the attention of layer {layer + 1} does not average values: weights sum to"
            f" {worst:.3g}, the least is {lowest:.3g}"
        )


def read_layers(
    model: KoGPT, hidden: list[Tensor], read: Tensor, ids: list[int], top: int
) -> Layers:
    """The states (N, C) of the last N of `ids` as predictions.

    The last row is that of `read` (N, C), what the head is really given, whatever lies between.
    """
    shown, vocab_size = len(hidden[0]), model.config.vocab_size
    targets = [*ids[len(ids) - shown + 1 :], vocab_size]  # an id that there is not
    follows = torch.tensor(targets, device=model.device)
    states = [*map(model.transformer.ln_f, hidden[:-1]), read]
    rows = [_read(model, state, follows, top) for state in states]
    return Layers(*(torch.stack(kind).cpu() for kind in zip(*rows, strict=True)))


def _read(model: KoGPT, state: Tensor, follows: Tensor, top: int) -> tuple[Tensor, ...]:
    """The fields of `Layers` for one layer, a part of the positions at a time."""
    parts = []
    for rows, targets in zip(state.split(128), follows.split(128), strict=True):
        logits = model.logits(rows)  # (n, V)
        refuse_unusable(logits)
        logprobs = logits.log_softmax(-1)
        best, best_ids = logprobs.topk(top)
        known = targets < logprobs.size(-1)  # a virtual token is predicted by nobody
        chosen = logprobs.gather(-1, targets.where(known, 0)[:, None])  # (n, 1)
        rank = 1 + (logprobs > chosen).sum(-1)
        entropy = torch.special.entr(logprobs.exp()).sum(-1) / math.log(2)
        probability = chosen.squeeze(-1).exp().where(known, math.nan)
        parts.append((best_ids, best.exp(), entropy, probability, rank.where(known, 0)))
    return tuple(torch.cat(kind) for kind in zip(*parts, strict=True))


def _as_dict(token: Token) -> dict[str, Any]:
    piece = token.piece
    values = {"id": piece.id, "piece": piece.label, "kind": piece.kind, "bytes": piece.data.hex()}
    return values | ({"completes": token.completes} if token.completes else {})
