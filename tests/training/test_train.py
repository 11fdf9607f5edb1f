"""A whole run: what it leaves, what it says, what it refuses."""

import dataclasses
import io
import json
import os
import re

import pytest

from kogpt.checkpoint import load_model, resources, write_checkpoint
from kogpt.checkpoint.staging import locked
from kogpt.errors import InputRefusedError, KoGPTError, NotEnoughResourcesError
from kogpt.model import PRESETS, KoGPT, KoGPTConfig
from kogpt.parallel import Parallel
from kogpt.tokenizer import load_tokenizer
from kogpt.training import train
from kogpt.training.log import read_log
from kogpt.training.model import load_start
from kogpt.training.state import checkpoints
from tests.training.conftest import SENTENCES


def test_a_run_leaves_checkpoints_a_log_and_a_picture(settings, tokenizer):
    pytest.importorskip("matplotlib")
    told = io.StringIO()
    config = settings(steps=7, save_every=2, keep=3, validate_every=3, curve=True)
    last = train(config, told)
    assert [path.name for path in checkpoints(config.out)] == [
        "step-00000004",
        "step-00000006",
        "step-00000007",
    ]
    assert last.name == "step-00000007"
    log = read_log(config.out / "log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6, 7]
    assert [entry["step"] for entry in log if "held_out_loss" in entry] == [3, 6, 7]
    assert log[0]["tokens"] == 4 * 32
    assert (config.out / "curve.png").exists()
    assert not [path for path in config.out.iterdir() if path.name.startswith(".")]
    assert load_tokenizer(last).encode("영화") == tokenizer.encode("영화")
    assert load_model(last).config.bos_token_id == tokenizer.bos_id


def test_progress_off_a_terminal_is_a_few_plain_lines(settings):
    told = io.StringIO()
    train(settings(), told)
    lines = told.getvalue().splitlines()
    assert re.search(
        r"parameters, 49 documents, .* 1 documents held out, .*; 6 steps, from new weights",
        lines[1],
    )
    assert re.search(r"step 6/6  loss \d\.\d{3}  [\d,]+ tokens/s  0:00:00 left", told.getvalue())
    assert "\r" not in told.getvalue() and len(lines) < 8


def test_progress_on_a_terminal_is_a_bar(settings):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    told = Terminal()
    train(settings(), told)
    assert "6/6" in told.getvalue() and "tokens/s" in told.getvalue() and "\r" in told.getvalue()


def test_epochs_are_counted_in_steps(settings):
    config = settings(steps=None, epochs=2.0, validate_every=0)
    log = read_log(train(config, io.StringIO()).parent / "log.jsonl")
    per_epoch = round(log[-1]["tokens"] / 2 / 32)
    assert log[-1]["step"] == -(-2 * per_epoch // 4)


def test_a_disk_that_could_not_hold_a_checkpoint_is_told_before_the_first_step(
    settings, monkeypatch
):
    config, told = settings(), io.StringIO()
    monkeypatch.setattr(resources, "free_disk", lambda *_: 10_000)
    with pytest.raises(NotEnoughResourcesError, match="not enough disk"):
        train(config, told)
    assert "steps, from" not in told.getvalue()
    monkeypatch.undo()
    assert train(config, told).is_dir()  # the folder is not taken


def test_training_goes_on_from_a_checkpoint_as_from_a_preset(settings, tmp_path):
    first = train(settings(steps=40, learning_rate=1e-2), io.StringIO())
    config = settings(model=str(first), tokenizer=None, out=tmp_path / "more", steps=1)
    train(config, told := io.StringIO())
    assert f"; 1 steps, from the weights of {first}\n" in told.getvalue()
    log = read_log(config.out / "log.jsonl")
    assert log[0]["loss"] < 4 < read_log(first.parent / "log.jsonl")[0]["loss"]


@pytest.mark.parametrize("kind", ["checkpoint", "config"])
def test_a_tokenizer_with_more_ids_than_the_model_is_refused_with_both_counts(
    settings, tmp_path, shape, kind
):
    values = json.loads(shape.read_text()) | {"vocab_size": 100}
    shape.write_text(json.dumps(values))
    model = str(shape)
    if kind == "checkpoint":
        small = KoGPT(KoGPTConfig.from_dict(values))
        write_checkpoint(tmp_path / "small", small.config, small.state_dict())
        model = str(tmp_path / "small")
    with pytest.raises(InputRefusedError, match="the tokenizer has 440 ids, model .* only 100"):
        train(settings(model=model), io.StringIO())


def test_a_shape_is_meant_by_its_name_though_a_folder_has_it_too(settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(PRESETS["nano"], n_layer=1, vocab_size=440)
    write_checkpoint(tmp_path / "nano", config, KoGPT(config).state_dict())
    for model, layers in (("nano", 6), ("./nano", 1)):
        found, _ = load_start(settings(model=model), None, Parallel())
        assert found.config.n_layer == layers


@pytest.mark.parametrize(("rows", "noted"), [(440, False), (480, False), (500, True)])
def test_ids_that_a_shape_has_and_its_tokenizer_has_not_are_told(settings, tmp_path, rows, noted):
    """A few are usual: rows are rounded up."""
    shape = dataclasses.replace(PRESETS["nano"], n_layer=1, n_embd=32, n_head=2, rotary_dim=8)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.replace(shape, vocab_size=rows).to_dict()))
    train(settings(model=str(path), steps=1, sequence_length=32), told := io.StringIO())
    words = f"note: the tokenizer has 440 ids, the shape {rows}: its others stay unused\n"
    assert (words in told.getvalue()) is noted


@pytest.mark.parametrize(
    ("weights", "what"), [(0.9, "new weights of"), (2.9, "gradients and the optimizer's state")]
)
def test_a_model_for_which_there_is_no_memory_is_refused_before_it_takes_any(
    settings, monkeypatch, weights, what
):
    """Room for the weights so many times: they need it once, and with the step thrice more."""
    config = settings()
    size = 4 * load_start(config, None, Parallel())[0].config.num_parameters
    monkeypatch.setattr(resources, "available_memory", lambda device: int(weights * size))
    with pytest.raises(NotEnoughResourcesError, match=f"^{what}.*: not enough memory on cpu"):
        train(config, io.StringIO())
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokenizer": None}, InputRefusedError, "is a shape without a tokenizer"),
        ({"model": "no-such-model"}, InputRefusedError, "no-such-model: No such file"),
        ({"column": "text"}, InputRefusedError, "no column 'text'; there are id, document"),
        ({"sequence_length": 64}, ValueError, "sequence_length is 64, .* at most the model's 32"),
        ({"short_length": 5}, ValueError, "short_length is 5, it must be a divisor of 32"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(settings, change, error, message):
    with pytest.raises(error, match=message) as caught:
        train(settings(**change), io.StringIO())
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_a_run_is_not_trained_in_again(settings):
    train(settings(steps=1), io.StringIO())
    with pytest.raises(InputRefusedError, match="run: holds a run already; resume it or choose"):
        train(settings(steps=1), io.StringIO())


def test_two_processes_never_train_in_one_folder(settings):
    config = settings()
    config.out.mkdir()
    # A lock belongs to the open file, so this test is the other process.
    locked(config.out, lambda: os.open(config.out, os.O_RDONLY))
    with pytest.raises(KoGPTError, match="run: locked: another process is writing it"):
        train(config, io.StringIO())


def test_the_vocabulary_of_a_few_sentences_is_what_the_tests_think(tokenizer):
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in SENTENCES)
