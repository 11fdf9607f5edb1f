"""The race beside other libraries: who takes part, and what is made of their times."""

import json
import statistics
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kogpt.box import BOX
from tests.scripts import SCRIPTS, run_script


@pytest.fixture
def scripts(monkeypatch):
    """`import benchmark_peers` and `import peers` find the scripts."""
    monkeypatch.syspath_prepend(SCRIPTS)


def run(*arguments: str | Path) -> CompletedProcess[str]:
    return run_script("benchmark_peers.py", *arguments)


def test_those_that_are_installed_are_timed_and_the_others_named(tmp_path):
    pytest.importorskip("transformers")
    there, absent = ["KoGPT bf16", "transformers bf16"], "OpenVINO int8"
    options = ["--rounds", "1", "--turns", "2", "--threads", "1", "--new-tokens", "3"]
    who = ["--only", *there, absent]
    done = run(BOX, tmp_path / "work", "--json", tmp_path / "a.json", *options, *who)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    ours, peer, third = found["results"]
    for result in (ours, peer):
        assert result["refused"] is None, result
        assert len(result["decode"]) == len(result["prefill"]) == 2
        assert len(result["load"]) == 1
        assert len(result["ids"]) == 3 and result["memory"] > 1e8
    assert f"| {ours['name']} | {statistics.median(ours['decode']):.2f} |" in done.stdout
    # The same weights: rounding may part two paths of bfloat16, but not at once on every text.
    assert ours["ids"][0] == peer["ids"][0]
    # Of nano: 6 blocks of 12 x 256 x 256 and a head of 8000 x 256, two bytes each.
    assert peer["step_bytes"] == 2 * (6 * 12 * 256 * 256 + 8000 * 256)
    if third["refused"]:
        assert f"| {absent} | optimum.intel is not installed |" in done.stdout


def test_ratios_are_taken_within_a_turn_and_then_their_median(scripts):
    from benchmark_peers import Board, Result

    limits = [(4e10, 4e10), (3e10, 3e10), (6e10, 6e10)]
    ours = Result("KoGPT int8", [4.0, 6.0, 9.0], limits, [1.0, 2.0, 4.0], step_bytes=5e9)
    slow = Result("OpenVINO int8", [2.0, 2.0, 9.0], limits, [1.0, 3.0, 2.0])
    fast = Result("CTranslate2 int8", [1.0, 3.0, 2.0], limits, [0.5, 4.0, 8.0])
    board = Board([ours, slow, fast])
    assert board.faster("KoGPT int8", "OpenVINO int8") == [2.0, 3.0, 1.0]
    # The fastest of both: 0.5, 3 and 2 s.
    assert board.sooner("KoGPT int8", ["OpenVINO int8", "CTranslate2 int8"]) == [0.5, 1.5, 0.5]
    verdicts = {goal.text: (goal.found, goal.turns, goal.verdict) for goal in board.goals()}
    assert verdicts["decode, KoGPT int8 x OpenVINO int8"] == (2.0, 3, "met")
    share = verdicts["decode, KoGPT int8, % of read bandwidth"]
    assert share == (75.0, 3, "missed")  # of 50, 100, 75
    assert verdicts["prefill, KoGPT int8 x the fastest peer"] == (0.5, 3, "missed")
    assert verdicts["decode, KoGPT int4 x OpenVINO int4"] == (None, 0, "not measured")


def test_turns_in_which_the_memory_changed_do_not_count(scripts):
    from benchmark_peers import Board, Result

    limits = [(4e10, 4e10), (3e10, 6e10), (6e10, 5e10)]
    ours = Result("KoGPT int8", [4.0, 6.0, 9.0], limits, [1.0] * 3, step_bytes=5e9)
    others = [(4e10, 4e10), (6e10, 6e10), (3e10, 3e10)]
    peer = Result("OpenVINO int8", [2.0, 2.0, 9.0], others, [1.0] * 3)
    assert ours.shares == [0.5, 0.75]
    assert Board([ours, peer]).faster("KoGPT int8", "OpenVINO int8") == [2.0]
    peer.bandwidth = [(9e10, 9e10)] * 3
    assert Board([ours, peer]).faster("KoGPT int8", "OpenVINO int8") == [2.0, 3.0, 1.0]


def test_a_contender_that_fails_is_a_row_with_its_last_words(scripts, tmp_path):
    done = run(tmp_path, tmp_path / "work")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"benchmark_peers.py: {tmp_path}: not a checkpoint folder\n"
    (tmp_path / "config.json").write_text((BOX / "config.json").read_text())  # and no weights
    done = run(tmp_path, tmp_path / "work", "--rounds", "1", "--only", "KoGPT bf16")
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("| KoGPT bf16 |"))
    assert "InputRefusedError" in row


@pytest.mark.parametrize(
    ("option", "least"), [("--rounds", 1), ("--turns", 1), ("--threads", 1), ("--new-tokens", 2)]
)
def test_numbers_that_measure_nothing_are_refused(tmp_path, option, least):
    done = run(BOX, tmp_path / "work", option, str(least - 1))
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"benchmark_peers.py: argument {option}: must be at least {least}, is {least - 1}\n"
    )


def test_conversions_are_not_taken_for_those_of_other_weights(tmp_path):
    source, work = tmp_path / "source", tmp_path / "work"
    source.mkdir()
    (source / "config.json").write_text("{}")
    work.mkdir()
    (work / "source.json").write_text('{"config.json": [3, 0]}')
    done = run(source, work, "--only", "KoGPT bf16")
    assert (done.returncode, done.stdout) == (3, "")
    words = f"{work}: keeps conversions of other weights than {source} has"
    assert done.stderr == f"benchmark_peers.py: {words}\n"


def test_a_conversion_that_was_interrupted_is_begun_anew_and_a_whole_one_kept(scripts, tmp_path):
    from peers import Contender, convert

    class Writer(Contender):
        folder = "format"

        def convert(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "weights").write_text(self.threads * "w")

    (tmp_path / "format.part").mkdir()
    (tmp_path / "format.part" / "half").write_text("w")
    for threads in (3, 4):
        convert(Writer(tmp_path, threads), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["format", "weights"]
    assert (tmp_path / "format" / "weights").read_text() == "www"
