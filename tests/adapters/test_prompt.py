"""Soft prompts against embeddings put together by hand, encoders against peft's."""

import pytest
import torch
from torch import Tensor

from kogpt.adapters import PromptConfig, attach_prompt, prompt_embeddings
from kogpt.adapters.prompt import real_ids_alone
from kogpt.model import KoGPT, KVCache
from tests.checkpoint.tiny import CONFIG


def by_hand(model: KoGPT, prompt: Tensor, ids: Tensor) -> Tensor:
    """Logits (B, T, V) behind `prompt` (n, C), whose embeddings are put before those of `ids`."""
    table = model.transformer.wte
    while hasattr(table, "base"):
        table = table.base
    x = torch.cat((prompt.expand(len(ids), -1, -1), table(ids)), dim=1)
    rotate = model.transformer.rotary(torch.arange(x.size(1))[None])
    for block in model.transformer.h:
        x = block(x, rotate, None, None)
    return model.logits(model.transformer.ln_f(x))[:, len(prompt) :]


def with_prefix(model: KoGPT, ids: Tensor) -> Tensor:
    return torch.cat((torch.tensor([model.prefix_ids]).expand(len(ids), -1), ids), dim=1)


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
def test_virtual_tokens_are_embeddings_before_the_text(model, ids, encoder):
    attach_prompt(model, PromptConfig(4, encoder, 6), torch.Generator().manual_seed(1))
    assert model.prefix_ids == (97, 98, 99, 100)
    logits = model(with_prefix(model, ids))[:, 4:]
    assert logits.shape == (3, 9, 97)
    wanted = by_hand(model, prompt_embeddings(model), ids)
    assert torch.allclose(logits, wanted, rtol=0, atol=1e-6)


def test_a_cache_and_padding_treat_virtual_tokens_as_any(model, ids):
    attach_prompt(model, PromptConfig(3), torch.Generator().manual_seed(1))
    rows = with_prefix(model, ids)
    wanted = model(rows)
    cache = KVCache(rows.size(1))
    parts = [model(rows[:, at : at + 1], cache) for at in range(rows.size(1))]
    assert torch.allclose(torch.cat(parts, 1), wanted, rtol=0, atol=1e-5)
    padded = torch.cat((rows[:, :1].expand(-1, 2), rows), dim=1)
    shifted = model(padded, starts=torch.full((3,), 2))
    assert torch.allclose(shifted[:, 2:], wanted, rtol=0, atol=1e-5)


def test_an_error_where_real_ids_are_read_alone_leaves_virtual_ones(model, ids):
    attach_prompt(model, PromptConfig(2), torch.Generator().manual_seed(1))
    rows = with_prefix(model, ids)
    wanted = model(rows)
    with pytest.raises(KeyboardInterrupt), real_ids_alone(model):
        raise KeyboardInterrupt
    assert model(rows).equal(wanted)


def test_prompts_follow_one_another(model, ids):
    for seed in (1, 2):
        attach_prompt(model, PromptConfig(2), torch.Generator().manual_seed(seed))
    assert model.prefix_ids == (97, 98, 99, 100)
    logits = model(with_prefix(model, ids))[:, 4:]
    wanted = by_hand(model, prompt_embeddings(model), ids)
    assert torch.allclose(logits, wanted, rtol=0, atol=1e-6)


def test_a_prompt_leaves_room_behind_those_there_are(model):
    attach_prompt(model, PromptConfig(20))
    with pytest.raises(ValueError, match="has 12 tokens, the context leaves room for 11"):
        attach_prompt(model, PromptConfig(12))
    attach_prompt(model, PromptConfig(11))
    assert len(model.prefix_ids) == CONFIG.n_positions - 1


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
def test_only_the_prompt_is_trained(model, ids, encoder):
    attach_prompt(model, PromptConfig(4, encoder, 6))
    model(with_prefix(model, ids)).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("transformer.wte.prompt.")
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(("encoder", "kind"), [("mlp", "MLP"), ("lstm", "LSTM")])
def test_an_encoder_is_that_of_peft(model, encoder, kind):
    peft = pytest.importorskip("peft")
    theirs = peft.PromptEncoder(
        peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=5,
            token_dim=CONFIG.n_embd,
            num_transformer_submodules=1,
            encoder_reparameterization_type=kind,
            encoder_hidden_size=7,
        )
    )
    attach_prompt(model, PromptConfig(5, encoder, 7))
    model.transformer.wte.prompt.load_state_dict(theirs.state_dict())
    wanted = theirs(torch.arange(5)[None])[0]
    assert torch.allclose(prompt_embeddings(model), wanted, rtol=0, atol=1e-6)


def test_a_prompt_begins_as_the_tokens_given(model):
    attach_prompt(model, PromptConfig(5), init_ids=[3, 8])
    table = model.transformer.wte.weight
    assert torch.equal(prompt_embeddings(model), table[[3, 8, 3, 8, 3]])


def test_a_prompt_begins_as_tokens_of_the_vocabulary(model):
    attach_prompt(model, PromptConfig(5), torch.Generator().manual_seed(4))
    table = model.transformer.wte.weight
    same = (prompt_embeddings(model)[:, None] == table).all(-1)
    assert same.any(1).all() and same.any(0).sum() > 1


def test_a_seed_gives_the_same_prompt_and_leaves_the_global_generator(model):
    torch.manual_seed(9)
    wanted = torch.rand(3)
    found = []
    for _ in range(2):
        fresh = KoGPT(CONFIG)
        torch.manual_seed(9)
        attach_prompt(fresh, PromptConfig(2, "lstm"), torch.Generator().manual_seed(4))
        assert torch.equal(torch.rand(3), wanted)
        found.append(prompt_embeddings(fresh))
    assert torch.equal(*found)


def test_autocast_leaves_an_encoder_in_full_precision(model):
    attach_prompt(model, PromptConfig(2, "mlp"))
    wanted = prompt_embeddings(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prompt_embeddings(model), wanted)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"tokens": 0}, {}, "tokens is 0"),
        ({"tokens": 32}, {}, "has 32 tokens, the context leaves room for 31"),
        ({"encoder": "gru"}, {}, "encoder is 'gru', it must be none, mlp or lstm"),
        ({"hidden": 0}, {}, "hidden is 0"),
        ({}, {"init_ids": []}, r"init_ids is \[\]"),
        ({}, {"init_ids": [97]}, "must hold ids of 0 to 96"),
        ({"encoder": "mlp"}, {"init_ids": [1]}, "the encoder 'mlp' has its own"),
    ],
)
def test_values_out_of_range_are_refused_by_name(model, config, options, message):
    with pytest.raises(ValueError, match=message):
        attach_prompt(model, PromptConfig(**config), **options)
