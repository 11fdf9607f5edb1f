"""Finetuning beside transformers + peft: who takes part, the same work, and the ratios."""

import dataclasses
import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kogpt.box import BOX
from tests.scripts import SCRIPTS, run_script

QUICK = ("--rounds", "1", "--steps", "1", "--device", "cpu")


@pytest.fixture
def script(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_finetuning

    return benchmark_finetuning


@pytest.fixture
def case(script):
    """LoRA on the box, on a CPU."""
    return script.Case(
        model=str(BOX),
        shape=None,
        method="lora",
        batch=2,
        sequence=10,
        learnt=None,
        recompute=False,
        precision="float32",
        targets=("q_proj", "v_proj"),
        rank=2,
        alpha=4.0,
        dropout=0.0,
        device="cpu",
        threads=1,
    )


def run(*arguments: str | Path) -> CompletedProcess[str]:
    return run_script("benchmark_finetuning.py", *arguments)


@pytest.mark.parametrize(
    "how",
    [("--model", str(BOX), "--recompute", "no"), ("--shape", "nano", "--recompute", "yes")],
)
def test_both_do_the_same_work(tmp_path, how):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    targets = ("--targets", "q_proj", "fc_out", "--learnt", "3")
    sizes = ("--batch", "2", "--sequence", "7")
    done = run(*how, *targets, *sizes, *QUICK, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert {"device", "torch", "peft", "command"} <= found["machine"].keys()
    (timed,) = found["runs"]
    assert timed["case"]["recompute"] == ("yes" in how)
    ours, peer = timed["results"]
    assert (ours["refused"], peer["refused"]) == (None, None)
    assert ours["tokens_per_second"] == pytest.approx(2 * 7 / ours["seconds"][0])
    assert timed["ratios"][peer["name"]]["seconds"] == [peer["seconds"][0] / ours["seconds"][0]]
    # Same weights, rows, targets and updates, and after the first step the same learning.
    assert len(ours["losses"]) == 2
    assert peer["losses"] == pytest.approx(ours["losses"], abs=1e-5)
    (goal,) = found["goals"]
    assert goal["goal"] == 1.0
    assert f"| KoGPT | {ours['tokens_per_second']:,.0f} |" in done.stdout


def test_ratios_are_taken_within_a_round_and_the_fastest_peer_counts(script, case):
    ours = script.Result("ours", [4.0, 2.0, 1.0], [3.0, 2.0, 1.0], 10, [7.0])
    slow = script.Result("slow", [8.0, 6.0, 4.0], [9.0, 6.0, 3.0], 10, [7.0])
    fast = script.Result("fast", [6.0, 2.0, 2.0], [3.0, 4.0, 1.5], 10, [7.00005])
    board = script.Board(case, 3, [ours, slow, fast])
    assert board.rate(ours) == 3 * 2 * 10 / 2
    assert board.ratios(fast, "seconds") == [1.5, 1.0, 2.0]
    assert board.advantage() == 1.5  # by processor time: of 1, 2 and 1.5; of the slow one 3
    on_gpu = dataclasses.replace(board, case=dataclasses.replace(case, device="cuda"))
    assert on_gpu.advantage() == 1.5  # by the clock: of 1.5, 1 and 2
    absent = script.Result("absent", refused="No module named 'peft'")
    alone = script.Board(case, 3, [ours, absent])
    assert [goal.verdict for goal in alone.goals()] == ["not measured"]
    assert alone.row(absent).startswith("| absent | No module named 'peft' |")


def test_a_peer_goes_on_where_ours_has_no_room(script, case):
    six = {"model": None, "shape": "kogpt-6b", "batch": 1, "sequence": 2048, "device": "cuda"}
    case = dataclasses.replace(case, **six, precision="bfloat16", recompute=True)
    ours = script.Result("ours", [0.2], [0.2], 15_000_000_000, [7.0], refused="out of memory")
    peer = script.Result("peer", [0.2, 0.2], [0.2, 0.2], 20_000_000_000, [7.0])
    board = script.Board(case, 1, [ours, peer])
    assert "| peer | 10,240 | 20.00 GB |  |  | 7.000000 |" in list(board.lines())
    assert [goal.verdict for goal in board.goals()] == ["not measured"] * 3
    assert board.to_dict()["ratios"] == {}


def test_other_losses_mean_other_work_where_they_can_be_told(script, case):
    ours = script.Result("ours", [1.0], [1.0], 10, [7.0])
    peer = script.Result("peer", [1.0], [1.0], 10, [7.0002])
    board = script.Board(case, 1, [ours, peer])
    assert board.disagree() and "not the same work" in "\n".join(board.lines())
    for change in ({"precision": "bfloat16"}, {"method": "qlora"}, {"dropout": 0.1}):
        assert not script.Board(dataclasses.replace(case, **change), 1, [ours, peer]).disagree()


def test_the_goals_of_the_6b_are_those_of_a_gpu(script, case):
    six = {"model": None, "shape": "kogpt-6b", "batch": 1, "sequence": 2048, "device": "cuda"}
    case = dataclasses.replace(case, **six, precision="bfloat16", recompute=True)
    ours = script.Result("ours", [0.2], [0.2], 15_000_000_000, [7.0])
    peer = script.Result("peer", [0.23], [0.2], 20_000_000_000, [7.0])
    goals = {goal.goal: goal for goal in script.Board(case, 1, [ours, peer]).goals()}
    assert {goal: found.verdict for goal, found in goals.items()} == {
        1.1: "met",
        11_500: "missed",  # 2048 / 0.2 is 10,240
        14.5: "missed",  # of 15 GB
    }
    quantized = dataclasses.replace(case, method="qlora")
    (only,) = script.Board(quantized, 1, [ours, peer]).goals()
    assert (only.goal, only.verdict) == (6.5, "missed")


def test_who_cannot_take_part_says_why(tmp_path):
    done = run("--shape", "nano", "--sequence", "1025", "--recompute", "no", *QUICK)
    assert "| KoGPT | ValueError: 1025 tokens exceed the model's context of 1024 |" in done.stdout
    done = run("--model", tmp_path, *QUICK)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"benchmark_finetuning.py: {tmp_path}: not a checkpoint folder\n"


@pytest.mark.parametrize(
    ("option", "words"),
    [("--rounds 0", "must be at least 1"), ("--learnt 20 --sequence 8", "must be 1 to 8")],
)
def test_numbers_that_nothing_can_be_measured_with_are_refused(option, words):
    done = run(*option.split())
    assert done.returncode == 2 and words in done.stderr


def test_a_goal_is_met_where_it_is_just_reached(script):
    goals = [
        script.Goal("x", 1.0, found, at_most)
        for at_most in (False, True)
        for found in (0.9, 1.0, 1.1)
    ]
    verdicts = ["missed", "met", "met", "met", "met", "missed"]
    assert [goal.verdict for goal in goals] == verdicts
