"""A task put to a model behind a soft prompt, against embeddings put together by hand."""

import json

import pytest
import torch

import kogpt
from kogpt.adapters import PromptConfig, attach_prompt, prompt_embeddings, write_adapter
from kogpt.evaluation import Protocol, evaluate, load_task, read_data
from kogpt.evaluation.prompting import ask, example
from tests.adapters.test_prompt import by_hand
from tests.cli.test_commands import kogpt as run
from tests.evaluation.toy import write_task


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_task(folder, rows=6)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model = kogpt.load_model()
    attach_prompt(model, PromptConfig(7), torch.Generator().manual_seed(5))
    write_adapter(folder, model)
    return folder


@torch.inference_mode()
def log_likelihood(model, tokenizer, context: str, answer: str) -> float:
    """Of the ids by which the whole text goes on, read whole."""
    start = tokenizer.encode(context, bos=tokenizer.add_bos)
    ids = torch.tensor([tokenizer.encode(context + answer, bos=tokenizer.add_bos)])
    logits = by_hand(model, prompt_embeddings(model), ids)[0].double()
    logprobs = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return float(logprobs[len(start) - 1 :].sum())


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("fast", [False, True])
def test_likelihoods_are_those_by_hand(toy, adapter, shots, fast):
    plain, tokenizer = kogpt.load(adapter=adapter, dtype=torch.float32)
    model = kogpt.load(adapter=adapter, dtype=torch.float32, fast=fast)[0]
    task, protocol = load_task(str(toy / "toy.toml")), Protocol(shots=(shots,), sets=1)
    (found,) = evaluate(model, tokenizer, task, toy, protocol)
    rows = read_data(task, toy, protocol)
    answers = found.sets[0]
    before = [example(found.prompt, rows.shots.rows[index]) for index in answers.shots]
    for row, values in zip(found.rows, answers.log_likelihoods, strict=True):
        question = ask(found.prompt, row)
        context = "\n\n".join([*before, question.context])
        wanted = [log_likelihood(plain, tokenizer, context, each) for each in question.answers]
        assert values == pytest.approx(wanted, rel=1e-5, abs=1e-4)


def test_shots_make_room_for_virtual_tokens(toy):
    model, tokenizer = kogpt.load()
    protocol = Protocol(shots=(40,), sets=1)
    (without,) = evaluate(model, tokenizer, str(toy / "toy.toml"), toy, protocol)
    attach_prompt(model, PromptConfig(900))
    (within,) = evaluate(model, tokenizer, str(toy / "toy.toml"), toy, protocol)
    assert max(within.sets[0].fitted) < min(without.sets[0].fitted)


def test_the_command_tells_which_adapter_it_used(toy, adapter):
    arguments = ["evaluate", str(toy / "toy.toml"), "--data", str(toy), "--adapter", str(adapter)]
    report = json.loads(run(*arguments, "--json").stdout)
    (about,) = report["model"]["adapters"]
    assert about["name"] == adapter.name and len(about["fingerprint"]) == 64
    bare = json.loads(run(*arguments[:-2], "--json").stdout)
    assert "adapters" not in bare["model"] and bare["runs"] != report["runs"]
    shown = run(*arguments, "--show", "1").stdout
    tokens = int(shown.split(" tokens")[0].rpartition(" ")[2])
    plain = run(*arguments[:-2], "--show", "1").stdout
    assert tokens == int(plain.split(" tokens")[0].rpartition(" ")[2]) + 7
