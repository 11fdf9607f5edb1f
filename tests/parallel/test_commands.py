"""`kogpt generate` and `kogpt evaluate` where several processes hold the model together."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from kogpt.cli import main
from tests.evaluation.tiny import write_task
from tests.parallel.launch import ROOT, finish, start

PROMPT = "이 영화는 처음부터"


def alone(*args: str) -> str:
    """What one process writes."""
    ((code, output, errors),) = together(1, *args)
    assert code == 0, errors
    return output


def together(processes: int, *args: str) -> list[tuple[int, str, str]]:
    return finish(start(processes, main, args))


def objects(lines: str) -> list[dict]:
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize(
    "how", [("--samples", "3", "--seed", "5"), ("--beams", "3", "--samples", "2")]
)
def test_two_processes_write_what_one_writes_and_the_first_alone_speaks(how):
    arguments = ("generate", PROMPT, "--json", "--max-new-tokens", "24", *how)
    first, second = together(2, *arguments, "--tensor-parallel", "2")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    expected = alone(*arguments, "--reference")
    found, wanted = objects(first[1]), objects(expected)
    scores = [[one.pop("score") for one in several] for several in (found, wanted)]
    assert found == wanted and len(found) > 1 and second[1] == ""
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_only_the_first_process_reads_the_prompt_and_all_draw_one_seed_under_torchrun():
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "kogpt")
    arguments = ("generate", "-", "--tensor-parallel", "2", "--max-new-tokens", "8", "--json")
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        input=PROMPT + "\n",
    )
    assert done.returncode == 0, done.stderr
    (found,) = objects(done.stdout)
    again = alone(
        *("generate", PROMPT, "--reference", "--max-new-tokens", "8"),
        *("--seed", str(found["seed"]), "--json"),
    )
    assert found["text"] == objects(again)[0]["text"]


def test_guesses_of_a_model_in_parts_change_no_text():
    arguments = ("generate", "배우들 배우들 배우들", "--seed", "1", "--max-new-tokens", "20")
    first, _ = together(2, *arguments, "--speculate", "lookup", "--tensor-parallel", "2")
    assert first[1] == alone(*arguments, "--reference") != "", first[2]


@pytest.mark.parametrize(
    ("processes", "tensor", "message"),
    [
        (1, 2, "kogpt: tensor parallel 2 does not divide the 1 processes of this run"),
        (2, 1, "2 processes were started to write one text: argument --tensor-parallel must be 2"),
        (3, 3, "kogpt: tensor parallel 3 does not divide the model's 4 heads"),
    ],
)
def test_processes_that_do_not_fit_are_refused_in_one_line(processes, tensor, message):
    ended = together(processes, "generate", PROMPT, "--tensor-parallel", str(tensor))
    code, output, errors = ended[0]
    assert (code, output) == (2, "")
    (line,) = errors.splitlines()
    assert message in line
    assert all(code == 2 and output == "" for code, output, _ in ended)


def test_evaluation_shares_rows_among_models_in_parts(tmp_path):
    task = (str(write_task(tmp_path)), "--data", str(tmp_path), "--batch-size", "2")
    arguments = ("evaluate", *task, "--shots", "0", "2", "--sets", "2", "--reference", "--json")
    report = tmp_path / "report.json"
    ended = together(4, *arguments, "--tensor-parallel", "2", "--output", str(report))
    assert [code for code, _, _ in ended] == [0] * 4, ended[0][2]
    assert [output for _, output, _ in ended[1:]] == [""] * 3
    expected = json.loads(alone(*arguments))["runs"]
    found = json.loads(ended[0][1])["runs"]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["results"] == theirs["results"]  # of right and wrong answers
        for a, b in zip(ours["sets"], theirs["sets"], strict=True):
            values = [np.array(answers["log_likelihoods"]) for answers in (a, b)]
            assert np.abs(values[0] - values[1]).max() < 1e-4  # each a sum over tokens
    assert sorted(path.name for path in tmp_path.iterdir() if "journal" in path.name) == []
    assert json.loads(report.read_text())["model"]["tensor_parallel"] == 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_one_line(lost):
    arguments = ("generate", PROMPT, "--min-new-tokens", "900", "--max-new-tokens", "900")
    started = start(2, main, (*arguments, "--seed", "1", "--tensor-parallel", "2"))
    while not started[0].written():
        assert started[0].poll() is None, started[0].written(1)
        time.sleep(0.01)
    time.sleep(0.3)
    began = time.monotonic()
    started[lost].kill()
    ended = finish(started)
    assert time.monotonic() - began < 30
    code, _, errors = ended[1 - lost]
    assert code == 1
    (line,) = errors.splitlines()
    assert line.endswith("another process has ended, or kept silent for 1800 s")
