"""The neighbours prepared for decoding, against transformers and the networks to read."""

import copy
import math
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import kogpt
from kogpt.adapters import (
    TARGETS,
    LoRAConfig,
    PromptConfig,
    attach_head,
    attach_prompt,
    load_adapters,
    write_adapter,
)
from kogpt.checkpoint import ConversionOptions, convert, inspect, load_model, open_checkpoint
from kogpt.checkpoint.safetensors_file import StoredRows
from kogpt.errors import InputRefusedError
from kogpt.fast import FastKoGPT, load_fast
from kogpt.generation import PromptLookup, SamplingParams, generate
from kogpt.model import KVCache
from kogpt.model.variants import GPT2, GPTNeoX, gpt2, gpt_neox, read_config
from tests.adapters.filled import trained_lora
from tests.kernels import budget
from tests.kernels.products import rounded

transformers = pytest.importorskip("transformers")

MODELS = {
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=8000, n_positions=64, n_embd=256, n_layer=3, n_head=4)
    ),
    "GPT-NeoX": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=8000,
            max_position_embeddings=64,
            hidden_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=512,
        )
    ),
}
FORMATS = {
    "float32": {},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "int4 with zero points": {"quantize": "int4", "zero_points": True},
}
STEPS = ([40], [30, *[1] * 10], [5] * 8)
on_both = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small random model of transformers by its name, and its folder."""
    made = {}

    def get(name: str) -> tuple[nn.Module, Path]:
        if name not in made:
            torch.manual_seed(0)
            model = MODELS[name]().eval()
            for part, parameter in model.named_parameters():
                is_norm = "ln_" in part or "norm" in part
                mean = float(is_norm and part.endswith("weight"))
                nn.init.normal_(parameter, mean, std=0.08)
            folder = tmp_path_factory.mktemp("released")
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return get


@pytest.fixture(scope="module")
def converted(released, tmp_path_factory):
    """The same converted to a format."""
    parent = tmp_path_factory.mktemp("converted")

    def folder(name: str, format: str = "float32") -> Path:
        target = parent / f"{name} {format}"
        if not target.exists():
            convert(released(name)[1], target, ConversionOptions(**FORMATS[format], quiet=True))
        return target

    return folder


@torch.inference_mode()
def read(model, sizes: list[int]) -> torch.Tensor:
    ids = torch.randint(8000, (1, 40), generator=torch.Generator().manual_seed(3))
    rows, cache = torch.cat((torch.tensor([[*model.prefix_ids]]).long(), ids), dim=1), KVCache(60)
    return torch.cat([model(part, cache).float() for part in rows.split(sizes, dim=1)], dim=1)


@on_both
@pytest.mark.parametrize("sizes", STEPS)
def test_logits_are_those_of_transformers(released, converted, name, sizes):
    theirs, folder = released(name)
    ids = torch.randint(8000, (1, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = theirs(ids).logits
    assert wanted.abs().max() > 0.5
    for path in (folder, converted(name)):
        fast = load_fast(path)
        assert isinstance(fast, FastKoGPT)
        torch.testing.assert_close(read(fast, sizes), wanted, rtol=0, atol=1e-5)


def rounds_its_inputs(model, fast):
    """The model with the maths of the kernels: inputs of integer weights in integers."""

    def hook(weight):
        return lambda _, given: (rounded(given[0].flatten(0, -2), weight).view(given[0].shape),)

    for block, prepared in zip(model.transformer.h, fast.transformer.blocks, strict=True):
        attn, mlp = block.attn, block.mlp
        (enter,), (*_, leave) = prepared.enter.linears, prepared.leave.linears
        for module in (attn.q_proj, attn.k_proj, attn.v_proj):
            module.register_forward_pre_hook(hook(enter.weight))
        mlp.fc_in.register_forward_pre_hook(hook(prepared.inner.weight))
        for module in (attn.out_proj, mlp.fc_out):
            module.register_forward_pre_hook(hook(leave.weight))
    if fast.lm_head.weight.scale is not None:
        model.lm_head.register_forward_pre_hook(hook(fast.lm_head.weight))
    return model


@on_both
@pytest.mark.parametrize("format", [name for name in FORMATS if name.startswith("int")])
@pytest.mark.parametrize("sizes", STEPS)
def test_integers_stay_integers_and_are_within_the_budget(converted, name, format, sizes):
    folder = converted(name, format)
    model, fast = (load(folder, dtype=torch.float32) for load in (load_model, load_fast))
    bits = 8 if format == "int8" else 4
    *layers, head = fast.linears()
    assert {each.weight.bits for each in layers} == {bits}
    with open_checkpoint(folder) as reader:
        stored = reader.stored_as("transformer.wte.weight" if name == "GPT-2" else "lm_head.weight")
    assert (head.weight.bits == 8) == (stored == "int8")
    truth = read(copy.deepcopy(model).double(), [40])
    low = read(rounds_its_inputs(model, fast), sizes)
    budget.check(format, read(fast, sizes), truth, low, factor=budget.FORWARD)


@on_both
@pytest.mark.parametrize("format", ["float16", "bfloat16", "int8", "int4 with zero points"])
@pytest.mark.parametrize("packed", [False, True], ids=["mapped", "packed"])
def test_matrices_may_lie_in_their_file_or_be_packed(converted, name, format, packed, monkeypatch):
    folder = converted(name, format)
    copied = load_fast(folder)
    monkeypatch.setattr("kogpt.fast.loading.MAPPED", 0)
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: packed)
    fast = load_fast(folder)
    assert isinstance(fast.transformer.embedding, StoredRows)
    if format.startswith("int"):
        products = 6
    elif packed and format == "bfloat16":
        products = 4 if name == "GPT-2" else 3
    else:  # q, k and v lie together in releases
        products = 4
    assert all(len(list(block.linears())) == products for block in fast.transformer.blocks)
    # float16 is computed in float32. Of bfloat16 two products are rounded to 8 bits before they are
    # added, where one was; of integers inputs are, by the whole row or its two parts.
    for sizes in STEPS:
        found, wanted = read(fast, sizes), read(copied, sizes)
        assert (found - wanted).norm() <= (1e-5 if format == "float16" else 1e-2) * wanted.norm()


@on_both
@pytest.mark.parametrize("format", ["float32", "int8"])
def test_adapters_come_along(converted, name, format, tmp_path):
    folder = converted(name, format)
    model = load_model(folder, torch.float32)
    trained_lora(model, LoRAConfig(targets=TARGETS, rank=4, alpha=0.4), seed=1)
    attach_head(model, 3, torch.Generator().manual_seed(3))
    write_adapter(tmp_path / "lora", model)
    model = load_model(folder, torch.float32)
    attach_prompt(model, PromptConfig(6), torch.Generator().manual_seed(1))
    write_adapter(tmp_path / "prompt", model)
    chosen = [tmp_path / "lora", tmp_path / "prompt"]
    plain, fast = load_model(folder, torch.float32), load_fast(folder, torch.float32, None, chosen)
    load_adapters(plain, chosen)
    bare = load_model(folder, torch.float32), load_fast(folder, torch.float32)
    assert isinstance(fast, FastKoGPT) and len(fast.prefix_ids) == 6
    for sizes in ([40], [20, *[1] * 20]):
        a, b = (read(each, [6, *sizes])[:, 6:] for each in (plain, fast))
        c, d = (read(each, sizes) for each in bare)
        # Integers meet rounded inputs: that may cost no more than it does without adapters.
        assert (a - b).norm() / a.norm() <= 1.5 * (c - d).norm() / c.norm() + 1e-5
        assert (a - c).norm() > 0.01 * c.norm()


@on_both
def test_texts_are_those_of_the_network_to_read(converted, name):
    """In batches of unequal lengths, and with guesses."""
    tokenizer = kogpt.load_tokenizer()
    prompts = ["이 영화를 보고", "배우들의 연기는 좋았지만 이야기가 아쉬웠다", "별로"]
    params = SamplingParams(temperature=0, max_new_tokens=24)
    models = load_model(converted(name)), load_fast(converted(name))
    texts = [
        [each.text for each in generate(model, tokenizer, prompts, params, **how)]
        for model in models
        for how in ({}, {"speculate": PromptLookup()})
    ]
    assert texts[1:] == texts[:1] * 3


def test_a_tied_head_is_the_embedding_in_memory_too(converted):
    fast = load_fast(converted("GPT-2"))
    table = fast.transformer.embedding.weight
    assert table.data_ptr() == fast.lm_head.weight.values.data_ptr()


@pytest.fixture
def twins(released, tmp_path) -> Path:
    """A release of GPT-2 whose head lies beside the embedding once more, in bfloat16."""
    folder = tmp_path / "twins"
    shutil.copytree(released("GPT-2")[1], folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture
def packing(monkeypatch):
    monkeypatch.setattr("kogpt.fast.loading.MAPPED", 0)
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: True)


def test_a_packed_head_is_not_looked_up_in(twins, packing):
    fast = load_fast(twins)
    assert fast.lm_head.weight.bits == 12
    assert fast.transformer.embedding.weight.dtype == torch.bfloat16
    found, wanted = read(fast, [40]), read(load_model(twins), [40])
    assert (found - wanted).norm() <= 1e-2 * wanted.norm()  # both computed in bfloat16


def test_a_head_that_is_not_the_embedding_is_refused_where_it_would_be_mapped(twins, packing):
    state = safetensors.torch.load_file(twins / "model.safetensors")
    state["lm_head.weight"][5, 6] += 1
    safetensors.torch.save_file(state, twins / "model.safetensors")
    with pytest.raises(InputRefusedError, match=r"lm_head\.weight differs from transformer\.wte"):
        load_fast(twins)


@on_both
def test_a_soft_prompt_stands_behind_a_table_that_would_be_mapped(
    converted, name, tmp_path, packing
):
    model = load_model(converted(name))
    attach_prompt(model, PromptConfig(6), torch.Generator().manual_seed(1))
    write_adapter(tmp_path / "prompt", model)
    fast = load_fast(converted(name), adapters=tmp_path / "prompt")
    assert (read(fast, [46]) - read(model, [46])).norm() <= 1e-5 * read(model, [46]).norm()


@on_both
@pytest.mark.parametrize("format", ["bfloat16", "int8"])
def test_what_a_token_reads_and_what_a_cpu_takes(converted, name, format):
    folder = converted(name, format)
    fast, config = load_fast(folder), read_config(folder / "config.json")
    C, F, V = config.n_embd, config.inner_dim, config.vocab_size
    layers = config.n_layer * (4 * C * C + 2 * C * F)
    assert sum(math.prod(each.weight.shape) for each in fast.linears()) == layers + V * C
    tables = (config.n_positions if name == "GPT-2" else V) * C  # of which a token reads a row
    summed = config.n_layer * C if name == "GPT-NeoX" else 0  # two biases of a block, as one
    assert fast.num_streamed == config.num_parameters - tables - summed
    if format == "bfloat16":
        assert fast.num_streamed == sum(tensor.numel() for tensor in fast.streamed())
    described = inspect(folder)
    cached = 2 * config.n_layer * config.n_positions * C * fast.dtype.itemsize
    with open_checkpoint(folder) as reader:
        assert described.memory["on a CPU"] == reader.nbytes + cached


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("GPT-2", gpt2.TiedHead),
        ("GPT-2", gpt2.LearnedPositions),
        ("GPT-2", gpt2.SequentialBlock),
        ("GPT-NeoX", gpt_neox.GELUMLP),
        ("GPT-NeoX", gpt_neox.TwoNormBlock),
        ("GPT-NeoX", gpt_neox.MLP),
    ],
)
def test_what_takes_a_part_s_place_is_not_passed_over(converted, name, part, monkeypatch, capsys):
    method = "embed" if part is gpt2.LearnedPositions else "forward"
    plain = getattr(part, method)
    monkeypatch.setattr(part, method, lambda self, *given: plain(self, *given))
    assert type(load_fast(converted(name))) is {"GPT-2": GPT2, "GPT-NeoX": GPTNeoX}[name]
    told = f"kogpt: {part.__name__}.{method} was changed: running the readable network\n"
    assert capsys.readouterr().err == told


def test_another_one_s_part_is_nothing_to_a_model(converted, monkeypatch):
    monkeypatch.setattr(gpt_neox.GELUMLP, "forward", lambda self, x: x)
    assert isinstance(load_fast(converted("GPT-2")), FastKoGPT) and isinstance(
        load_fast(), FastKoGPT
    )
