"""Cross entropy over a large vocabulary, without the matrix of all logits.

At a vocabulary of 64,512 the logits of 2,048 tokens take 0.5 GB in float32, and their softmax and
its gradient as much again. Here they live a chunk of rows at a time. That takes no second product:
the gradient of a summed loss is known with the loss, so each chunk's goes back through the head at
once, in the forward pass.

Dimension key: `N` tokens, `M` tokens of a chunk, `C` width, `V` vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Head = Callable[[Tensor], Tensor]

NO_TARGET = -100
CHUNK_BYTES = 64 << 20  # of the logits of a chunk, in float32
FEWEST_ROWS = 16


def chunked_cross_entropy(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    rows_at_once: int,
    parameters: Iterable[Tensor] | None = None,
) -> Tensor:
    """Summed cross entropy of `targets` under `head(hidden)`; differentiable once.

    Rows without a target never reach the head. The head may be anything that treats each row alone:
    what it computes in is its own affair, or autocast's. Softmax, loss and the sum of the chunks'
    gradients are at least float32.

    Args:
        hidden: (N, C).
        head: (M, C) to logits (M, V).
        targets: ids (N,), -100 for none.
        rows_at_once: rows of a chunk, M; see `chunk_rows`.
        parameters: those that the head may use; what is not frozen of them, and used, gets a
            gradient. None for those of a head that is a module.

    Returns:
        The sum in nats, at least float32, 0 where there is no target.
    """
    if parameters is None:
        parameters = head.parameters() if isinstance(head, nn.Module) else ()
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not torch.is_grad_enabled():
        hidden, trained = hidden.detach(), []
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head, targets, rows_at_once, *trained)
    return loss


def chunk_rows(vocab_size: int) -> int:
    """Rows whose logits take 64 MiB."""
    return max(FEWEST_ROWS, CHUNK_BYTES // (4 * vocab_size))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        rows_at_once: int,
        *trained: Tensor,
    ) -> Tensor:
        """The loss. Keeps the gradients of what wants one: `hidden`, and `trained` of the head."""
        inputs = [hidden] if ctx.needs_input_grad[0] else []
        loss = hidden.new_zeros((), dtype=_wide(hidden.dtype))
        of_inputs = [torch.zeros_like(x) for x in inputs]
        known = (targets != NO_TARGET).nonzero().squeeze(1)
        # None until it shows what is used, which is little of what a head of one's own might use.
        of_trained = [None if len(known) else torch.zeros_like(p) for p in trained]
        for rows in known.split(rows_at_once):
            x = hidden[rows].detach().requires_grad_(bool(inputs))
            with torch.enable_grad():
                logits = head(x)  # (M, V)
            loss_of_rows, grad = _cross_entropy(logits.detach(), targets[rows])
            loss += loss_of_rows
            if not (inputs or trained):
                continue
            wanted = [*([x] if inputs else []), *trained]
            grads = torch.autograd.grad(logits, wanted, grad.to(logits.dtype), allow_unused=True)
            for total in of_inputs:
                total[rows] = grads[0]
            for n, part in enumerate(grads[len(inputs) :]):
                of_trained[n] = _add(of_trained[n], part)
        of_trained = [x if x is None else x.to(p) for x, p in zip(of_trained, trained, strict=True)]
        ctx.save_for_backward(*of_inputs, *of_trained)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grads = [grad if grad is None else grad * grad_loss for grad in ctx.saved_tensors]
        of_hidden = grads.pop(0) if ctx.needs_input_grad[0] else None
        return of_hidden, None, None, None, *grads


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss of targets (M,) and its gradient of the logits (M, V): softmax less one-hot."""
    log_probabilities = logits.log_softmax(1, dtype=_wide(logits.dtype))
    columns = targets[:, None]
    loss = -log_probabilities.gather(1, columns).sum()
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, columns, gradient.new_full(columns.shape, -1.0))
    return loss, gradient


def _add(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Adds to a sum of at least float32, which the first part begins; in place."""
    if part is None:
        return total
    # A copy: parts of several parameters may be one tensor.
    return part.to(_wide(part.dtype), copy=True) if total is None else total.add_(part)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
