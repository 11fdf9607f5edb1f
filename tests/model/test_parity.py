"""The network against transformers' GPTJForCausalLM, which we did not write."""

import logging

import pytest
import torch
from torch.nn import functional as F

from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.rotary import RotaryEmbedding

transformers = pytest.importorskip("transformers")
logging.getLogger("transformers").setLevel(logging.ERROR)

SHAPES = {
    "rotary on a part of the head": dict(n_embd=64, n_head=4, rotary_dim=8),
    "rotary on the whole head": dict(n_embd=64, n_head=4, rotary_dim=16),
    "inner width set": dict(n_embd=48, n_head=3, rotary_dim=4, n_inner=80),
    "odd vocabulary": dict(n_embd=32, n_head=2, rotary_dim=8, vocab_size=97),
    "more heads than rotary pairs": dict(n_embd=64, n_head=16, rotary_dim=2),
    "one head": dict(n_embd=24, n_head=1, rotary_dim=6),
    "one layer": dict(n_embd=64, n_head=2, rotary_dim=32, n_layer=1),
}


def reference(seed: int = 0, **shape: int) -> torch.nn.Module:
    """A small random GPT-J of transformers, all its parameters (biases, norms) random."""
    sizes = {"vocab_size": 128, "n_positions": 96, "n_layer": 3, **shape}
    special = {"bos_token_id": 0, "eos_token_id": 1}
    config = transformers.GPTJConfig(**sizes, **special, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.GPTJForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model


def ours(theirs: torch.nn.Module, **changes: object) -> KoGPT:
    config = KoGPTConfig.from_dict({**theirs.config.to_dict(), **changes})
    model = KoGPT(config).eval()
    model.load_state_dict(theirs.state_dict())
    return model


def ids(model: KoGPT, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_agree_to_1e_5(shape):
    theirs = reference(**shape)
    model = ours(theirs)
    input_ids = ids(model, batch=2, length=96)
    with torch.no_grad():
        difference = (model(input_ids) - theirs(input_ids).logits).abs().max()
    assert difference < 1e-5


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_gradients_agree_to_1e_5_relative(shape):
    theirs = reference(**shape)
    model = ours(theirs)
    input_ids = ids(model, batch=2, length=33)
    for logits in (model(input_ids), theirs(input_ids).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        error = (parameter.grad - expected.pop(name)).norm() / parameter.grad.norm()
        assert error < 1e-5, name
    assert not expected


def test_a_null_rotary_dim_rotates_the_whole_head_as_in_the_reference():
    # With null the reference makes its table as wide as the model, which fits a single head.
    theirs = reference(n_embd=16, n_head=1, rotary_dim=16)
    for block in theirs.transformer.h:
        block.attn.rotary_dim = None
    model = ours(theirs, rotary_dim=None)
    input_ids = ids(model, batch=2, length=40)
    with torch.no_grad():
        assert (model(input_ids) - theirs(input_ids).logits).abs().max() < 1e-5


def test_rotary_dim_zero_rotates_nothing():
    theirs = reference(n_embd=32, n_head=2, rotary_dim=8)
    # One table for each block, or, from transformers 5.24 on, one for all.
    buffers = theirs.named_buffers()
    tables = [table for name, table in buffers if name.endswith("embed_positions")]
    assert tables
    for table in tables:
        sin, cos = table.chunk(2, dim=1)
        sin.zero_()
        cos.fill_(1.0)
    model = ours(theirs, rotary_dim=0)
    input_ids = ids(model, batch=2, length=40)
    with torch.no_grad():
        assert (model(input_ids) - theirs(input_ids).logits).abs().max() < 1e-5


def test_the_likeliest_token_agrees_at_full_width():
    theirs = reference(
        vocab_size=8192, n_positions=2048, n_embd=4096, n_head=16, rotary_dim=64, n_layer=1
    )
    with torch.device("meta"):
        model = KoGPT(KoGPTConfig.from_dict(theirs.config.to_dict())).eval()
    model.load_state_dict(theirs.state_dict(), assign=True)
    model.transformer.rotary.to_empty(device="cpu")
    input_ids = ids(model, batch=1, length=32)
    with torch.no_grad():
        mine, other = model(input_ids), theirs(input_ids).logits
    assert torch.equal(mine.argmax(-1), other.argmax(-1))


def test_the_angles_are_those_of_the_reference_to_the_last_bit():
    from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

    sines, cosines = create_sinusoidal_positions(2048, 64).chunk(2, dim=-1)
    table = RotaryEmbedding(64, 2048).table
    assert table[0].equal(cosines) and table[1].equal(sines)
