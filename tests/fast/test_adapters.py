"""The prepared model with adapters computes what the model to read does with them."""

import pytest
import torch

import kogpt
from kogpt.adapters import (
    TARGETS,
    LoRAConfig,
    PromptConfig,
    attach_head,
    attach_prompt,
    load_adapters,
    merge,
    write_adapter,
)
from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert, load_model
from kogpt.fast import load_fast
from kogpt.model import KoGPT, KVCache
from tests.adapters.filled import trained_lora

FORMATS = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "zero points": {"quantize": "int4", "zero_points": True},
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two of updates, a soft prompt, and one with a head."""
    parent = tmp_path_factory.mktemp("adapters")
    for name, targets in {
        "lora": TARGETS,
        "more": ("q_proj", "fc_out"),
        "headed": ("v_proj",),
    }.items():
        model = load_model(dtype="float32")
        trained_lora(model, LoRAConfig(targets=targets, rank=4, alpha=0.4), seed=len(name))
        if name == "headed":
            attach_head(model, 3, torch.Generator().manual_seed(3))
        write_adapter(parent / name, model)
    model = load_model(dtype="float32")
    attach_prompt(model, PromptConfig(6), torch.Generator().manual_seed(1))
    write_adapter(parent / "prompt", model)
    return parent


@pytest.fixture(scope="module", params=FORMATS)
def folder(request, tmp_path_factory):
    target = tmp_path_factory.mktemp("formats") / "model"
    convert(BOX, target, ConversionOptions(**FORMATS[request.param], quiet=True))
    return target


SETS = [["lora"], ["prompt"], ["lora", "more", "prompt"], ["prompt", "headed"]]


def read(model: KoGPT, ids: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    prefix = torch.tensor([model.prefix_ids], dtype=torch.long).expand(len(ids), -1)
    rows, cache = torch.cat((prefix, ids), dim=1), KVCache(60)
    with torch.inference_mode():
        return torch.cat([model(part, cache) for part in rows.split(sizes, dim=1)], dim=1)


def error(model: KoGPT, plain: KoGPT, sizes: list[int]) -> float:
    """Norm of the difference of logits, over theirs.

    Not the largest difference, which of a head's few outputs is another with each draw.
    """
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 8000, (2, 40 - len(model.prefix_ids)), generator=random)
    wanted = read(plain, ids, [40])
    return float((read(model, ids, sizes) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("names", SETS, ids=" ".join)
def test_logits_are_those_of_the_model_to_read(folder, adapters, names):
    chosen = [adapters / name for name in names]
    plain = kogpt.load(folder, torch.float32, adapter=chosen)[0]
    fast = kogpt.load(folder, torch.float32, adapter=chosen, fast=True)[0]
    assert tuple(fast.prefix_ids) == tuple(plain.prefix_ids)
    bare = load_fast(folder, torch.float32), load_model(folder, torch.float32)
    for sizes in ([40], [20, *[1] * 20]):
        # Integers meet x rounded to 16 bits, or to 8 of many rows: no more than without adapters.
        assert error(fast, plain, sizes) <= 1.5 * error(*bare, sizes) + 1e-5


def test_updates_change_floats_and_lie_beside_integers(folder, adapters):
    model = load_fast(folder, adapters=adapters / "more")
    block = model.transformer.blocks[0]
    (enter,), (leave,) = block.enter.linears, block.leave.linears
    is_integer = enter.weight.scale is not None
    assert (enter.update is not None) == (leave.update is not None) == is_integer
    if is_integer:  # there is no chain of kernels with it
        assert not block.has_chain(torch.zeros(1, 256))
        assert len(list(model.streamed())) == len(list(load_fast(folder).streamed())) + 4 * 6


def test_weights_of_16_bits_are_rounded_once(adapters, tmp_path):
    convert(BOX, tmp_path / "bf16", ConversionOptions(dtype="bfloat16", quiet=True))
    fast = load_fast(tmp_path / "bf16", "bfloat16", adapters=adapters / "lora")
    merged = load_model(tmp_path / "bf16", "float32")
    load_adapters(merged, adapters / "lora")
    merge(merged)
    attn = merged.transformer.h[0].attn
    wanted = torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]).bfloat16()
    found = fast.transformer.blocks[0].enter.linears[0].weight.values[: len(wanted)]
    assert (found == wanted).float().mean() > 0.999  # sums in another order now and then


def test_a_head_comes_along(adapters):
    plain = kogpt.load(adapter=adapters / "headed")[0]
    fast = kogpt.load(adapter=adapters / "headed", fast=True)[0]
    ids = torch.randint(4, 8000, (2, 12), generator=torch.Generator().manual_seed(1))
    found = [m.score(m.transformer(ids)[:, -1].float()) for m in (plain, fast)]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-2 * found[0].abs().max().item())
    assert not any(parameter.requires_grad for parameter in fast.parameters())


@pytest.mark.parametrize("fast", [False, True])
def test_texts_are_those_of_the_model_to_read(adapters, fast):
    chosen = [adapters / "lora", adapters / "prompt"]
    params = kogpt.SamplingParams(temperature=0, max_new_tokens=16)
    texts = []
    for kind in (False, fast):
        model, tokenizer = kogpt.load(dtype=torch.float32, adapter=chosen, fast=kind)
        prompts = ["이 영화를 보고", "배우들의 연기는 좋았지만"]
        texts.append([g.text for g in kogpt.generate(model, tokenizer, prompts, params)])
    assert texts[0] == texts[1]
