"""The neighbours against transformers, which we did not write, by the production converter."""

import json
import logging
import math
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from kogpt.checkpoint import (
    ConversionOptions,
    convert,
    inspect,
    load_model,
    open_checkpoint,
    verify,
)
from kogpt.checkpoint.writer import write_checkpoint
from kogpt.errors import InputRefusedError
from kogpt.model import KoGPT, KVCache
from kogpt.model.variants import (
    CLASSES,
    GPT2,
    PRESETS,
    GPT2Config,
    GPTNeoX,
    GPTNeoXConfig,
    class_of,
    read_config,
)

transformers = pytest.importorskip("transformers")
logging.getLogger("transformers").setLevel(logging.ERROR)

GPT2_SIZES = {"vocab_size": 97, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
NEOX_SIZES = {
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 80,
}
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_SIZES)),
    "gpt2, inner width set": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**GPT2_SIZES, n_inner=72)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**NEOX_SIZES, rotary_pct=0.5)
    ),
    "gpt_neox, nothing rotates": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**NEOX_SIZES, rotary_pct=0.0)
    ),
    "gpt_neox, whole heads rotate": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**NEOX_SIZES, rotary_pct=1.0, rotary_emb_base=500)
    ),
}


def reference(name: str) -> torch.nn.Module:
    """A small model of transformers, all its parameters (biases, norms) random."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for name, parameter in model.named_parameters():
        is_norm = "ln_" in name or "norm" in name
        torch.nn.init.normal_(parameter, float(is_norm and name.endswith("weight")), std=0.15)
    return model


@pytest.fixture(scope="module", params=MODELS)
def theirs(request) -> torch.nn.Module:
    return reference(request.param)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    convert(folder, target)
    return target


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(97, (2, 64), generator=torch.Generator().manual_seed(1))


def assert_same_weights(first: Path, second: Path) -> None:
    ours, others = load_model(first).state_dict(), load_model(second).state_dict()
    assert ours.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in ours.items())


def distance(model: KoGPT, theirs: torch.nn.Module, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(ids) - theirs(ids).logits).abs().max())


def test_a_converted_model_agrees_with_transformers_to_1e_5(converted, theirs, ids):
    model = load_model(converted)
    assert type(model) in (GPT2, GPTNeoX)
    assert theirs(ids).logits.abs().max() > 0.5
    assert distance(model, theirs, ids) < 1e-5
    verify(converted, quiet=True)


def test_a_converted_folder_opens_in_transformers_as_it_is(converted, theirs, ids):
    again, info = type(theirs).from_pretrained(converted, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    same = {k: v for k, v in again.config.to_dict().items() if k in ("rope_parameters", "n_inner")}
    assert {**theirs.config.to_dict(), **same} == theirs.config.to_dict()


def test_a_released_folder_is_read_as_it_is(folder, theirs, ids):
    assert distance(load_model(folder), theirs, ids) < 1e-5
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert inspect(folder).parameters == count == read_config(folder / "config.json").num_parameters


def test_a_pickle_with_masks_and_a_tied_head_is_read_alike(theirs, folder, tmp_path, ids):
    state = dict(theirs.state_dict())
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    for layer in range(3):
        if "gpt_neox.embed_in.weight" in state:
            state[f"gpt_neox.layers.{layer}.attention.bias"] = mask
            state[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4)
        else:
            state[f"transformer.h.{layer}.attn.bias"] = mask
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    shutil.copy(folder / "config.json", tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert distance(load_model(tmp_path), theirs, ids) < 1e-5
    assert len(inspect(tmp_path).ignored) == 6


@pytest.mark.parametrize("counted", [1, 2])
def test_shards_may_count_a_tied_head_once_or_twice(counted, tmp_path, ids):
    """huggingface_hub counts memory, of which both have the same."""
    theirs = reference("gpt2")
    theirs.config.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    sizes = {name: tensor.nbytes for name, tensor in state.items()}
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    files = {name: names[name == "lm_head.weight"] for name in state}
    for file in names:
        torch.save({name: state[name] for name in state if files[name] == file}, tmp_path / file)
    total = sum(sizes.values()) - (2 - counted) * sizes["lm_head.weight"]
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert distance(load_model(tmp_path), theirs, ids) < 1e-5
    index["metadata"]["total_size"] = sum(sizes.values()) - sizes["lm_head.weight"] - 4
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(InputRefusedError, match="total_size is"):
        load_model(tmp_path)


def test_a_bare_file_is_converted_by_the_config_given(theirs, folder, converted, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputRefusedError, match=r"config\.json is missing"):
        convert(tmp_path, tmp_path / "model")
    options = ConversionOptions(config=read_config(folder / "config.json"))
    convert(tmp_path / "pytorch_model.bin", tmp_path / "model", options)
    assert_same_weights(tmp_path / "model", converted)


def test_rows_are_those_of_the_whole_also_if_there_are_none(folder):
    with open_checkpoint(folder) as reader:
        for name in reader.names:
            whole = reader.read(name)
            for rows in (slice(2, 5), slice(0), slice(5, 5)):
                assert torch.equal(reader.read(name, rows), whole[rows])


def test_gradients_agree_to_1e_5_relative(folder, theirs, ids):
    model = load_model(folder).requires_grad_(True)
    theirs.zero_grad()
    for logits in (model(ids), theirs(ids).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    embedding = expected.get("transformer.wte.weight", expected.get("gpt_neox.embed_in.weight"))
    # In GPT-2 this one has both uses of a tied embedding in it.
    pairs = [(model.transformer.wte.weight.grad, embedding.grad)]
    norm = next(
        p
        for name, p in theirs.named_parameters()
        if name.endswith("0.ln_1.weight") or name.endswith("0.input_layernorm.weight")
    )
    pairs.append((model.transformer.h[0].ln_1.weight.grad, norm.grad))
    for mine, other in pairs:
        assert (mine - other).norm() / other.norm() < 1e-5
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_decoding_with_the_cache_equals_the_whole_pass(converted, ids):
    model = load_model(converted)
    cache = KVCache(64)
    with torch.no_grad():
        steps = [model(part, cache) for part in ids.split([40, 1, 1, 22], dim=1)]
        torch.testing.assert_close(torch.cat(steps, 1), model(ids), atol=1e-5, rtol=0)


def test_rows_padded_on_the_left_equal_single_runs(converted, ids):
    model = load_model(converted)
    padded = torch.cat((torch.full((2, 5), 3), ids[:, :40]), dim=1)
    with torch.no_grad():
        logits = model(padded, starts=torch.tensor([5, 5]))[:, 5:]
        torch.testing.assert_close(logits, model(ids[:, :40]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_are_close_to_those_they_came_from(folder, kind, tmp_path, ids):
    target = tmp_path / "model"
    convert(
        folder, target, ConversionOptions(quantize=kind, group_size=8 if kind == "int4" else None)
    )
    with torch.no_grad():
        whole, narrow = load_model(folder)(ids), load_model(target)(ids)
        held = load_model(target, quantized=True)(ids)
    kind = json.loads((target / "config.json").read_text())["model_type"]
    assert kind.startswith("kogpt-")  # which no other library takes for its own
    assert 0 < (narrow - whole).norm() / whole.norm() < (0.02 if kind == "int8" else 0.2)
    torch.testing.assert_close(held, narrow, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameter_count_of_a_preset_is_exact(name):
    config = PRESETS[name]
    with torch.device("meta"):
        model = class_of(config)(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters


@pytest.mark.parametrize(
    ("name", "published", "unit"),
    [
        ("kogpt2", 125e6, 1e6),
        ("polyglot-ko-1.3b", 1.3e9, 0.1e9),
        ("polyglot-ko-3.8b", 3.8e9, 0.1e9),
        ("polyglot-ko-5.8b", 5.8e9, 0.1e9),
        ("polyglot-ko-12.8b", 12.8e9, 0.1e9),
        ("hyperclova-6.9b", 6.9e9, 0.1e9),
        ("hyperclova-13b", 13e9, 1e9),
        ("hyperclova-39b", 39e9, 1e9),
        ("hyperclova-82b", 82e9, 1e9),
    ],
)
def test_the_parameter_count_is_that_published_as_far_as_it_is_told(name, published, unit):
    assert abs(PRESETS[name].num_parameters - published) < unit


def test_one_model_type_stands_for_one_class():
    assert [CLASSES[kind].__name__ for kind in CLASSES] == ["KoGPT", "GPT2", "GPTNeoX"]
    for kind, model_class in CLASSES.items():
        assert class_of(model_class.config_class()) is model_class
        assert kind == model_class.config_class.model_type


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; known are gptj, gpt2, gpt_neox"),
        ({"model_type": ["gpt2"]}, r"model_type is \['gpt2'\]"),
        ({"activation_function": "relu", "hidden_act": "relu"}, "(function|hidden_act) is 'relu'"),
        ({"tie_word_embeddings": "maybe"}, "tie_word_embeddings is 'maybe'"),
        ({"n_embd": 50, "hidden_size": 50}, "no multiple of n_head|shape"),
        ({"n_layer": 4, "num_hidden_layers": 4}, "is missing"),
        ({"n_inner": 100, "intermediate_size": 100}, r"has shape .*, the config asks for"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, change, message, tmp_path):
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputRefusedError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_parallel_residual": False}, "use_parallel_residual is False"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_theta": "far"}}, "rotary_base is 'far', it must be"),
        ({"rope_parameters": {"rope_theta": True}}, "rotary_base is True"),
        ({"rope_parameters": {"rope_theta": math.nan}}, "rotary_base is nan"),
        ({"rope_parameters": {"rope_theta": 0}}, "rotary_base is 0"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', it must be an object"),
        ({"rope_scaling": {"rope_theta": 5.0}}, "rope_scaling and rope_parameters differ"),
        ({"head_dim": 99}, "head_dim is 99, only"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_type is 'linear'"),
        ({"num_attention_heads": 0}, "no numbers"),
        ({"hidden_size": None}, "no numbers"),
    ],
)
def test_a_gpt_neox_of_another_kind_is_refused_by_key(change, message, tmp_path):
    config = reference("gpt_neox").config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputRefusedError, match=message):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("kind", [GPT2, GPTNeoX])
def test_the_dropout_of_a_released_config_acts_on_attention_and_mlp(kind):
    released = {**GPT2_SIZES, "model_type": "gpt2", "resid_pdrop": 0.25, "embd_pdrop": 0.0}
    if kind is GPTNeoX:
        released = {**NEOX_SIZES, "model_type": "gpt_neox", "hidden_dropout": 0.25}
    config = kind.config_class.from_dict(released)
    assert config.resid_pdrop == 0.25
    mlp = kind(config).train().transformer.h[0].mlp
    zeros = mlp(torch.ones(1, 9, 48)).eq(0).float().mean()
    assert 0.1 < zeros < 0.4


def test_the_rotated_share_of_a_head_comes_back_as_it_was():
    for head_dim in range(2, 260, 2):
        for width in range(0, head_dim + 1, 2):
            config = GPTNeoXConfig(n_embd=head_dim, n_head=1, rotary_dim=width)
            assert GPTNeoXConfig.from_dict(config.to_released_dict()).rotary_dim == width


def test_a_head_that_is_not_the_embedding_is_refused(tmp_path):
    model = reference("gpt2")
    model.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"][40] += 1e-3
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputRefusedError, match=r"lm_head\.weight differs from transformer\.wte"):
        load_model(tmp_path)


def test_a_head_that_is_the_embedding_is_so_with_nan_too(tmp_path):
    model = reference("gpt2")
    model.save_pretrained(tmp_path / "src")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name][40, 3] = math.nan
    safetensors.torch.save_file(state, tmp_path / "src" / "model.safetensors", {"format": "pt"})
    convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(allow_nonfinite=("*",)))
    assert load_model(tmp_path / "dst").transformer.wte.weight[40, 3].isnan()


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (None, {}, r"/model\.safetensors: {} is int8"),
        (1e6, {"dtype": "float16"}, r"1 values in 1 tensors .* \(the first 1 in {}\)"),
        (math.nan, {"quantize": "int8"}, "/src: {} holds NaN"),
    ],
    ids=["integers", "overflow", "NaN"],
)
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_a_tensor_that_is_refused_has_its_name_in_the_file(kind, value, options, message, tmp_path):
    reference(kind).save_pretrained(tmp_path / "src")
    path = tmp_path / "src" / "model.safetensors"
    state = safetensors.torch.load_file(path)
    (name,) = (n for n in state if re.search(r"\.1\.(mlp.c_fc|mlp.dense_h_to_4h)\.weight", n))
    if value is None:
        state[name] = state[name].char()
    else:
        state[name][1, 2] = value
    safetensors.torch.save_file(state, path, {"format": "pt"})
    with pytest.raises(InputRefusedError, match=message.format(re.escape(name))):
        convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(**options))


def test_a_tensor_that_is_missing_has_the_names_of_all_versions(tmp_path):
    reference("gpt_neox").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(path)
    names = {"embed_out.weight", "lm_head.weight"}
    rest = {name: tensor for name, tensor in state.items() if name not in names}
    safetensors.torch.save_file(rest, path, {"format": "pt"})
    with pytest.raises(InputRefusedError, match="embed_out.weight or lm_head.weight is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_names_with_another_prefix_are_told(kind, prefix, tmp_path):
    reference(kind).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({f"{prefix}{n}": x for n, x in state.items()}, path)
    message = f"with another prefix there is {prefix}(transformer.wte|gpt_neox.embed_in).weight"
    with pytest.raises(InputRefusedError, match=message):
        load_model(tmp_path)


def test_names_of_other_versions_are_read_too(tmp_path, ids):
    model = reference("gpt2")
    model.transformer.save_pretrained(tmp_path / "gpt2")
    assert "wte.weight" in safetensors.torch.load_file(tmp_path / "gpt2" / "model.safetensors")
    assert distance(load_model(tmp_path / "gpt2"), model, ids) < 1e-5
    model = reference("gpt_neox")
    model.save_pretrained(tmp_path / "neox")
    path = tmp_path / "neox" / "model.safetensors"
    state = safetensors.torch.load_file(path)
    names = {"embed_out.weight": "lm_head.weight"}
    (here,) = [name for name in state if name in (*names, *names.values())]
    there = "lm_head.weight" if here == "embed_out.weight" else "embed_out.weight"
    state[there] = state.pop(here)
    safetensors.torch.save_file(state, path, {"format": "pt"})
    assert distance(load_model(tmp_path / "neox"), model, ids) < 1e-5


def test_the_class_asked_for_reads_no_other_model(tmp_path):
    reference("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputRefusedError, match="model_type is 'gpt2', this model's is 'gptj'"):
        KoGPT.from_pretrained(tmp_path)


class Normed:
    """A block with a layer that no neighbour has."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.ln_3 = nn.LayerNorm(config.n_embd)

    def forward(self, *given):
        return self.ln_3(super().forward(*given))


class NormedGPT2(GPT2):
    block_class = type("NormedGPT2Block", (Normed, GPT2.block_class), {})


class NormedGPTNeoX(GPTNeoX):
    block_class = type("NormedGPTNeoXBlock", (Normed, GPTNeoX.block_class), {})


OWN = {
    "gpt2": (NormedGPT2, GPT2Config(**GPT2_SIZES)),
    "gpt_neox": (NormedGPTNeoX, GPTNeoXConfig(**GPT2_SIZES, rotary_dim=6)),
}


@pytest.mark.parametrize("kind", OWN)
def test_a_class_of_ones_own_is_saved_under_our_names(kind, tmp_path, ids):
    """Others would take a released layout for the model that the class was made from."""
    model_class, config = OWN[kind]
    model = model_class(config).eval()
    write_checkpoint(tmp_path / "own", config, model.state_dict(), model_class=model_class)
    again = load_model(tmp_path / "own", model_class=model_class)
    assert torch.equal(model(ids), again(ids))
    written = json.loads((tmp_path / "own" / "config.json").read_text())
    assert written["model_type"] == config.model_type != kind
    with pytest.raises(InputRefusedError, match=r"ln_3\.(weight|bias) is no part of a GPT"):
        load_model(tmp_path / "own")


@pytest.mark.parametrize("kind", OWN)
def test_a_released_model_is_no_model_of_ones_own(kind, tmp_path):
    reference(kind).save_pretrained(tmp_path)
    with pytest.raises(InputRefusedError, match=r"transformer\.h\.0\.ln_3\.weight is missing"):
        load_model(tmp_path, model_class=OWN[kind][0])


def test_nothing_rotates_in_a_gpt2():
    with pytest.raises(InputRefusedError, match="rotary_dim is 4, in a GPT-2 nothing rotates"):
        GPT2Config(rotary_dim=4)
