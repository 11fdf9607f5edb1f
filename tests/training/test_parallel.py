"""Runs of several processes are runs of one: losses, figures, results, and where they go on."""

import dataclasses
import io
import json
import os

import pytest

from kogpt.adapters import load_adapters
from kogpt.checkpoint import ConversionOptions, convert, load_model
from kogpt.cli import fail
from kogpt.errors import KoGPTError
from kogpt.training import TrainingConfig, finetune, train
from kogpt.training.log import read_log
from kogpt.training.sharing import refuse_unshared
from tests.parallel.launch import finish, start
from tests.scale import some


def do(config):
    """Does a run, as a command would."""
    try:
        (train if isinstance(config, TrainingConfig) else finetune)(config, io.StringIO())
    except KoGPTError as error:
        return fail(str(error), error.exit_code)


def do_own(*configs):
    """Does the run of this process."""
    return do(configs[int(os.environ["RANK"])])


def together(processes, config):
    """Does a run in several processes; what each ended with."""
    return finish(start(processes, do, config))


def assert_done(ended):
    assert [code for code, _, _ in ended] == [0] * len(ended), ended[0][2] + ended[-1][2]


def losses(config):
    names = ("loss", "gradient_norm", "held_out_loss")
    log = read_log(config.folder / "log.jsonl")
    return [entry[name] for entry in log for name in names if name in entry]


def furthest(model, other):
    """The largest difference between weights."""
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize(
    ("first", "second"), some([((2, 2), (2, 1)), ((2, 1), (1, 1)), ((1, 1), (4, 2))], 1)
)
def test_a_run_that_changes_its_processes_midway_ends_as_one_of_one(settings, first, second):
    """Six steps, of which some processes do all, and others the last three again."""
    whole = settings(steps=6, save_every=3, validate_every=3, batch_size=5, keep=9)
    train(whole, io.StringIO())
    config = dataclasses.replace(whole, out=whole.out.with_name("shared"))
    assert_done(together(first[0], dataclasses.replace(config, tensor_parallel=first[1])))
    (config.out / "step-00000006").rename(config.out / "ended")  # as if killed before
    again = dataclasses.replace(config, tensor_parallel=second[1], resume=True)
    assert_done(together(second[0], again))
    assert losses(config) == pytest.approx(losses(whole), rel=1e-4)
    model, expected = (load_model(run.out / "step-00000006") for run in (config, whole))
    assert furthest(model, expected) < 1e-4  # Adam's steps of 1e-3, see tests/parallel/test_steps
    assert not [path for path in config.out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("processes", "tensor", "settings"),
    some(
        [
            (2, 1, {"method": "full", "objective": "head"}),
            (4, 2, {"method": "lora", "rank": 4, "activation_checkpointing": True}),
            (2, 2, {"method": "prompt-tuning", "pack": False}),
            (2, 2, {"method": "full"}),
            (2, 1, {"method": "full", "offload": True}),
            (2, 1, {"method": "lora", "objective": "head", "pack": False}),
            (2, 1, {"method": "p-tuning", "pack": False}),
        ],
        2,
    ),
)
def test_several_processes_finetune_as_one_does(finetuning, base, processes, tensor, settings):
    config = finetuning(steps=6, batch_size=6, save_every=3, validate_every=3, **settings)
    expected = finetune(config, io.StringIO())
    shared = dataclasses.replace(config, out=config.out.with_name("shared"), tensor_parallel=tensor)
    assert_done(together(processes, shared))
    assert losses(shared) == pytest.approx(losses(config), rel=1e-4)
    found = json.loads((shared.out / "results.json").read_text(encoding="utf-8"))
    assert found["test"]["held_out_loss"] == pytest.approx(
        expected["test"]["held_out_loss"], rel=1e-4
    )
    models = [result(config, base), result(shared, base)]
    assert 0 < furthest(*models) < 1e-3 or furthest(*models) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_documents": 2}, "validation_documents 2, not 1000"),
        ({"data": "other.tsv"}, "other data"),
    ],
)
def test_processes_that_would_take_other_steps_are_refused(settings, reviews, changes, message):
    """Each process reads its own copy of the data."""
    if "data" in changes:
        other = reviews.with_name(changes["data"])
        other.write_text(reviews.read_text(encoding="utf-8").replace("영화", "음악"))
        changes = {"data": (other,)}
    configs = [settings(steps=2, save_every=2), settings(steps=2, save_every=2, **changes)]
    ended = finish(start(2, do_own, *configs))
    assert [code for code, _, _ in ended] == [3, 1], ended
    told = "".join(errors for _, _, errors in ended)
    assert told == f"kogpt: process 1 does not fit process 0: it has {message}\n"
    assert not list(configs[0].out.glob("step-*"))


def test_updates_beside_integers_are_shared_too(finetuning, base, tmp_path):
    """Every process holds the integers; steps are those of one process."""
    convert(base, tmp_path / "int8", ConversionOptions(quantize="int8"))
    settings = {"method": "qlora", "model": str(tmp_path / "int8"), "test_rows": 0}
    config = finetuning(steps=4, batch_size=6, **settings)
    finetune(config, io.StringIO())
    shared = dataclasses.replace(config, out=config.out.with_name("shared"))
    assert_done(together(2, shared))
    assert losses(shared) == pytest.approx(losses(config), rel=1e-4)
    (code, _, errors), _ = together(
        2, dataclasses.replace(shared, out=shared.out.with_name("cut"), tensor_parallel=2)
    )
    assert code != 0 and "cuts weights that are floats; transformer.h.0.attn.q_proj" in errors


def result(config, base):
    if config.method == "full":
        return load_model(config.out)
    model = load_model(base)
    load_adapters(model, config.out)
    return model


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"precision": "bfloat16", "weights": "bfloat16-master"}, "weights bfloat16-master"),
        ({"optimizer": "adamw-8bit"}, "optimizer adamw-8bit"),
        ({"compile": True}, "compile"),
    ],
)
def test_what_only_one_process_can_do_is_refused(settings, changes, setting):
    with pytest.raises(ValueError, match=f"{setting} is for one process, there are 2"):
        refuse_unshared(settings(**changes), 2)
    refuse_unshared(settings(**changes), 1)


def test_a_folder_that_holds_a_run_is_refused_by_one_process_and_the_other_leaves(settings):
    config = settings(steps=1)
    train(config, io.StringIO())
    (code, _, errors), (other, _, silence) = together(2, config)
    assert (code, other, silence) == (3, 1, "")
    assert "holds a run already" in errors
