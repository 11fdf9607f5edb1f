"""A run that is killed and resumed ends as one that never was, to the last bit."""

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kogpt.checkpoint import load_model
from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.parallel import Parallel
from kogpt.training import FinetuningConfig, TrainingConfig, finetune, train
from kogpt.training.config import RunConfig
from kogpt.training.finetuning import forget_best
from kogpt.training.log import read_log
from kogpt.training.state import TrainingState, checkpoints, discard_all_but, write_tensors
from tests.scale import scaled
from tests.server import Forked
from tests.training.conftest import TINY
from tests.training.examples import write_jsonl, write_pairs

ROOT = Path(__file__).resolve().parents[2]
STEPS = 36

SCRIPT = """
import json, sys
from pathlib import Path
from kogpt.training import FinetuningConfig, finetune
given = json.load(sys.stdin)
for name in ("out", "data_dir"):
    given[name] = Path(given[name])
given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
finetune(FinetuningConfig(**given))
"""


@pytest.fixture
def long_run(settings, shape) -> TrainingConfig:
    """Several epochs, with dropout, each step logged and every fourth saved."""
    shape.write_text(json.dumps({**TINY.to_dict(), "attn_pdrop": 0.1, "resid_pdrop": 0.1}))
    return settings(
        steps=STEPS, batch_size=8, micro_batch_size=6, save_every=4, validate_every=15, seed=5
    )


def kill_at(config: RunConfig, step: int, delay: float) -> None:
    """Lets a process train until it has logged a step, and a little longer, then kills it."""
    process = Forked({}, finetune if isinstance(config, FinetuningConfig) else train, config)
    while process.poll() is None:
        log = read_log(config.folder / "log.jsonl")
        if log and log[-1]["step"] >= step:
            time.sleep(delay)
            break
        time.sleep(0.002)
    process.kill()
    code, _, errors = process.finish(time.monotonic() + 60)
    assert code in (-signal.SIGKILL, 0), errors  # or it was done already


def losses(config: RunConfig) -> list[tuple[int, float]]:
    log = read_log(config.folder / "log.jsonl")
    return [(e["step"], e.get("loss", e.get("held_out_loss"))) for e in log]


def assert_same_end(config: TrainingConfig, expected: TrainingConfig) -> None:
    assert losses(config) == losses(expected)
    name = f"step-{STEPS:08}"
    for file in ("model-00001-of-00001.safetensors", "optimizer.safetensors"):
        ours, theirs = (run.out / name / file for run in (config, expected))
        assert ours.read_bytes() == theirs.read_bytes(), file
    assert not [path.name for path in config.out.iterdir() if path.name.startswith(".")]


def test_a_run_killed_at_random_steps_ends_bit_equal(long_run, tmp_path):
    whole = dataclasses.replace(long_run, out=tmp_path / "whole")
    train(whole, io.StringIO())
    assert losses(whole)[-1][0] == STEPS
    tokens = read_log(whole.out / "log.jsonl")[-1]["tokens"]
    chance = random.Random(0)
    config = dataclasses.replace(long_run, resume=True)
    for kill in range(scaled(1, 20)):
        out = tmp_path / f"killed-{kill}"
        config = dataclasses.replace(config, out=out)
        kill_at(config, chance.randrange(5, STEPS - 5), chance.uniform(0, 0.05))
        for path in checkpoints(out):
            load_model(path)  # what has the name of a checkpoint is one
        train(config, io.StringIO())
        assert_same_end(config, whole)
    assert tokens > 10 * 745  # an epoch has 745 tokens


@pytest.mark.parametrize("method", ["full", "lora", "p-tuning"])
def test_a_finetuning_killed_at_random_steps_ends_bit_equal(finetuning, tmp_path, method):
    """Several epochs, with dropout, rows of all lengths, and the best weights kept on the way."""
    settings = {"steps": STEPS, "save_every": 4, "validate_every": 5, "micro_batch_size": 5}
    settings |= {"method": method, "dropout": 0.1, "pack": method == "lora", "batch_size": 16}
    whole = finetuning(**settings, out=tmp_path / "whole")
    expected = finetune(whole, io.StringIO())
    assert len(losses(whole)) == STEPS + 8
    chance = random.Random(0)
    for kill in range(scaled(1, 20)):
        config = finetuning(**settings, out=tmp_path / f"killed-{kill}", resume=True)
        kill_at(config, chance.randrange(5, STEPS - 5), chance.uniform(0, 0.05))
        results = finetune(config, io.StringIO())
        assert losses(config) == losses(whole)
        assert {**results, "settings": 0} == {**expected, "settings": 0}
        for path in whole.out.rglob("*.safetensors"):
            ours = config.out / path.relative_to(whole.out)
            assert ours.read_bytes() == path.read_bytes(), path.name
        assert not list(config.out.rglob(".*"))


def test_nothing_to_resume_is_a_start_and_a_finished_run_stays_as_it_is(settings):
    config = settings(resume=True, steps=3)
    last = train(config, io.StringIO())
    before = {path.name: path.stat().st_mtime_ns for path in last.iterdir()}
    assert train(config, io.StringIO()) == last
    assert {path.name: path.stat().st_mtime_ns for path in last.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, "with other settings: learning_rate was 0.001 and is 0.5"),
        ({"batch_size": 5}, "with other settings: batch_size was 4 and is 5"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(settings, change, message):
    train(settings(steps=1), io.StringIO())
    with pytest.raises(InputRefusedError, match=message):
        train(settings(resume=True, **change), io.StringIO())


def test_a_run_is_resumed_on_another_machine(settings):
    """With less memory, and where its shape is told by another path."""
    config = settings(steps=1, micro_batch_size=4)
    last = train(config, io.StringIO())
    relative = os.path.relpath(config.model)
    changes = {"micro_batch_size": 3, "activation_checkpointing": True, "offload": True}
    train(settings(steps=2, resume=True, model=relative, **changes), io.StringIO())
    assert [path.name for path in checkpoints(last.parent)][-1] == "step-00000002"


PARTS = """
import torch
from torch import nn
from kogpt.model import Block, KoGPT

class Sometimes(Block):
    def forward(self, x, *others):
        passed = self.training and torch.rand(()).item() < 0.5
        return x if passed else super().forward(x, *others)

class Dropped(KoGPT):
    block_class = Sometimes

    def __init__(self, config):
        super().__init__(config)
        self.unused = nn.Linear(4, 4)
"""


def test_a_run_whose_gradients_do_not_always_reach_all_goes_on_bit_equal(settings, tmp_path):
    """As with LayerDrop, or experts: steps are counted for each parameter."""
    file = tmp_path / "parts.py"
    file.write_text(PARTS)
    whole = settings(
        steps=STEPS, save_every=4, keep=99, batch_size=2, architecture=f"{file}:Dropped"
    )
    train(whole, io.StringIO())
    config = dataclasses.replace(whole, out=tmp_path / "again", resume=True)
    shutil.copytree(whole.out / "step-00000008", config.out / "step-00000008")
    train(config, io.StringIO())
    assert losses(config) == [(step, loss) for step, loss in losses(whole) if step > 8]
    name = Path(f"step-{STEPS:08}", "optimizer.safetensors")
    assert (config.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_a_class_is_the_same_by_another_path(tmp_path):
    name = f"{tmp_path}/parts.py:Own"
    config = TrainingConfig(data=(tmp_path / "x.txt",), out=tmp_path / "out", architecture=name)
    state = TrainingState(1, 1, {**config.to_dict(), "architecture": os.path.relpath(name)}, "")
    state.require_settings(config)
    for damaged in ([], "a\0b"):
        with pytest.raises(InputRefusedError, match="with other settings: model was "):
            dataclasses.replace(state, config={**state.config, "model": damaged}).require_settings(
                config
            )


@pytest.mark.parametrize("lost", ["lm_head.weight.exp_avg_sq", "lm_head.weight.", ""])
def test_a_run_is_not_resumed_without_its_moments(settings, lost):
    path = train(settings(steps=1), io.StringIO()) / "optimizer.safetensors"
    kept = {name: x for name, x in load_file(path).items() if not name.startswith(lost)}
    save_file({**kept, "other": torch.zeros(1)}, path)
    with pytest.raises(InputRefusedError, match=f"the optimizer state .* lacks .*{lost}"):
        train(settings(steps=2, resume=True), io.StringIO())


def test_a_run_is_not_resumed_with_other_data(settings, reviews):
    train(settings(steps=1), io.StringIO())
    with reviews.open("a", encoding="utf-8") as file:
        file.write("50\t하나 더\n")
    with pytest.raises(InputRefusedError, match="with other data"):
        train(settings(resume=True), io.StringIO())


def test_a_run_is_not_resumed_with_other_held_out_data(settings, reviews):
    train(settings(steps=1), io.StringIO())
    reviews.write_text(reviews.read_text(encoding="utf-8").replace(" 0\n", " 영\n", 1))
    with pytest.raises(InputRefusedError, match="with other data"):
        train(settings(resume=True), io.StringIO())


@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_a_finetuning_is_not_resumed_beside_other_weights(finetuning, base, tmp_path, method):
    own = tmp_path / "own"
    shutil.copytree(base, own)
    finetune(finetuning(method=method, model=str(own), steps=1), io.StringIO())
    (path,) = own.glob("model-*.safetensors")
    save_file({n: 3 * tensor for n, tensor in load_file(path).items()}, path)
    with pytest.raises(InputRefusedError, match="own holds other weights than the run began with"):
        finetune(finetuning(method=method, model=str(own), steps=2, resume=True), io.StringIO())


def test_the_best_weights_of_a_run_that_left_no_checkpoint_are_not_those_of_the_next(
    finetuning, tmp_path
):
    killed = finetuning(method="lora", learning_rate=0.5)
    finetune(killed, io.StringIO())
    for path in killed.folder.iterdir():  # as where it was killed before its first checkpoint
        if path.name != "best.safetensors":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    rows = write_jsonl(tmp_path / "few.jsonl", [("가", "나")] * 4)  # of which none is held out
    config = finetuning(method="lora", data=(str(rows),), data_dir=None, steps=20, resume=True)
    assert finetune(config, io.StringIO())["step"] == 20
    alone = dataclasses.replace(config, out=tmp_path / "alone", resume=False)
    finetune(alone, io.StringIO())
    name = "adapter_model.safetensors"
    assert (config.out / name).read_bytes() == (alone.out / name).read_bytes()


def test_best_weights_of_a_step_that_is_yet_to_come_are_not_kept(finetuning):
    """As where it was killed between that step and the next checkpoint, and resumed otherwise."""
    config = finetuning(method="lora", steps=4, save_every=2, validate_every=2)
    finetune(config, io.StringIO())
    best, last = config.folder / "best.safetensors", config.folder / "step-00000002"
    for step, stays in ((2, True), (3, False)):
        save_file({**load_file(best), "step": torch.tensor(step)}, best)
        forget_best(best, last)
        assert best.exists() is stays


def test_a_best_step_whose_weights_are_gone_is_noted(finetuning, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", [(f"{i}번 영화는", " 좋다") for i in range(40)])
    config = finetuning(data=(str(rows),), data_dir=None, steps=6, validate_every=1)
    found = finetune(config, io.StringIO())
    assert not found["notes"]
    log = config.folder / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    worse = next(e for e in entries if "held_out_loss" in e and e["step"] != found["step"])
    worse["held_out_loss"] = 0.001
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (config.out / "results.json").unlink()
    again = finetune(dataclasses.replace(config, resume=True), io.StringIO())
    told = f"step {worse['step']} was better than step {found['step']} by its held_out_loss"
    assert again["notes"] == [f"{told}; its weights are gone"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"n_inner": 48}, "n_inner is 48, it was None"), ({"attn_pdrop": 0.1}, "attn_pdrop is 0.1")],
)
def test_a_run_is_not_resumed_where_its_shape_has_changed(settings, shape, change, message):
    train(settings(steps=1), io.StringIO())
    shape.write_text(json.dumps(TINY.to_dict() | change))
    with pytest.raises(InputRefusedError, match=f"another shape: in {shape} {message}"):
        train(settings(resume=True), io.StringIO())
    shape.unlink()  # the checkpoint has its own
    train(settings(resume=True, steps=2), io.StringIO())


def test_a_finetuning_is_not_resumed_with_another_prompt(finetuning, task):
    finetune(finetuning(steps=1), io.StringIO())
    text = task.read_text(encoding="utf-8")
    task.write_text(text.replace("{document} ->", "{document} :"), encoding="utf-8")
    with pytest.raises(InputRefusedError, match="with other data"):
        finetune(finetuning(steps=2, resume=True), io.StringIO())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lora", "rank": 2}, "rank was 8 and is 2"),
        ({"method": "full"}, "method was 'lora' and is 'full'"),
        ({"method": "lora", "targets": ("fc_in",)}, r"targets was \['q_proj', 'v_proj'\] and is"),
    ],
)
def test_a_finetuning_is_not_resumed_with_weights_of_another_shape(finetuning, change, message):
    finetune(finetuning(method="lora", steps=1), io.StringIO())
    with pytest.raises(InputRefusedError, match=f"with other settings: {message}"):
        finetune(finetuning(**change, steps=2, resume=True), io.StringIO())


def test_a_task_of_pairs_is_the_same_data_in_every_process(finetuning, tmp_path):
    pairs = write_pairs(tmp_path)
    for seed, steps in enumerate((1, 2)):  # Python hashes texts by it
        config = finetuning(data=(str(pairs),), steps=steps, test_rows=0, resume=True)
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps(config.to_dict()),
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)},
            check=True,
            text=True,
        )
    assert [step for step, _ in losses(config)][-1] == 2


def test_what_is_no_run_is_not_resumed(finetuning, base, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(base, own)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    for out in (own, tmp_path):
        with pytest.raises(InputRefusedError, match=f"{out}: exists already"):
            finetune(finetuning(model=str(own), out=out, resume=True), io.StringIO())
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


@pytest.mark.parametrize("line", ["garbage", "[1]", '{"loss": 1.0}'])
def test_a_damaged_log_is_refused_by_line(settings, line):
    config = settings(steps=1)
    train(config, io.StringIO())
    with (config.folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputRefusedError, match=r"log\.jsonl: line 3: "):
        train(settings(steps=2, resume=True), io.StringIO())


def test_a_run_is_not_resumed_to_fewer_steps_than_it_took(settings):
    train(settings(steps=3), io.StringIO())
    with pytest.raises(InputRefusedError, match="step-00000003: is of step 3, the run has 2 steps"):
        train(settings(steps=2, resume=True), io.StringIO())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training.json", b"\x05"),
        ("training.json", b'{"step": 1}'),
        ("training.json", b'{"step": "1", "tokens": 1, "config": {}, "data": ""}'),
        ("training.json", b'{"step": 1, "tokens": null, "config": {}, "data": ""}'),
        ("training.json", b'{"step": 1, "tokens": 1, "config": [], "data": ""}'),
        ("training.json", b"[" * 100_000),
        ("training.json", None),
        ("optimizer.safetensors", b"\x05"),
    ],
)
def test_a_damaged_training_state_is_refused_by_name(settings, name, content):
    last = train(settings(steps=1), io.StringIO())
    (last / name).unlink()
    if content is not None:
        (last / name).write_bytes(content)
    with pytest.raises(InputRefusedError, match=f"{name}: no "):
        train(settings(resume=True), io.StringIO())


def test_what_a_killed_run_left_half_done_is_swept_away(settings):
    config = settings(steps=2, resume=True)
    for name in (".step-00000009.partial", ".step-00000001.discarded"):
        (config.out / name / "folder").mkdir(parents=True)
    train(config, io.StringIO())
    assert {path.name for path in config.out.iterdir()} == {"log.jsonl", "step-00000002"}


def test_a_longer_run_goes_on_where_the_shorter_one_ended(settings):
    train(settings(steps=2), io.StringIO())
    config = settings(steps=4, resume=True)
    train(config, io.StringIO())
    assert [step for step, _ in losses(config)] == [1, 2, 2, 3, 4, 4]


def test_checkpoints_go_by_their_numbers(tmp_path):
    for name in ("step-100000000", "step-00000009", "step-99999999", "step-1", "other"):
        (tmp_path / name).mkdir()
    found = [path.name for path in checkpoints(tmp_path)]
    assert found == ["step-00000009", "step-99999999", "step-100000000"]


def test_an_old_checkpoint_is_no_checkpoint_before_it_is_removed(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08}").mkdir()
    seen, real = [], shutil.rmtree

    def rmtree(path):
        seen.append(path.name)
        assert not {path, path.with_name(path.name.strip("."))} & set(checkpoints(tmp_path))
        real(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    discard_all_but(1, tmp_path)
    assert [name.startswith(".step-") for name in seen] == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_tensors_that_could_not_be_written_leave_those_before(tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    write_tensors(path, {"a": torch.zeros(4)}, Parallel())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KoGPTError):
        write_tensors(path, {"a": torch.ones(4)}, Parallel())
    assert load_file(path)["a"].equal(torch.zeros(4))
    assert list(tmp_path.iterdir()) == [path]


def test_a_resumed_run_counts_the_tokens_of_the_whole(settings):
    train(settings(steps=2), io.StringIO())
    config = settings(steps=3, resume=True)
    train(config, io.StringIO())
    assert read_log(config.folder / "log.jsonl")[-1]["tokens"] == 3 * 4 * 32


def test_a_run_that_cannot_begin_leaves_no_folder_and_an_empty_log_is_no_run(settings):
    config = settings(column="none", steps=1)
    with pytest.raises(InputRefusedError, match="no column"):
        train(config, io.StringIO())
    assert not config.folder.exists()
    config.folder.mkdir()
    (config.folder / "log.jsonl").touch()  # as where it was killed before its first step
    with pytest.raises(InputRefusedError, match="no column"):
        train(config, io.StringIO())
    assert train(settings(steps=1), io.StringIO()).is_dir()
