"""Reading and refusing configurations."""

import json

import pytest

from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import MAX_CONFIG_SIZE
from kogpt.model import PRESETS, KoGPTConfig

RELEASED = {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0.1,
    "bos_token_id": 0,
    "embd_pdrop": 0.1,
    "eos_token_id": 1,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_layer": 28,
    "n_positions": 2048,
    "rotary_dim": 64,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 128}},
    "tokenizer_class": "PreTrainedTokenizerFast",
    "torch_dtype": "float16",
    "vocab_size": 64512,
}


def test_the_released_config_is_the_default_one():
    assert KoGPTConfig.from_dict(RELEASED) == KoGPTConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_its_file(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PRESETS[name].to_dict()), encoding="utf-8")
    assert KoGPTConfig.from_file(path) == PRESETS[name]


def test_transformers_reads_what_is_written():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTJConfig(**KoGPTConfig().to_dict())
    assert (config.n_layer, config.rotary_dim, config.tie_word_embeddings) == (28, 64, False)
    assert KoGPTConfig.from_dict(config.to_dict()) == KoGPTConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 0}, "n_head is 0"),
        ({"n_layer": 10**9}, "n_layer is 1000000000"),
        ({"n_layer": 2.5}, "n_layer is 2.5"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_embd": "4096"}, "n_embd is '4096'"),
        ({"n_head": 15}, "no multiple of n_head 15"),
        ({"rotary_dim": 300}, "rotary_dim is 300"),
        ({"rotary_dim": 7}, "rotary_dim 7 is odd"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"n_inner": 0}, "n_inner is 0"),
        ({"attn_pdrop": 1.5}, "attn_pdrop is 1.5"),
        ({"embd_pdrop": -0.5}, "embd_pdrop is -0.5"),
        ({"resid_pdrop": 2.0}, "resid_pdrop is 2.0"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
        ({"bos_token_id": -2}, "bos_token_id is -2"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_field(change, message):
    with pytest.raises(InputRefusedError, match=message):
        KoGPTConfig.from_dict({**RELEASED, **change})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"eos_token_id": [5, 7]}, {"eos_token_id": (5, 7)}),
        ({"eos_token_id": [5]}, {"eos_token_id": 5}),
        ({"eos_token_id": [-1]}, {"eos_token_id": None}),
        ({"eos_token_id": []}, {"eos_token_id": None}),
        ({"eos_token_id": [5, None, 5]}, {"eos_token_id": 5}),
        ({"eos_token_id": [*range(10**5)]}, {"eos_token_id": (*range(10**5),)}),  # not for hours
        ({"bos_token_id": [5, 7]}, {"bos_token_id": 5}),
        ({"pad_token_id": -1}, {"pad_token_id": None}),
        ({"layer_norm_epsilon": 0, "attn_pdrop": 1}, {"layer_norm_epsilon": 0.0}),
        ({"tie_word_embeddings": None, "scale_attn_weights": None}, {"tie_word_embeddings": False}),
    ],
)
def test_what_others_write_otherwise_is_read_and_written_as_here(written, read):
    result = KoGPTConfig.from_dict({**RELEASED, **written}).to_dict()
    for name, value in read.items():
        assert result[name] == value and type(result[name]) is type(value), name


@pytest.mark.parametrize("key", ["model_type", "vocab_size", "n_layer"])
def test_a_config_without_a_size_is_refused_by_name(key):
    with pytest.raises(InputRefusedError, match=f"{key} is missing"):
        KoGPTConfig.from_dict({k: v for k, v in RELEASED.items() if k != key})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b'{"n_head": \xff}', b"[" * 100_000, b'"' + b" " * (1 << 20) + b'"'],
)
def test_a_file_that_is_no_config_is_refused_with_one_line_naming_it(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputRefusedError) as refusal:
        KoGPTConfig.from_file(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_file_of_a_wrong_value_is_named_with_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**RELEASED, "n_head": 0}))
    with pytest.raises(InputRefusedError) as refusal:
        KoGPTConfig.from_file(path)
    assert str(refusal.value).startswith(f"{path}: n_head is 0")


def test_a_missing_file_is_refused_with_one_line_naming_it(tmp_path):
    with pytest.raises(InputRefusedError, match="No such file"):
        KoGPTConfig.from_file(tmp_path / "config.json")


def test_an_unknown_preset_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="no preset 'mini'; there are kogpt-6b"):
        KoGPTConfig.preset("mini")


def test_what_transformers_leaves_out_is_what_it_stands_for_there():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    theirs = transformers.GPTJConfig(**sizes, rotary_dim=4)
    ours = KoGPTConfig.from_dict({**theirs.to_diff_dict(), **sizes, "rotary_dim": 4})
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "layer_norm_epsilon"):
        assert getattr(ours, name) == getattr(theirs, name), name
    bare = KoGPTConfig.from_dict({"model_type": "gptj", **sizes, "rotary_dim": 4})
    assert (bare.attn_pdrop, bare.embd_pdrop) == (0.0, 0.0)
    assert bare.bos_token_id is bare.eos_token_id is None


def test_a_file_that_says_two_things_at_once_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(KoGPTConfig().to_dict())[:-1] + ', "n_layer": 1}')
    with pytest.raises(InputRefusedError, match=r"config.json: not JSON \('n_layer' appears twice"):
        KoGPTConfig.from_file(path)


def test_a_file_may_begin_with_a_byte_order_mark_and_be_as_large_as_is_allowed(tmp_path):
    path, config = tmp_path / "config.json", KoGPTConfig()
    path.write_text("\ufeff" + json.dumps(config.to_dict()), encoding="utf-8")
    assert KoGPTConfig.from_file(path) == config
    path.write_bytes(path.read_bytes().ljust(MAX_CONFIG_SIZE))
    assert KoGPTConfig.from_file(path) == config


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(KoGPTConfig().to_dict()) + " " * (17 << 20), encoding="utf-8")
    with pytest.raises(InputRefusedError, match="larger than"):
        KoGPTConfig.from_file(path)


@pytest.mark.parametrize(
    ("name", "heads", "ids"),
    [
        ("kogpt-6b", 16, (0, 1, None)),
        ("gpt-j-6b", 16, (50256, 50256, None)),
        ("kogpt-j-base", 12, (1, 2, 0)),
        ("kogpt-j-base-24L", 12, (1, 2, 0)),
        ("kogpt-j-350m", 16, (1, 2, 0)),
        ("gpt-j-small", 8, (0, 1, 3)),
        ("gpt-j-base", 12, (0, 1, 3)),
        ("gpt-j-large", 16, (0, 1, 3)),
        ("nano", 4, (0, 1, 3)),
    ],
)
def test_what_no_count_of_parameters_tells_of_a_preset(name, heads, ids):
    shape = PRESETS[name]
    assert shape.n_head == heads
    assert (shape.bos_token_id, shape.eos_token_id, shape.pad_token_id) == ids
