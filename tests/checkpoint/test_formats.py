"""Every format that GPT-J weights come in is read as the same tensors."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from kogpt.checkpoint import (
    ConversionOptions,
    convert,
    inspect,
    load_model,
    open_checkpoint,
    pickle_file,
    pickle_guard,
)
from kogpt.checkpoint.names import expand
from kogpt.checkpoint.pickle_file import PickleFile
from kogpt.errors import InputRefusedError
from kogpt.model import PRESETS, KoGPT
from tests.checkpoint.tiny import CONFIG, tiny_state, write_config, write_released


def with_masks(dtype: torch.dtype, shared: bool) -> dict:
    state = dict(tiny_state(dtype=torch.float16))
    size = CONFIG.n_positions
    mask = torch.ones(1, 1, size, size).tril().to(dtype)
    for layer in range(CONFIG.n_layer):
        state[f"transformer.h.{layer}.attn.bias"] = mask if shared else mask.clone()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-math.inf).half()
        state[f"transformer.h.{layer}.attn.embed_positions"] = torch.ones(size, 4)
    return state


def shard_by_hand(folder: Path, state: dict, extension: str) -> None:
    """Two shards and an index, as transformers would name them."""
    stem = "model" if extension == "safetensors" else "pytorch_model"
    names = list(state)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{i:05}-of-00002.{extension}"
        tensors = {name: state[name].clone() for name in part}
        if extension == "safetensors":
            safetensors.torch.save_file(tensors, folder / file, {"format": "pt"})
        else:
            torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{extension}.index.json").write_text(json.dumps(index))


def ordered(state: dict) -> torch.nn.Module:
    """The state dict as `model.state_dict()` gives it: an OrderedDict with version numbers."""
    model = KoGPT(CONFIG)
    model.load_state_dict(state, assign=True)
    return model.state_dict()


def parameters(state: dict) -> dict:
    return {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}


BIN = "pytorch_model.bin"
FORMS = {
    "released": lambda d: write_released(d),
    "one bin with a model's state dict": lambda d: torch.save(
        ordered(tiny_state(dtype=torch.float16)), d / BIN
    ),
    "one bin of parameters": lambda d: torch.save(
        parameters(tiny_state(dtype=torch.float16)), d / BIN
    ),
    "uint8 masks, each its own": lambda d: torch.save(with_masks(torch.uint8, False), d / BIN),
    "float masks, shared": lambda d: torch.save(with_masks(torch.float32, True), d / BIN),
    "sharded bin": lambda d: shard_by_hand(d, with_masks(torch.bool, True), "bin"),
    "sharded safetensors": lambda d: shard_by_hand(
        d, with_masks(torch.uint8, False), "safetensors"
    ),
    "one safetensors": lambda d: safetensors.torch.save_file(
        with_masks(torch.uint8, False), d / "model.safetensors"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_every_form_come_out_bit_for_bit(tmp_path, form):
    source = tmp_path / "src"
    write_config(source)
    FORMS[form](source)
    report = convert(source, tmp_path / "dst", ConversionOptions(max_shard_size=4000))
    assert all("attn.bias" in n or "masked" in n or "embed_pos" in n for n in report.ignored)
    with open_checkpoint(tmp_path / "dst") as reader:
        assert not reader.ignored
        for name, tensor in tiny_state(dtype=torch.float16).items():
            assert torch.equal(reader.read(name), tensor)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("asked", ["float32", "float16", "bfloat16", None])
def test_every_dtype_becomes_every_other_as_torch_rounds_it(tmp_path, stored, asked):
    state = tiny_state(dtype=stored)
    write_released(tmp_path / "src", state)
    convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(dtype=asked))
    target = stored if asked is None else getattr(torch, asked)
    with open_checkpoint(tmp_path / "dst") as reader:
        for name, tensor in state.items():
            assert torch.equal(reader.read(name), tensor.to(target))
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["dtype"] in str(target)


def test_a_file_of_weights_may_be_named_itself(tmp_path):
    write_released(tmp_path)
    (tmp_path / BIN).rename(tmp_path / "weights.pt")
    assert inspect(tmp_path / "weights.pt").parameters == CONFIG.num_parameters


def test_of_two_forms_the_one_that_can_hold_no_program_is_read(tmp_path):
    write_released(tmp_path)
    safetensors.torch.save_file(tiny_state(), tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as reader:
        assert [path.name for path in reader.files] == ["model.safetensors"]


def test_what_transformers_saves_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    values = {k: v for k, v in CONFIG.to_dict().items() if k not in ("architectures", "model_type")}
    torch.manual_seed(0)
    theirs = transformers.GPTJForCausalLM(transformers.GPTJConfig(**values)).eval()
    theirs.save_pretrained(tmp_path / "src", max_shard_size="6KB")
    convert(tmp_path / "src", tmp_path / "dst")
    again = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "dst")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)
        ours = load_model(tmp_path / "src")(ids)
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_the_name_table_is_the_state_dict_of_the_model(name):
    with torch.device("meta"):
        model = KoGPT(PRESETS[name])
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert expand(PRESETS[name]) == shapes
    assert list(expand(PRESETS[name])) == list(shapes)


# mesh-transformer-jax: the writer below follows the library, leaf by leaf, and is the oracle.


def write_mesh(folder: Path, shards: int, half: bool) -> dict:
    """A slim checkpoint of random weights; returns the tensors it stands for, in float32."""
    generator = torch.Generator().manual_seed(5)
    dtype = torch.float16 if half else torch.bfloat16
    C, F, V = CONFIG.n_embd, CONFIG.inner_dim, CONFIG.vocab_size + 1

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul(0.1).to(dtype)

    leaves: dict[str, list[torch.Tensor]] = {}
    ours: dict[str, torch.Tensor] = {}

    def columns(leaf: str, name: str, inputs: int, outputs: int) -> None:
        whole = draw(inputs, outputs)
        leaves[leaf] = list(whole.chunk(shards, dim=1))
        ours[name] = whole.T.float()

    def rows(leaf: str, name: str, inputs: int, outputs: int) -> None:
        whole = draw(inputs, outputs)
        leaves[leaf] = list(whole.chunk(shards, dim=0))
        ours[name] = whole.T.float()

    def pieces(leaf: str, name: str, size: int) -> None:
        whole = draw(size)
        leaves[leaf] = list(whole.chunk(shards))
        ours[name] = whole.float()

    def terms(leaf: str, size: int) -> torch.Tensor:
        leaves[leaf] = [draw(size) for _ in range(shards)]
        return sum(term.float() for term in leaves[leaf])

    def copies(leaf: str, name: str) -> None:
        whole = draw(C)
        leaves[leaf] = [whole] * shards
        ours[name] = whole.float()

    bias = terms("embedding_shard/~/linear/b", C)
    embedding = draw(V, C)
    leaves["embedding_shard/~/linear/w"] = list(embedding.chunk(shards))
    ours["transformer.wte.weight"] = embedding.float() + bias
    for i in range(CONFIG.n_layer):
        theirs, prefix = f"layer_{i}/~/", f"transformer.h.{i}."
        columns(f"{theirs}linear/w", f"{prefix}attn.q_proj.weight", C, C)
        columns(f"{theirs}linear_1/w", f"{prefix}attn.v_proj.weight", C, C)
        columns(f"{theirs}linear_2/w", f"{prefix}attn.k_proj.weight", C, C)
        rows(f"{theirs}linear_3/w", f"{prefix}attn.out_proj.weight", C, C)
        pieces(f"{theirs}linear_4/b", f"{prefix}mlp.fc_in.bias", F)
        columns(f"{theirs}linear_4/w", f"{prefix}mlp.fc_in.weight", C, F)
        ours[f"{prefix}mlp.fc_out.bias"] = terms(f"{theirs}linear_5/b", C)
        rows(f"{theirs}linear_5/w", f"{prefix}mlp.fc_out.weight", F, C)
        copies(f"{theirs}replicated_layer_norm/offset", f"{prefix}ln_1.bias")
        copies(f"{theirs}replicated_layer_norm/scale", f"{prefix}ln_1.weight")
    pieces("projection_shard/~/linear/b", "lm_head.bias", V)
    columns("projection_shard/~/linear/w", "lm_head.weight", C, V)
    copies("projection_shard/~/replicated_layer_norm/offset", "transformer.ln_f.bias")
    copies("projection_shard/~/replicated_layer_norm/scale", "transformer.ln_f.weight")
    for shard in range(shards):
        arrays = [_numpy(leaves[leaf][shard]) for leaf in sorted(leaves)] + [np.array(7)]
        _write_shard(folder / f"shard_{shard}", arrays, pieces=4)
    return ours


def _numpy(values: torch.Tensor) -> np.ndarray:
    array = values.contiguous().view(torch.int16).numpy()
    return array.view("V2" if values.dtype == torch.bfloat16 else np.float16)


def _write_shard(folder: Path, arrays: list, pieces: int) -> None:
    folder.mkdir(parents=True)
    for i, part in enumerate(np.array_split(np.arange(len(arrays)), pieces)):
        np.savez(folder / f"{i}.npz", *(arrays[j] for j in part))


@pytest.fixture
def mesh_config(tmp_path):
    import dataclasses

    config = dataclasses.replace(CONFIG, vocab_size=CONFIG.vocab_size + 1)
    write_config(tmp_path / "src", config)
    return config


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("half", [False, True])
def test_a_mesh_transformer_checkpoint_is_joined_transposed_and_summed(
    tmp_path, mesh_config, shards, half
):
    ours = write_mesh(tmp_path / "src", shards, half)
    convert(tmp_path / "src", tmp_path / "exact", ConversionOptions(dtype="float32"))
    report = convert(tmp_path / "src", tmp_path / "as stored")
    with open_checkpoint(tmp_path / "src") as source, open_checkpoint(tmp_path / "exact") as exact:
        assert set(source.names) == set(ours) == set(exact.names)
        for name, tensor in ours.items():
            assert torch.equal(exact.read(name), tensor), name
            assert torch.equal(source.read(name, slice(5, 13)).float(), tensor[5:13]), name
    assert {line.dtype for line in report.tensors} == {"float16" if half else "bfloat16"}


def test_a_mesh_checkpoint_without_one_archive_is_refused(tmp_path, mesh_config):
    write_mesh(tmp_path / "src", 2, False)
    (tmp_path / "src" / "shard_1" / "2.npz").unlink()
    with pytest.raises(InputRefusedError, match="shard_1/2.npz: missing"):
        open_checkpoint(tmp_path / "src")


VIEWS = {
    "whole": torch.arange(24.0).view(4, 6),
    "later": torch.arange(60.0).view(10, 6)[3:7],
    "transposed": torch.arange(24.0).view(6, 4).T,
    "every other": torch.arange(48.0).view(8, 6)[::2],
    "columns": torch.arange(48.0).view(4, 12)[:, 3:9],
    "expanded": torch.arange(6.0).expand(4, 6),
    "one row": torch.arange(12.0).view(2, 6).T[2:3],
    "empty": torch.empty(0, 6),
    "bits": torch.arange(24).view(4, 6) % 2 == 0,
    "number": torch.tensor(7.0),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_read_from_a_pickle_as_it_was_saved(tmp_path, name):
    """Those whose values lie one after the other as bytes, without torch."""
    torch.save(VIEWS, tmp_path / "views.bin")
    file, view = PickleFile(tmp_path / "views.bin"), VIEWS[name]
    assert file.tensors[name].is_contiguous is view.is_contiguous()
    assert torch.equal(file.read(name), view) and file.read(name).dtype is view.dtype
    if view.ndim:
        for rows in (slice(0, 2), slice(1, 3), slice(2, 99), slice(3, 1)):
            assert torch.equal(file.read(name, rows), view[rows])
    assert ("_mapped" in vars(file)) is not view.is_contiguous()
    file.close()


def test_a_read_that_gives_less_than_asked_for_goes_on(tmp_path, monkeypatch):
    """Linux reads 2 GiB at once at most."""
    torch.save({"x": torch.arange(24.0)}, tmp_path / "x.bin")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:7]], at))
    assert PickleFile(tmp_path / "x.bin").read("x").equal(torch.arange(24.0))


def test_a_file_that_is_replaced_is_read_on_as_it_was(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"x": torch.arange(24.0)}, path)
    file = PickleFile(path)
    torch.save({"y": torch.zeros(99), "x": torch.zeros(24)}, tmp_path / "other.bin")
    os.replace(tmp_path / "other.bin", path)
    assert file.read("x").equal(torch.arange(24.0))


def test_a_file_that_is_replaced_while_it_is_opened_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    torch.save({"x": torch.arange(24.0)}, path)
    torch.save({"x": torch.arange(48.0)}, tmp_path / "other.bin")

    def late(path):
        os.replace(tmp_path / "other.bin", path)
        return pickle_guard.describe(path)

    monkeypatch.setattr(pickle_file, "describe", late)
    with pytest.raises(InputRefusedError, match="x.bin: was replaced while it was read"):
        PickleFile(path)


def test_a_transposed_tensor_of_a_file_that_is_replaced_is_refused(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"x": torch.arange(24.0).view(4, 6).T}, path)
    file = PickleFile(path)
    torch.save({"x": torch.zeros(4, 6).T}, tmp_path / "other.bin")
    os.replace(tmp_path / "other.bin", path)
    with pytest.raises(InputRefusedError, match="x.bin: was replaced while it was read"):
        file.read("x")
