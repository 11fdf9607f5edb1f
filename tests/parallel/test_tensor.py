"""One model held by several processes computes what one process computes."""

import dataclasses
import json

import pytest
import torch

from kogpt.checkpoint import load_model, write_checkpoint
from kogpt.errors import InputRefusedError, NotEnoughResourcesError
from kogpt.model import KVCache
from kogpt.parallel import Parallel, loading
from kogpt.parallel.loading import _place, load_parallel
from kogpt.parallel.parts import held
from kogpt.parallel.tensor import check_divides, plan, tensor_parallel
from tests.parallel.launch import run
from tests.parallel.tiny import (
    CONFIG,
    GPT2_CONFIG,
    NEOX_CONFIG,
    some_ids,
    tiny_model,
    write_tiny,
)

ODD = dataclasses.replace(CONFIG, vocab_size=89)


def compare(parallel, folder):
    """Largest differences between the model in parts and the whole one, read from one folder."""
    model, expected = load_parallel(folder, parallel), load_model(folder)
    ids, starts = some_ids(), torch.tensor([0, 3, 11, 1])
    with torch.inference_mode():
        cache, plain = KVCache(12), KVCache(12)
        parts = [model(ids[:, :7], cache, starts), model(ids[:, 7:], cache, starts)]
        cached = torch.cat(parts, 1) - expected(ids, None, starts)
        expected(ids, plain)
        whole = model(ids) - expected(ids)
        last = model.logits(model.transformer(ids)[:, -1:]) - expected(ids)[:, -1:]
    model(ids).square().sum().backward()
    expected(ids).square().sum().backward()
    wanted = dict(expected.named_parameters())
    gradients = [
        ((p.grad.full_tensor() - wanted[name].grad).norm() / wanted[name].grad.norm()).item()
        for name, p in model.named_parameters()
    ]
    logits = model(ids).tolist()
    return {
        "logits": [x.abs().max().item() for x in (whole, last)],
        # Rows of padding hold finite values of no meaning.
        "padded": cached[starts[:, None] <= torch.arange(12)].abs().max().item(),
        "gradients": max(gradients),
        "cache": cache.nbytes / plain.nbytes,
        "held": sum(held(p).numel() for p in model.parameters()),
        "bits": [parallel.once(lambda: logits) == logits],
    }


@pytest.mark.parametrize("config", [CONFIG, ODD, NEOX_CONFIG], ids=["even", "odd", "gpt_neox"])
def test_logits_cache_and_gradients_of_two_processes_are_those_of_one(tmp_path, config):
    for found in run(2, compare, str(write_tiny(tmp_path / "model", config)), tensor=2):
        assert max(found["logits"]) < 1e-5
        assert found["padded"] < 1e-5
        assert found["gradients"] < 1e-5
        assert found["cache"] == 0.5
        assert found["bits"] == [True]  # what is drawn from them cannot differ
        count = config.num_parameters
        if config is CONFIG:
            assert count / 2 < found["held"] < 0.52 * count  # norms, and biases of sums, are whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "tensor parallel 3 does not divide the model's 4 heads"),
        ({"n_head": 3, "n_embd": 36}, "tensor parallel 3 does not divide the model's 73 inner"),
    ],
)
def test_a_model_that_cannot_be_cut_evenly_is_refused_with_both_numbers(change, message):
    config = dataclasses.replace(CONFIG, n_inner=73, **change)
    with pytest.raises(ValueError, match=message):
        check_divides(config, 3)


def test_a_head_that_is_the_embedding_is_refused():
    with pytest.raises(ValueError, match="this model's is the embedding"):
        plan(tiny_model(GPT2_CONFIG), 2)


def test_a_network_that_was_changed_is_refused(monkeypatch):
    monkeypatch.setattr("kogpt.parallel.tensor.change", lambda: "transformer.py")
    with pytest.raises(ValueError, match="and transformer.py was changed"):
        tensor_parallel(tiny_model(CONFIG), Parallel(0, 2, tensor_size=2))


def test_processes_that_cannot_hold_models_together_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="tensor parallel 2 does not divide the 3 processes"):
        Parallel(0, 3, tensor_size=2)


def test_one_process_alone_holds_the_whole_model(tmp_path):
    folder = write_tiny(tmp_path / "model")
    model, expected = load_parallel(folder, Parallel()), tiny_model()
    for (name, p), (_, q) in zip(
        model.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name
    assert torch.equal(model(some_ids()), expected.eval()(some_ids()))


def test_shards_that_are_offloaded_lie_on_the_cpu_and_all_else_on_the_device():
    """FSDP refuses parameters on a GPU that it shall offload; a name stands for a GPU here."""
    shards, columns = (Parallel(0, 4, tensor_size=n, device="cuda:3") for n in (2, 4))
    table, weight = torch.empty(0), torch.empty(0)
    weight.full_tensor = lambda: weight  # as parameters that are cut have it
    places = {
        (rows.data_size, offload): [_place(rows, offload, t).type for t in (table, weight)]
        for rows in (shards, columns)
        for offload in (False, True)
    }
    assert places.pop((2, True)) == ["cuda", "cpu"]
    assert set(map(tuple, places.values())) == {("cuda", "cuda")}


def test_a_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputRefusedError):
        load_parallel(tmp_path, Parallel())


def test_a_head_that_is_the_embedding_is_refused_by_its_config():
    with pytest.raises(ValueError, match="this model's is the embedding"):
        check_divides(GPT2_CONFIG, 2)


def test_a_model_for_which_there_is_no_room_is_refused(tmp_path, monkeypatch):
    def refuse(device, needed, what):
        assert needed == 4 * CONFIG.num_parameters + loading.ROOM_TO_RUN
        raise NotEnoughResourcesError(what)

    folder = write_tiny(tmp_path / "model")
    monkeypatch.setattr(loading, "require_memory", refuse)
    with pytest.raises(NotEnoughResourcesError, match=str(folder)):
        load_parallel(folder, Parallel())


def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(tmp_path):
    model = load_parallel(write_tiny(tmp_path / "model"), Parallel(), "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
    """Not read as far as its rows go."""
    folder = write_tiny(tmp_path / "model")
    other = dataclasses.replace(CONFIG, vocab_size=80)
    (folder / "config.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(InputRefusedError, match="transformer.wte.weight"):
        load_parallel(folder, Parallel())


def test_halves_are_computed_with_as_by_one_process(tmp_path):
    """A CPU is never silently half."""
    halves = {name: tensor.half() for name, tensor in tiny_model().state_dict().items()}
    write_checkpoint(tmp_path / "model", CONFIG, halves)
    model = load_parallel(tmp_path / "model", Parallel())
    assert model.dtype == load_model(tmp_path / "model").dtype == torch.float32


def test_a_model_that_is_loaded_drops_nothing(tmp_path):
    model = load_parallel(write_tiny(tmp_path / "model"), Parallel())
    assert not any(part.training for part in model.modules())


def test_room_is_asked_for_where_the_model_goes(tmp_path, monkeypatch):
    def refuse(device, needed, what):
        raise NotEnoughResourcesError(str(device))

    monkeypatch.setattr(loading, "require_memory", refuse)
    with pytest.raises(NotEnoughResourcesError, match="cuda:1"):
        load_parallel(write_tiny(tmp_path / "model"), Parallel(device="cuda:1"))
