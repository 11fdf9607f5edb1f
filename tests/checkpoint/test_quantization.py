"""Matrices of 8 and 4 bits: what is written, what is read, and that others read the same."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kogpt.checkpoint import (
    ConversionOptions,
    convert,
    inspect,
    load_model,
    open_checkpoint,
    shards,
    verify,
    write_checkpoint,
)
from kogpt.checkpoint import quantizing as quantizing_module
from kogpt.checkpoint.names import expand
from kogpt.checkpoint.quantization import INT8, Quantization, Scheme, parse_quantization
from kogpt.checkpoint.quantizing import Quantizer, pack_down
from kogpt.checkpoint.rounding import round_rows
from kogpt.checkpoint.safetensors_file import SafetensorsFile, encode_header
from kogpt.checkpoint.staging import Staging
from kogpt.cli import main
from kogpt.errors import InputRefusedError, NotEnoughResourcesError
from kogpt.kernels.linear import pack_int4, unpack_int4
from kogpt.model import KoGPTConfig
from tests.checkpoint.tiny import CONFIG, tiny_state, write_config

MATRIX = "transformer.h.1.mlp.fc_out.weight"  # 16 outputs, 40 inputs
KINDS = {
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4", "group_size": 8},
    "zero points": {"quantize": "int4", "group_size": 8, "zero_points": True},
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def write_quantized(folder: Path, kind: str, dtype=torch.float16, **options) -> Path:
    """A tiny model, converted to integers; the float one lies beside it."""
    source = folder / f"float {dtype}"
    if not source.exists():
        write_checkpoint(source, CONFIG, tiny_state(dtype=dtype))
    target = folder / kind
    convert(source, target, ConversionOptions(**KINDS[kind], **options, quiet=True))
    return target


def tensors_of(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in sorted(folder.glob("model-*.safetensors"))
        for name, tensor in load_file(path).items()
    }


# Rounding.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "scheme", [INT8, Scheme(4, 8), Scheme(4, 20), Scheme(4, 8, zero_points=True)], ids=str
)
def test_every_weight_is_within_half_a_step_of_what_it_was(scheme, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(30, 40, generator=generator) * torch.logspace(-3, 3, 30)[:, None]
    q, scale, zero = round_rows(values, scheme, dtype)
    steps = q.unflatten(1, (scheme.groups(40), -1)).float()
    steps = steps if zero is None else steps - zero.float()[..., None]
    error = (steps * scale.float()[..., None]).flatten(1) - values
    bound = scale.float().repeat_interleave(40 // scheme.groups(40), 1)
    # A zero point is itself rounded by up to half a step; a scale by one part in 2^8 (bfloat16),
    # of which the largest value, 7.5 or 127 steps away, sees as many.
    half = 1.0 if zero is not None else 0.5
    slack = (127 if scheme.bits == 8 else 8) * torch.finfo(dtype).eps
    assert (error.abs() <= bound * (half + slack)).all()
    assert scale.dtype == dtype and q.dtype == torch.int8
    assert q.abs().max() <= (127 if scheme.bits == 8 else 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", [INT8, Scheme(4, 8), Scheme(4, 8, zero_points=True)], ids=str)
def test_groups_of_nothing_or_next_to_nothing_stay_finite(scheme, dtype):
    values = torch.zeros(3, 8)
    values[1], values[2] = 1e-9, 1e-30
    q, scale, zero = round_rows(values, scheme, dtype)
    assert (scale > 0).all() and scale.isfinite().all()
    rounded = (q.float() - (0 if zero is None else zero.float())) * scale.float()
    torch.testing.assert_close(rounded, values, rtol=0, atol=2.0**-25)
    assert not rounded[0].any()


def test_zero_points_keep_zero_exact_and_serve_groups_off_zero_better():
    values = torch.linspace(0.9, 1.1, 32)[None].repeat(4, 1)
    values[:, 0] = 0
    errors = {}
    for zero_points in (False, True):
        scheme = Scheme(4, 32, zero_points)
        q, scale, zero = round_rows(values, scheme, torch.float32)
        rounded = (q.float() - (0 if zero is None else zero.float())) * scale
        assert not rounded[:, 0].any()
        errors[zero_points] = (rounded - values).norm()
    assert errors[True] < 0.6 * errors[False]  # twice as many steps from zero to the largest


@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_one_sign_is_spread_from_zero_on(sign):
    values = sign * torch.linspace(1.0, 1.5, 8)[None]
    q, scale, zero = round_rows(values, Scheme(4, 8, zero_points=True), torch.float32)
    assert scale.item() == pytest.approx(1.5 / 15)
    torch.testing.assert_close((q - zero) * scale, values, rtol=0, atol=0.0501)  # half a step


# What is written.


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_folder_holds_what_its_config_says(tmp_path, kind):
    folder = write_quantized(tmp_path, kind)
    table = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert parse_quantization(table, "") == Quantization.of(
        kind if kind == "int8" else "int4", 8, kind == "zero points"
    )
    stored = tensors_of(folder)
    assert stored["transformer.wte.weight"].dtype == torch.float16
    assert stored["lm_head.weight"].dtype == (
        torch.float16 if kind == "zero points" else torch.int8
    )
    shapes = {
        name.removeprefix(MATRIX): (str(tensor.dtype)[6:], *tensor.shape)
        for name, tensor in stored.items()
        if name.startswith(MATRIX)
    }
    if kind == "int8":
        assert shapes == {"": ("int8", 16, 40), "_scale": ("float16", 16, 1)}
    else:
        zeros = {"_zero_point": ("int32", 2, 5)} if kind == "zero points" else {}
        assert shapes == {
            "_packed": ("int32", 16, 5),
            "_scale": ("float16", 16, 5),
            "_shape": ("int64", 2),
            **zeros,
        }
        assert stored[f"{MATRIX}_shape"].tolist() == [16, 40]


def test_tensors_of_16_bytes_lie_behind_all_that_begin_at_cache_lines(tmp_path):
    folder = write_quantized(tmp_path, "int4")
    file = SafetensorsFile(folder / "model-00001-of-00001.safetensors")
    last = [name.endswith("_shape") for name in file.tensors]
    file.close()
    assert any(last) and last == sorted(last)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_and_shards_do_not_change_a_bit(tmp_path, monkeypatch, kind):
    whole = tensors_of(write_quantized(tmp_path, kind))
    monkeypatch.setattr(shards, "SLICE", 100)
    monkeypatch.setattr(quantizing_module, "AT_ONCE", 100)
    (tmp_path / kind).rename(tmp_path / "whole")
    sliced = tensors_of(write_quantized(tmp_path, kind, max_shard_size=500))
    assert len(list((tmp_path / kind).glob("model-*"))) > 10
    assert whole.keys() == sliced.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, sliced[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_the_same_where_an_earlier_run_has_written_the_numbers(kind):
    state, options = tiny_state(), ConversionOptions(**KINDS[kind])

    def quantizer() -> Quantizer:
        return Quantizer(
            lambda name, rows: state[name][rows], options.quantization, expand(CONFIG), torch.half
        )

    in_order = quantizer()
    for spec in in_order.specs:
        values = in_order.read(spec.name, slice(0, spec.shape[0]))
        alone = quantizer().read(spec.name, slice(0, spec.shape[0]))
        assert torch.equal(values, alone) and values.shape == spec.shape, spec.name


@pytest.mark.parametrize("kind", KINDS)
def test_scales_owe_nothing_to_the_dtype_that_weights_come_in(kind):
    state, options = tiny_state(dtype=torch.bfloat16), ConversionOptions(**KINDS[kind])
    narrow, wide = (
        Quantizer(
            lambda name, rows, dtype=dtype: state[name][rows].to(dtype),
            *(options.quantization, expand(CONFIG), torch.float32),
        )
        for dtype in (torch.bfloat16, torch.float32)
    )
    for spec in wide.specs:
        rows = slice(0, spec.shape[0])
        expected = wide.read(spec.name, rows)
        assert torch.equal(narrow.read(spec.name, rows).to(expected.dtype), expected), spec.name


@pytest.mark.parametrize("kind", KINDS)
def test_verify_notices_flipped_bits_of_integers(tmp_path, kind):
    folder = write_quantized(tmp_path, kind)
    assert verify(folder).tensors == len(tensors_of(folder))
    manifest = json.loads((folder / "manifest.json").read_text())["tensors"]
    for name, tensor in tensors_of(folder).items():
        assert (manifest[name]["min"], manifest[name]["max"]) == (tensor.min(), tensor.max())
    path = next(folder.glob("model-*"))
    data = path.read_bytes()
    for at in range(0, len(data), len(data) // 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(InputRefusedError, match=path.name):
            verify(folder)


def test_a_conversion_with_other_groups_is_another_conversion(tmp_path):
    write_quantized(tmp_path, "int4")
    source = tmp_path / f"float {torch.float16}"
    same = ConversionOptions(**KINDS["int4"])
    assert convert(source, tmp_path / "int4", same).already_complete
    # Rows of `fc_out` and so the shapes differ; names, dtypes and files do not.
    write_checkpoint(tmp_path / "wide", KoGPTConfig(97, 32, 16, 2, 2, 4, 32), wide_state())
    convert(tmp_path / "wide", tmp_path / "dst", same)
    other = ConversionOptions(quantize="int4", group_size=16)
    with pytest.raises(InputRefusedError, match="exists already"):
        convert(tmp_path / "wide", tmp_path / "dst", other)


def wide_state() -> dict[str, Tensor]:
    return tiny_state(KoGPTConfig(97, 32, 16, 2, 2, 4, 32))


def test_what_an_interruption_leaves_is_not_resumed_with_other_groups(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "src", KoGPTConfig(97, 32, 16, 2, 2, 4, 32), wide_state())
    options = [
        # A file for each tensor: name and size of one that holds numbers tell of no groups.
        ConversionOptions(quantize="int4", group_size=size, max_shard_size=1, quiet=True)
        for size in (8, 16)
    ]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Staging, "commit", interrupt)
        convert(tmp_path / "src", tmp_path / "dst", options[0])
    assert (tmp_path / ".dst.partial" / "folder").exists()
    convert(tmp_path / "src", tmp_path / "dst", options[1])
    convert(tmp_path / "src", tmp_path / "fresh", options[1])
    for path in (tmp_path / "fresh").iterdir():
        assert path.read_bytes() == (tmp_path / "dst" / path.name).read_bytes()


def test_nan_cannot_be_quantised_even_where_it_is_allowed(tmp_path):
    state = tiny_state()
    state[MATRIX][3, 5] = math.nan
    write_checkpoint(tmp_path / "src", CONFIG, state, allow_nonfinite=("*",))
    options = ConversionOptions(quantize="int8", allow_nonfinite=("*",))
    with pytest.raises(InputRefusedError, match=f"{MATRIX} holds NaN"):
        convert(tmp_path / "src", tmp_path / "dst", options)
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    "options, word",
    [
        ({"quantize": "int3"}, "int8 or int4"),
        ({"quantize": "int8", "group_size": 64}, "int4"),
        ({"group_size": 64}, "int4"),
        ({"quantize": "int8", "zero_points": True}, "int4"),
        ({"quantize": "int4", "group_size": 12}, "multiple of 8"),
        ({"quantize": "int4", "group_size": 0}, "multiple of 8"),
    ],
)
def test_bad_options_name_what_they_must_be(options, word):
    with pytest.raises(ValueError, match=word):
        ConversionOptions(**options)


def test_groups_that_do_not_divide_the_rows_are_refused_by_name(tmp_path):
    write_checkpoint(tmp_path / "src", CONFIG, tiny_state())
    for size, name in ((128, "n_embd is 16"), (16, "n_inner is 40")):
        options = ConversionOptions(quantize="int4", group_size=size)
        with pytest.raises(
            InputRefusedError, match=f"src: {name}, no multiple of the group size {size}"
        ):
            convert(tmp_path / "src", tmp_path / "dst", options)


# What is read.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_matrix_is_read_as_floats_or_as_stored(tmp_path, kind, dtype):
    folder = write_quantized(tmp_path, kind, dtype)
    stored = tensors_of(folder)
    with open_checkpoint(folder) as reader:
        assert sorted(reader.names) == sorted(tiny_state())
        assert reader.stored_dtype == dtype and reader.shape(MATRIX) == (16, 40)
        assert reader.stored_as(MATRIX) == ("int8" if kind == "int8" else "int4")
        weight = reader.read_weight(MATRIX)
        assert weight.shape == (16, 40) and (weight.offset is None) == (kind != "zero points")
        assert torch.equal(weight.scale, stored[f"{MATRIX}_scale"])
        floats = reader.read(MATRIX)
        assert torch.equal(floats, weight.dequantize(torch.float32))
        for rows in (slice(0, 3), slice(5, 14), slice(9, 16), slice(15, 16)):
            assert torch.equal(reader.read(MATRIX, rows), floats[rows])
        plain = reader.read_weight("lm_head.bias")
        assert plain.scale is None and torch.equal(plain.values, stored["lm_head.bias"])
    original = tiny_state(dtype=dtype)[MATRIX].float()
    assert (floats - original).norm() < (0.01 if kind == "int8" else 0.1) * original.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_as_stored_are_those_of_the_files(tmp_path, kind):
    folder = write_quantized(tmp_path, kind)
    with open_checkpoint(folder) as reader:
        stored = sum(tensor.nbytes for tensor in tensors_of(folder).values())
        assert sum(map(reader.stored_bytes, reader.names)) == reader.nbytes == stored
    report = inspect(folder)
    assert report.nbytes == stored and report.memory["as stored"] > stored
    bits = "int8" if kind == "int8" else "int4"
    count = 2 * (4 * 16 * 16 + 2 * 16 * 40) + (97 * 16 if kind == "int8" else 0)
    assert report.dtypes[bits] == count and sum(report.dtypes.values()) == report.parameters
    assert f"quantised: {bits}" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["quantization"]["format"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_folder_converts_back_to_the_floats_it_stands_for(tmp_path, kind):
    folder = write_quantized(tmp_path, kind)
    convert(folder, tmp_path / "back", ConversionOptions(dtype="float32", quiet=True))
    quantised, back = load_model(folder), load_model(tmp_path / "back")
    for name, tensor in quantised.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    with pytest.raises(InputRefusedError, match="quantised already"):
        convert(folder, tmp_path / "again", ConversionOptions(quantize="int8"))


def test_the_command_quantises_and_says_so(tmp_path, capsys):
    write_checkpoint(tmp_path / "src", CONFIG, tiny_state())
    source, target = str(tmp_path / "src"), str(tmp_path / "dst")
    command = ["convert", source, target, "--quantize", "int4"]
    assert main([*command, "--group-size", "7"]) == 2
    assert main(command) == 3
    assert "src: n_embd is 16, no multiple of the group size 128" in capsys.readouterr().err
    assert main([*command, "--group-size", "8", "--dry-run"]) == 0
    assert f"{MATRIX}_packed" in capsys.readouterr().out
    assert main([*command, "--group-size", "8"]) == 0
    assert "quantised: int4 in groups of 8, lm_head int8 per row" in capsys.readouterr().out
    assert main(["verify", target]) == 0
    assert main(["inspect", target, "--json"]) == 0
    assert '"int4":' in capsys.readouterr().out


def test_a_shortage_of_memory_is_told_before_a_quantised_folder_is_loaded(tmp_path):
    """A checkpoint of terabytes, all of it a hole in its file."""
    config, quantization = KoGPTConfig(n_embd=8192, n_layer=1000), Quantization(INT8, INT8)
    write_config(tmp_path, config)
    table = json.loads((tmp_path / "config.json").read_text())
    table["quantization_config"] = quantization.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(table))
    specs = Quantizer(lambda *_: torch.empty(0), quantization, expand(config), torch.float16).specs
    header = encode_header([(spec.name, spec.dtype, spec.shape) for spec in specs], {})
    size = sum(spec.nbytes for spec in specs)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    with pytest.raises(NotEnoughResourcesError, match="memory on cpu") as caught:
        load_model(tmp_path, dtype="float16")
    assert caught.value.exit_code == 4
    with open_checkpoint(tmp_path) as reader:
        assert reader.nbytes == size


# The layout is that of compressed-tensors, and transformers opens the folder.


def test_numbers_are_packed_as_the_library_packs_them():
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    q = torch.randint(-8, 8, (21, 40), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert torch.equal(pack_int4(q), helpers.pack_to_int32(q, 4))
    assert torch.equal(unpack_int4(pack_int4(q)), q)
    zeros = q[:, :5]
    assert torch.equal(pack_down(zeros), helpers.pack_to_int32(zeros, 4, packed_dim=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_the_folder_and_agrees(tmp_path, kind, dtype):
    """A product of an integer and a 16-bit scale is exact in float32, so weights are equal.

    Zero points transformers reads only on the way to floats, which it makes in the stored dtype.
    """
    pytest.importorskip("compressed_tensors", reason="transformers reads the layout with it")
    transformers = pytest.importorskip("transformers")
    folder = write_quantized(tmp_path, kind, dtype)
    options = {}
    if kind == "zero points":
        table = json.loads((folder / "config.json").read_text())["quantization_config"]
        options["quantization_config"] = transformers.CompressedTensorsConfig(
            **{**table, "dequantize": True}
        )
    theirs = transformers.GPTJForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    ids = torch.arange(30)[None]
    model = load_model(folder, "float32")
    with torch.no_grad():
        expected, logits = theirs(ids).logits, model(ids)
    rounded = torch.finfo(dtype).eps if kind == "zero points" else 0
    weights = model.state_dict()
    for name, tensor in theirs.state_dict().items():
        if name in weights:
            torch.testing.assert_close(tensor, weights[name], rtol=rounded, atol=rounded)
    # Logits, none beyond 1, move by no more than the weights they come from.
    torch.testing.assert_close(logits, expected, rtol=0, atol=max(1e-5, rounded))


def test_the_largest_of_four_bits_spans_seven_steps_and_a_half():
    rounded = round_rows(torch.tensor([[7.5, -3.0] * 16]), Scheme(4, 32), torch.float32)
    assert rounded.scale.item() == 1.0 and rounded.q[0, :2].tolist() == [7, -3]


def test_scales_of_float16_may_be_smaller_than_its_normal_numbers():
    values = torch.tensor([[7.5, -3.0] * 16]) * 2.0**-20
    rounded = round_rows(values, Scheme(4, 32), torch.float16)
    assert rounded.scale.item() == 2.0**-20 and rounded.q[0, :2].tolist() == [7, -3]


def test_memory_as_stored_is_that_of_the_files_and_of_a_context_in_16_bits(tmp_path):
    report = inspect(write_quantized(tmp_path, "int8"))
    cached = 2 * CONFIG.n_layer * CONFIG.n_positions * CONFIG.n_embd
    assert report.memory["as stored"] == report.nbytes + 2 * cached
    assert report.memory["float32"] == 4 * (CONFIG.num_parameters + cached)
