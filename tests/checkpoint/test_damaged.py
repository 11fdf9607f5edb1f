"""Damaged, mismatched and foreign checkpoints: each refused in one line that names the culprit."""

import io
import json
import os
import re
import struct
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kogpt.checkpoint import convert, load_model, mesh, open_checkpoint
from kogpt.checkpoint.safetensors_file import parse_header
from kogpt.errors import InputRefusedError
from tests.checkpoint.test_formats import shard_by_hand
from tests.checkpoint.tiny import CONFIG, tiny_state, write_config, write_released

BIN, SAFE = "pytorch_model.bin", "model.safetensors"
INDEX = f"{SAFE}.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LAYER = "transformer.h.1."

KINDS: dict[str, tuple] = {}  # id -> (writes the damage into a folder, what the message must say)


def kind(name, damage, *words):
    assert name not in KINDS
    KINDS[name] = (damage, words)


# Tensors: in one .bin and in one .safetensors alike.


def save_both(change):
    """Two ways to write a state dict after `change` did something to it."""

    def as_bin(folder):
        state = dict(tiny_state(dtype=torch.float16))
        change(state)
        torch.save(state, folder / BIN)

    def as_safetensors(folder):
        state = dict(tiny_state(dtype=torch.float16))
        change(state)
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, folder / SAFE)

    return {"bin": as_bin, "safetensors": as_safetensors}


def state_kind(name, change, *words):
    for form, damage in save_both(change).items():
        kind(f"{name} ({form})", damage, *words)


ONE_OF_EACH = [
    "transformer.wte.weight",
    *(LAYER + n for n in ("ln_1.weight", "ln_1.bias", "attn.q_proj.weight", "mlp.fc_in.bias")),
    *(LAYER + n for n in ("attn.out_proj.weight", "mlp.fc_in.weight", "mlp.fc_out.weight")),
    "transformer.ln_f.bias",
    "lm_head.weight",
    "lm_head.bias",
]
for key in ONE_OF_EACH:
    state_kind(f"missing {key}", lambda state, key=key: state.pop(key), f"{key} is missing")
    state_kind(
        f"misshapen {key}",
        lambda state, key=key: state.update({key: state[key][:-1]}),
        f"{key} has shape",
        "the config asks for",
    )


def put(name, tensor):
    return lambda state: state.update({name: tensor})


state_kind("an unknown tensor", put("transformer.wpe.weight", torch.ones(3)), "wpe", "allow-extra")
state_kind("a layer too many", put("transformer.h.2.ln_1.bias", torch.ones(16).half()), "h.2.ln_1")
state_kind("transposed", put(LAYER + "mlp.fc_in.weight", torch.ones(16, 40).half()), "[16, 40]")
state_kind("a bias in attention", put(LAYER + "attn.q_proj.bias", torch.ones(16)), "q_proj.bias")
state_kind("float64", put("lm_head.bias", torch.ones(97).double()), "lm_head.bias is float64")
state_kind("integers", put("lm_head.bias", torch.ones(97).long()), "lm_head.bias is int64")
state_kind(
    "bitsandbytes 8 bit",
    put(LAYER + "attn.q_proj.SCB", torch.ones(16)),
    "q_proj.SCB",
    "quantised",
)
state_kind(
    "int8 weights", put("lm_head.weight", torch.ones(97, 16).char()), "lm_head.weight", "quantised"
)
state_kind(
    "bitsandbytes 4 bit",
    put(LAYER + "attn.q_proj.weight.quant_state.bitsandbytes__nf4", torch.ones(5).byte()),
    "quant_state",
    "quantised",
)
state_kind(
    "GPTQ", put(LAYER + "attn.q_proj.qweight", torch.ones(2, 16).int()), "qweight", "quantised"
)
state_kind(
    "compressed-tensors", put(LAYER + "mlp.fc_in.weight_packed", torch.ones(40, 2).int()), "packed"
)
state_kind(
    "NaN", put("lm_head.bias", torch.full((97,), torch.nan).half()), "lm_head.bias", "97 NaN"
)
state_kind("infinity", put("lm_head.bias", torch.full((97,), -torch.inf).half()), "97 infinite")
state_kind("no tensors", lambda state: state.clear(), "transformer.wte.weight is missing")


def renamed(rename):
    def change(state):
        for name in list(state):
            state[rename(name)] = state.pop(name)

    return change


state_kind(
    "names of several processes",
    renamed("module.{}".format),
    "transformer.wte.weight is missing; with another prefix there is module.transformer.wte.weight",
)
state_kind(
    "names of a base model",
    renamed(lambda name: name.removeprefix("transformer.")),
    "transformer.wte.weight is missing; with another prefix there is wte.weight",
)
kind("a nested state dict", lambda d: torch.save({"model": tiny_state()}, d / BIN), "a table")
kind("a list", lambda d: torch.save([torch.ones(2)], d / BIN), BIN, "unsafe pickle")

# Files.


def good_bin(folder):
    write_released(folder)
    return folder / BIN


def good_safetensors(folder):
    safetensors.torch.save_file(tiny_state(dtype=torch.float16), folder / SAFE)
    return folder / SAFE


def good_shards(folder):
    shard_by_hand(folder, tiny_state(dtype=torch.float16), "safetensors")
    return folder / INDEX


def cut(make, share):
    def damage(folder):
        path = make(folder)
        os.truncate(path, int(path.stat().st_size * share))

    return damage


def append(make, data):
    def damage(folder):
        with make(folder).open("ab") as file:
            file.write(data)

    return damage


for share in (0.0, 0.001, 0.01, 0.5, 0.99):
    kind(f"a .bin cut to {share}", cut(good_bin, share), BIN)
    kind(f"a .safetensors cut to {share}", cut(good_safetensors, share), SAFE)
kind("a .bin with a tail", append(good_bin, b"tail"), BIN)
kind("a .safetensors with a tail", append(good_safetensors, b"tail"), SAFE, "the file holds")
kind("an empty .bin", lambda d: (d / BIN).touch(), BIN, "empty")
kind("an empty .safetensors", lambda d: (d / SAFE).touch(), SAFE, "empty")
kind("a folder for a .bin", lambda d: (d / BIN).mkdir(), BIN, "not a regular file")
kind("a folder for a .safetensors", lambda d: (d / SAFE).mkdir(), SAFE, "not a regular file")
kind("a pipe", lambda d: os.mkfifo(d / SAFE), SAFE, "not a regular file")
kind("a device", lambda d: (d / BIN).symlink_to("/dev/zero"), BIN, "not a regular file")
kind("a dangling link", lambda d: (d / BIN).symlink_to("nowhere"), BIN, "No such file")
kind("a link to itself", lambda d: (d / BIN).symlink_to(BIN), BIN)
kind("GGUF", lambda d: (d / BIN).write_bytes(b"GGUF" + bytes(64)), "GGUF")
kind("ggml", lambda d: (d / BIN).write_bytes(b"lmgg" + bytes(64)), "ggml")
kind("HDF5", lambda d: (d / BIN).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "HDF5")
kind(
    "a Git LFS pointer",
    lambda d: (d / SAFE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "git lfs pull",
)
kind("a web page", lambda d: (d / SAFE).write_text("<!DOCTYPE html><html>" * 50), SAFE)
kind("text for a .bin", lambda d: (d / BIN).write_text("hello " * 50), BIN, "not a torch.save")
kind("no weights", lambda d: None, "holds no weights")
kind(
    "only GGUF files",
    lambda d: (d / "kogpt.Q4_0.gguf").write_bytes(b"GGUF"),
    "kogpt.Q4_0.gguf",
    "GGUF",
)
kind(
    "only an adapter",
    lambda d: (d / "adapter_model.safetensors").touch(),
    "adapter_model",
    "give it as one",
)
kind(
    "only slices of a distributed checkpoint",
    lambda d: (d / "__0_0.distcp").touch(),
    "__0_0.distcp",
    "format_utils dcp_to_torch",
)
for name in ("pytorch_model.fp16.bin", "model.fp16.safetensors", "consolidated.00.pth"):
    kind(
        f"only {name}",
        lambda d, name=name: [(d / each).touch() for each in (name, "optimizer.pt")],
        "holds no weights",
        f"if the file is given: '{name}'",
    )
kind(
    "floats of 8 bits",
    lambda d: safetensors.torch.save_file(
        {name: x.to(torch.float8_e4m3fn) for name, x in tiny_state().items()},
        d / "model.safetensors",
    ),
    "model.safetensors: ",
    "is F8_E4M3, so this is a quantised copy",
)
kind("only TensorFlow", lambda d: (d / "tf_model.h5").touch(), "tf_model.h5")

# Indexes that are honest, but wrong.


def edit_index(change):
    def damage(folder):
        path = good_shards(folder)
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    return damage


def swap(folder):
    good_shards(folder)
    (folder / FIRST).rename(folder / "t")
    (folder / SECOND).rename(folder / FIRST)
    (folder / "t").rename(folder / SECOND)


def both_hold(folder):
    good_shards(folder)
    state = tiny_state(dtype=torch.float16)
    half = {name: state[name] for name in list(state)[1::2]}
    safetensors.torch.save_file({**half, "lm_head.bias": state["lm_head.bias"]}, folder / SECOND)
    first = {name: state[name] for name in list(state)[::2]}
    safetensors.torch.save_file({**first, "lm_head.bias": state["lm_head.bias"]}, folder / FIRST)


def stale(folder):
    good_shards(folder)
    safetensors.torch.save_file({"lm_head.bias": torch.ones(97)}, folder / SECOND)


kind("a missing shard", lambda d: (good_shards(d), (d / SECOND).unlink()), SECOND, "No such file")
kind("swapped shards", swap, INDEX, "is not in")
kind("one tensor in two shards", both_hold, SECOND, "lm_head.bias is in", FIRST)
kind("an index of other shards", stale, SECOND, "lm_head.bias")
kind("a truncated shard", lambda d: os.truncate(good_shards(d).parent / FIRST, 900), FIRST)
kind("an empty shard", lambda d: os.truncate(good_shards(d).parent / FIRST, 0), FIRST)
kind(
    "a wrong total_size",
    edit_index(lambda index: index["metadata"].update(total_size=12)),
    INDEX,
    "total_size is 12",
)
kind(
    "too large a total_size",
    edit_index(lambda index: index["metadata"].update(total_size=1 << 40)),
    INDEX,
    "total_size is 1099511627776",
)
kind(
    "a tensor that the index lacks",
    edit_index(lambda index: index["weight_map"].pop("lm_head.bias")),
    INDEX,
    "lm_head.bias is not listed",
)
kind(
    "a tensor that only the index has",
    edit_index(lambda index: index["weight_map"].update(ghost=FIRST)),
    INDEX,
    "ghost is not in",
)
kind("an empty weight_map", edit_index(lambda i: i.update(weight_map={})), INDEX, "weight_map")
kind("no weight_map", edit_index(lambda i: i.pop("weight_map")), INDEX, "weight_map")
kind("an index cut short", lambda d: os.truncate(good_shards(d), 100), INDEX, "bad index")

# Configs.


def config_kind(name, change, *words):
    def damage(folder):
        good_bin(folder)
        values = CONFIG.to_dict()
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    kind(f"config: {name}", damage, "config.json", *words)


def setting(key, value):
    return lambda values: values.update({key: value})


config_kind("0 heads", setting("n_head", 0), "n_head is 0")
config_kind("10^9 layers", setting("n_layer", 10**9), "n_layer")
config_kind("a negative width", setting("n_embd", -16), "n_embd")
config_kind("a width of text", setting("n_embd", "16"), "n_embd")
config_kind("another network", setting("model_type", "gpt2"), "gpt2")
config_kind("another activation", setting("activation_function", "relu"), "relu")
config_kind("tied", setting("tie_word_embeddings", True), "tie_word_embeddings")
config_kind("rotary beyond the head", setting("rotary_dim", 64), "rotary_dim")
config_kind("no width", lambda values: values.pop("n_embd"), "n_embd is missing")
config_kind("quantised", setting("quantization_config", {"load_in_8bit": True}), "quantised")
kind("config: missing", lambda d: (good_bin(d), (d / "config.json").unlink()), "config.json")
kind("config: no JSON", lambda d: (good_bin(d), (d / "config.json").write_text("{")), "config.json")
kind("config: a list", lambda d: (good_bin(d), (d / "config.json").write_text("[]")), "config.json")
kind(
    "config: a pipe",
    lambda d: (good_bin(d), (d / "config.json").unlink(), os.mkfifo(d / "config.json")),
    "config.json",
    "not a regular file",
)
kind(
    "another width",
    lambda d: (good_bin(d), write_config(d, CONFIG.__class__(**{**vars(CONFIG), "n_inner": 44}))),
    "[40, 16]",
    "[44, 16]",
)
kind(
    "a tokenizer that is a pipe",
    lambda d: (good_bin(d), os.mkfifo(d / "tokenizer.json")),
    "tokenizer.json",
)


def test_there_are_more_kinds_than_asked_for():
    assert len(KINDS) >= 60


@pytest.mark.parametrize("name", KINDS)
def test_a_bad_checkpoint_is_refused_by_name_and_nothing_is_written(tmp_path, name):
    damage, words = KINDS[name]
    source, output = tmp_path / "src", tmp_path / "out"
    write_config(source)
    output.mkdir()
    damage(source)
    with pytest.raises(InputRefusedError) as caught:
        convert(source, output / "dst")
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 3
    for word in words:
        assert word in message
    assert os.listdir(output) == []


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(InputRefusedError, match="nowhere: no such file"):
        convert(tmp_path / "nowhere", tmp_path / "dst")
    with pytest.raises(InputRefusedError, match="no such file"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("good", [good_bin, good_safetensors])
def test_a_file_that_becomes_shorter_while_it_is_open_is_refused(tmp_path, good):
    """A mapping would kill the process."""
    write_config(tmp_path)
    path = good(tmp_path)
    with open_checkpoint(tmp_path) as reader:
        reader.read("transformer.wte.weight")
        os.truncate(path, 1000)
        with pytest.raises(InputRefusedError, match=f"{path.name}: lm_head.weight ends early"):
            reader.read("lm_head.weight")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path):
    good_bin(tmp_path).chmod(0)
    with pytest.raises(InputRefusedError, match="no permission"):
        convert(tmp_path, tmp_path.parent / "dst")


def test_the_folder_of_a_run_names_its_newest_checkpoint(tmp_path):
    for step in ("step-00000002", "step-00000010"):
        write_config(tmp_path / "run" / step)
    with pytest.raises(InputRefusedError, match="run: the folder of a run; .*run/step-00000010$"):
        open_checkpoint(tmp_path / "run")


def test_a_model_is_not_loaded_from_a_bad_checkpoint_either(tmp_path):
    write_config(tmp_path)
    KINDS[f"missing {LAYER}ln_1.bias (bin)"][0](tmp_path)
    with pytest.raises(InputRefusedError, match=re.escape(f"{LAYER}ln_1.bias is missing")):
        load_model(tmp_path)


def test_names_may_not_break_the_line(tmp_path: Path):
    write_config(tmp_path)
    torch.save({**tiny_state(), "two\nlines": torch.ones(1)}, tmp_path / BIN)
    with pytest.raises(InputRefusedError, match=r"'two\\nlines'"):
        load_model(tmp_path)


def test_a_member_whose_name_is_no_utf8_is_refused(tmp_path):
    path = tmp_path / "weights.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("아/data.pkl", b"")
    path.write_bytes(path.read_bytes().replace("아".encode(), b"\xff\xff\xff"))
    with pytest.raises(InputRefusedError, match="weights.bin: .*utf-8"):
        open_checkpoint(path)


def test_an_array_whose_header_breaks_off_is_refused(tmp_path):
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4(, }\n"
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with pytest.raises(InputRefusedError, match="0.npz: arr_0.npy: "):
        mesh._read_npy_header(io.BytesIO(header), tmp_path / "0.npz", "arr_0.npy")


@pytest.mark.parametrize("text", [b"-" * 9000 + b"1", b"(" * 9000], ids=["signs", "brackets"])
def test_an_array_whose_header_is_nested_is_refused(tmp_path, text):
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with pytest.raises(InputRefusedError, match="0.npz: arr_0.npy: "):
        mesh._read_npy_header(io.BytesIO(header), tmp_path / "0.npz", "arr_0.npy")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_slice_that_is_no_file_is_refused(tmp_path, make):
    (tmp_path / "shard_0").mkdir()
    make(tmp_path / "shard_0" / "0.npz")
    with pytest.raises(InputRefusedError, match="0.npz: not a regular file"):
        list(mesh._read_archive(tmp_path / "shard_0" / "0.npz"))


def test_a_member_beyond_all_places_is_refused(tmp_path):
    path = tmp_path / "weights.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/data/0", b"")
    raw = bytearray(path.read_bytes())
    directory = raw.rindex(b"PK\x01\x02")  # of the last member
    extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)  # zip64: its place
    raw[directory + 30 : directory + 32] = struct.pack("<H", len(extra))
    raw[directory + 42 : directory + 46] = b"\xff" * 4
    end = raw.rindex(b"PK\x05\x06")
    raw[end:end] = extra
    (size,) = struct.unpack_from("<I", raw, end + len(extra) + 12)
    struct.pack_into("<I", raw, end + len(extra) + 12, size + len(extra))
    path.write_bytes(raw)
    with pytest.raises(InputRefusedError, match="weights.bin: "):
        open_checkpoint(path)


def test_a_config_without_a_kind_can_be_replaced(tmp_path):
    good_safetensors(tmp_path)
    values = CONFIG.to_dict()
    del values["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with open_checkpoint(tmp_path, config=CONFIG) as reader:
        assert reader.require_config() == CONFIG


def test_a_repeated_key_is_found_in_no_time():
    text = b'{%s,"z":0,"z":0}' % b",".join(b'"%x":0' % i for i in range(100_000))
    start = time.perf_counter()
    with pytest.raises(InputRefusedError, match="'z' appears twice"):
        parse_header(text, 0, "file")
    assert time.perf_counter() - start < 5  # it grew with their square, to more than a minute


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may enter all
    with pytest.raises(InputRefusedError, match=f"^{tmp_path}: no permission to read it$"):
        load_model(tmp_path)
