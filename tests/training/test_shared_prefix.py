"""Virtual tokens that are read once, against the same tokens read in every row."""

import dataclasses

import pytest
import torch

from kogpt.adapters import PromptConfig, attach_prompt
from kogpt.model import KoGPT
from kogpt.training.activation_checkpointing import checkpoint_activations
from kogpt.training.shared_prefix import hidden_states
from tests.training.conftest import TINY


def prompted(encoder: str, *more: str, **changes: float) -> KoGPT:
    """A model with a soft prompt of 5 tokens, and further ones."""
    torch.manual_seed(0)
    model = KoGPT(dataclasses.replace(TINY, **changes)).double().train()
    for kind in (encoder, *more):
        attach_prompt(model, PromptConfig(5, kind, 6), torch.Generator().manual_seed(1))
    return model.double()


def rows(model: KoGPT, texts: int = 4, length: int = 9) -> torch.Tensor:
    text = torch.randint(
        TINY.vocab_size, (texts, length), generator=torch.Generator().manual_seed(2)
    )
    return torch.cat((torch.tensor([model.prefix_ids]).expand(texts, -1), text), dim=1)


def gradients(model: KoGPT, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss in which every number has a weight of its own."""
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)).double()
    model.zero_grad()
    (hidden * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def calls(model: KoGPT) -> list[tuple[int, ...]]:
    """The shapes of what the first block reads from now on."""
    shapes: list[tuple[int, ...]] = []
    model.transformer.h[0].ln_1.register_forward_pre_hook(
        lambda _, inputs: shapes.append(tuple(inputs[0].shape))
    )
    return shapes


@pytest.mark.parametrize("encoder", [("none",), ("mlp",), ("lstm",), ("mlp", "none")])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["prompt", "all"])
def test_states_and_gradients_are_those_of_rows_read_whole(encoder, checkpointed, whole):
    model = prompted(*encoder)
    if whole:
        model.requires_grad_(True)
    ids = rows(model)
    wanted = model.transformer(ids)
    expected = gradients(model, wanted)
    if checkpointed:
        checkpoint_activations(model)
    shapes = calls(model)
    found = hidden_states(model, ids)
    n = len(model.prefix_ids)
    assert shapes == [(1, n, TINY.n_embd), (4, 9, TINY.n_embd)]
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    actual = gradients(model, found)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(actual[name], gradient, rtol=1e-9, atol=1e-12), name


def test_a_prompt_is_computed_once():
    model = prompted("lstm")
    asked = []
    model.transformer.wte.prompt.register_forward_hook(lambda *_: asked.append(1))
    hidden_states(model, rows(model))
    assert asked == [1]
    model.transformer(rows(model))  # and is asked for again, where it may be read
    assert asked == [1, 1]


@pytest.mark.parametrize("name", ["attn_pdrop", "embd_pdrop", "resid_pdrop"])
def test_rows_drop_out_each_on_its_own(name):
    model = prompted("none", **{name: 0.5})
    ids, shapes = rows(model), calls(model)
    hidden = hidden_states(model, ids)
    assert shapes == [(4, 14, TINY.n_embd)] and not torch.equal(hidden[0, :5], hidden[1, :5])
    hidden_states(model.eval(), ids)
    assert shapes[1:] == [(1, 5, TINY.n_embd), (4, 9, TINY.n_embd)]


def test_packed_rows_single_rows_and_prompts_alone_are_read_whole():
    model = prompted("none")
    ids, shapes = rows(model), calls(model)
    hidden_states(model, ids, torch.zeros_like(ids))
    hidden_states(model, ids[:1])
    hidden_states(model, ids[:, :5])
    assert shapes == [(4, 14, TINY.n_embd), (1, 14, TINY.n_embd), (4, 5, TINY.n_embd)]


def test_it_is_compiled_as_one_graph():
    """What is asked about the model's classes, by files among others, is no part of it."""
    model = prompted("none")
    ids = rows(model)
    compiled = torch.compile(hidden_states, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(model, ids), hidden_states(model, ids))
