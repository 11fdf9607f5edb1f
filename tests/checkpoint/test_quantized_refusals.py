"""Quantised folders that are damaged, hostile or of another layout are refused by name."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies
from torch import Tensor

from kogpt.checkpoint import (
    ConversionOptions,
    convert,
    load_model,
    open_checkpoint,
    write_checkpoint,
)
from kogpt.checkpoint.quantization import Quantization, parse_quantization
from kogpt.errors import InputRefusedError
from tests.checkpoint.tiny import CONFIG, tiny_state, write_config

NAME = "transformer.h.0.attn.q_proj.weight"  # (16, 16); two groups of 8
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A tiny model as int8, and as int4 with zero points."""
    root = tmp_path_factory.mktemp("quantised")
    write_checkpoint(root / "src", CONFIG, tiny_state(dtype=torch.float16))
    zeros = ConversionOptions(quantize="int4", group_size=8, zero_points=True)
    convert(root / "src", root / "int4", zeros)
    convert(root / "src", root / "int8", ConversionOptions(quantize="int8"))
    return root


def damaged(source: Path, target: Path, damage: Callable[[State], None]) -> Path:
    """The same folder with other tensors."""
    from safetensors.torch import load_file, save_file

    state = load_file(next(source.glob("model-*.safetensors")))
    damage(state)
    target.mkdir()
    save_file({k: v.contiguous() for k, v in state.items()}, target / "model.safetensors")
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target


def put(suffix: str, value: Callable[[Tensor], Tensor] | Tensor) -> Callable[[State], None]:
    def damage(state: State) -> None:
        state[NAME + suffix] = value if isinstance(value, Tensor) else value(state[NAME + suffix])

    return damage


def without(suffix: str) -> Callable[[State], None]:
    def damage(state: State) -> None:
        del state[NAME + suffix]

    return damage


def spoil(value: float) -> Callable[[Tensor], Tensor]:
    def spoiled(scale: Tensor) -> Tensor:
        scale = scale.clone()
        scale[-1, -1] = value
        return scale

    return spoiled


TENSORS = {
    "shape lies": ("int4", put("_shape", torch.tensor([16, 24])), "_shape", "[16, 24]"),
    "shape is huge": ("int4", put("_shape", torch.tensor([1 << 62, -1])), "_shape", "-1"),
    "shape has three sizes": ("int4", put("_shape", torch.tensor([1, 16, 16])), "_shape", "[3]"),
    "shape in int32": ("int4", put("_shape", torch.tensor([16, 16]).int()), "_shape", "int32"),
    "shape is missing": ("int4", without("_shape"), "_shape", "missing"),
    "packed too wide": ("int4", put("_packed", torch.zeros(16, 3).int()), "_packed", "[16, 3]"),
    "packed too narrow": ("int4", put("_packed", lambda t: t[:, :1]), "_packed", "[16, 1]"),
    "packed in int64": ("int4", put("_packed", lambda t: t.long()), "_packed", "int64"),
    "packed is missing": ("int4", without("_packed"), "_packed", "missing"),
    "scale of too few groups": ("int4", put("_scale", lambda t: t[:, :1]), "_scale", "[16, 1]"),
    "scale of another rank": ("int4", put("_scale", lambda t: t[..., None]), "_scale", "2, 1]"),
    "scale of integers": ("int4", put("_scale", lambda t: t.int()), "_scale", "int32"),
    "scale is missing": ("int4", without("_scale"), "_scale", "missing"),
    "scale is NaN": ("int4", put("_scale", spoil(math.nan)), "_scale", "NaN"),
    "scale is infinite": ("int8", put("_scale", spoil(-math.inf)), "_scale", "infinity"),
    "zeros not packed": ("int4", put("_zero_point", torch.zeros(16, 2).char()), "_zero_", "16, 2"),
    "zeros packed across": (
        "int4",
        put("_zero_point", torch.zeros(16, 1).int()),
        "_zero_",
        "16, 1",
    ),
    "zeros in int8": ("int4", put("_zero_point", lambda t: t.char()), "_zero_point", "int8"),
    "zeros are missing": ("int4", without("_zero_point"), "_zero_point", "missing"),
    "floats beside integers": ("int4", put("", torch.ones(16, 16)), NAME, "beside"),
    "columns in another order": ("int4", put("_g_idx", torch.arange(16)), "_g_idx", "no part"),
    "zeros not announced": ("int8", put("_zero_point", torch.zeros(16, 1).char()), "_zero_", ""),
    "int8 is float": ("int8", put("", lambda t: t.half()), NAME, "float16"),
    "int8 of one row less": ("int8", put("", lambda t: t[1:]), NAME, "[15, 16]"),
    "int8 is uint8": ("int8", put("", lambda t: t.byte()), NAME, "uint8"),
    "int8 scale per tensor": ("int8", put("_scale", torch.ones(1).half()), "_scale", "[1]"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_bad_tensors_are_refused_by_file_and_name(folders, tmp_path, kind):
    source, damage, key, word = TENSORS[kind]
    folder = damaged(folders / source, tmp_path / "bad", damage)
    with pytest.raises(InputRefusedError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert str(folder) in message and NAME in message and key in message and word in message
    assert "\n" not in message


def test_no_packed_zero_point_is_out_of_range(folders, tmp_path):
    """Four bits hold -8 to 7 and no more: any word is a word of zero points."""

    def damage(state: State) -> None:
        words = torch.tensor([[-1, 0], [-(1 << 31), (1 << 31) - 1]], dtype=torch.int32)
        state[f"{NAME}_zero_point"] = words

    with open_checkpoint(damaged(folders / "int4", tmp_path / "odd", damage)) as reader:
        weight = reader.read_weight(NAME)
        zeros = (weight.offset / weight.scale.float()).round()
    assert zeros[:8].T.tolist() == [[7] * 8, [-8] * 8]
    assert zeros[8:].T.tolist() == [[-8] * 7 + [0], [7] * 7 + [-1]]


def test_integers_without_a_config_that_tells_of_them_are_refused(folders, tmp_path):
    for kind in ("int4", "int8"):
        folder = damaged(folders / kind, tmp_path / kind, lambda state: None)
        write_config(folder)
        with pytest.raises(InputRefusedError, match=r"weight_\w+ marks a quantised copy"):
            load_model(folder)


def test_a_config_that_tells_of_integers_where_there_are_floats_is_refused(folders, tmp_path):
    def widen(state: State) -> None:
        state.clear()
        state.update(tiny_state())

    for kind in ("int4", "int8"):
        folder = damaged(folders / kind, tmp_path / kind, widen)
        with pytest.raises(InputRefusedError, match=f"{NAME}_scale is missing"):
            load_model(folder)


# The table of `config.json`.

WEIGHTS = ("config_groups", "group_1", "weights")
CONFIGS = {
    "GPTQ": (("quant_method",), "gptq"),
    "AWQ": (("quant_method",), "awq"),
    "bitsandbytes": (("quant_method",), "bitsandbytes"),
    "no method": (("quant_method",), None),
    "not compressed": (("quantization_status",), "frozen"),
    "FP8": (("format",), "float-quantized"),
    "NVFP4": (("format",), "nvfp4-pack-quantized"),
    "2:4 sparse": (("format",), "marlin-24"),
    "sparse": (("sparsity_config",), {"format": "sparse-24-bitmask"}),
    "transforms": (("transform_config",), {"config_groups": {}}),
    "quantised cache": (("kv_cache_scheme",), {"num_bits": 8}),
    "ignored layers": (("ignore",), ["transformer.h.0.mlp.fc_in"]),
    "no groups": (("config_groups",), {}),
    "groups of nonsense": (("config_groups",), [1]),
    "a group of nonsense": (("config_groups", "group_1"), "W4A16"),
    "two groups for one": (("config_groups", "group_0", "targets"), ["Linear"]),
    "a regular expression": (("config_groups", "group_1", "targets"), ["re:(.*)*x"]),
    "several targets": (("config_groups", "group_1", "targets"), ["Linear", "lm_head"]),
    "inputs of 8 bits": (("config_groups", "group_1", "input_activations"), {"num_bits": 8}),
    "outputs of 8 bits": (("config_groups", "group_1", "output_activations"), {"num_bits": 8}),
    "another format": (("config_groups", "group_1", "format"), "int-quantized"),
    "3 bits": ((*WEIGHTS, "num_bits"), 3),
    "bits in words": ((*WEIGHTS, "num_bits"), "4"),
    "true bits": ((*WEIGHTS, "num_bits"), True),
    "float weights": ((*WEIGHTS, "type"), "float"),
    "dynamic": ((*WEIGHTS, "dynamic"), True),
    "blocks": ((*WEIGHTS, "strategy"), "block"),
    "columns in another order": ((*WEIGHTS, "actorder"), "group"),
    "a group of 0": ((*WEIGHTS, "group_size"), 0),
    "a group of -1": ((*WEIGHTS, "group_size"), -1),
    "a group of 12": ((*WEIGHTS, "group_size"), 12),
    "a group of 8.0": ((*WEIGHTS, "group_size"), 8.0),
    "symmetric, perhaps": ((*WEIGHTS, "symmetric"), "yes"),
    "no weights": (WEIGHTS, None),
}


def test_groups_that_do_not_divide_the_rows_are_refused(folders, tmp_path):
    """Two groups of 16 in rows of 40 would else pass for two of 20."""

    def regroup(state: State) -> None:
        for name in [name for name in state if name.endswith("fc_out.weight_scale")]:
            state[name] = state[name][:, :2]

    folder = damaged(folders / "int4", tmp_path / "bad", regroup)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputRefusedError, match="bad: n_inner is 40, no multiple of the group"):
        load_model(folder)


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    table = copy.deepcopy(Quantization.of("int4", 8, False).to_dict())
    inner = table
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return table


@pytest.mark.parametrize("kind", CONFIGS)
def test_other_layouts_are_refused_by_file_and_key(folders, tmp_path, kind):
    path, value = CONFIGS[kind]
    folder = damaged(folders / "int8", tmp_path / "bad", lambda state: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = changed(path, value)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputRefusedError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert str(folder / "config.json") in message and "convert the original weights" in message
    assert "quantization_config" in message and "\n" not in message
    if kind != "two groups for one":
        assert path[-1] in message


@pytest.mark.parametrize("value", [[], "int4", 4, True, {"load_in_8bit": True}])
def test_a_table_that_is_none_is_refused(value):
    with pytest.raises(InputRefusedError, match="here: quantization_config"):
        parse_quantization(value, "here")


JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.floats() | strategies.text(max_size=9),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
    max_leaves=5,
)


@given(strategies.sampled_from(sorted(CONFIGS.values(), key=str)), JSON, strategies.text())
def test_a_table_of_anything_is_read_or_refused_in_one_line(place, value, name):
    (path, _) = place
    table = changed(path, value)
    if isinstance(table["config_groups"], dict):
        table["config_groups"][name] = value
    try:
        parse_quantization(table, "here")
    except InputRefusedError as error:
        assert "\n" not in str(error) and len(str(error)) < 600


def test_what_other_tools_write_of_the_same_layout_is_read():
    """As llm-compressor writes W4A16, with notes on how it came about; the head left float."""
    group = {
        "targets": ["Linear"],
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
        "weights": {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": 128,
            "num_bits": 4,
            "observer": "minmax",
            "observer_kwargs": {},
            "scale_dtype": None,
            "strategy": "group",
            "symmetric": True,
            "type": "int",
            "zp_dtype": None,
        },
    }
    table = {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.12.2",
    }
    read = parse_quantization(table, "")
    assert read.head is None and str(read.body) == "int4 in groups of 128"
