"""The benchmark of the kernels runs on a CPU, where its figures mean nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.scripts import SCRIPTS, run_script


def run(*arguments: str | Path) -> CompletedProcess[str]:
    return run_script("benchmark_kernels.py", *arguments, environment={"CUDA_VISIBLE_DEVICES": ""})


@pytest.fixture
def script(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_kernels

    return benchmark_kernels


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict, bytes]:
    """What it prints, its JSON and its plot."""
    folder = tmp_path_factory.mktemp("benchmark")
    done = run("--dry-run", "--json", folder / "a.json", "--plot", folder / "a.png")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "a.json").read_text()), (folder / "a.png").read_bytes()


def test_ours_and_a_named_backend_stand_side_by_side(dry_run):
    printed, found, _ = dry_run
    kinds = [workload["kind"] for workload in found["workloads"]]
    assert kinds == [
        *("forward", "backward") * 2,
        *("packed forward", "packed backward"),
        *["decode"] * 3,
        *["product"] * 18,
    ]
    for workload in found["workloads"]:
        assert "**KoGPT**" in workload["seconds"]
        if workload["kind"] != "product":
            assert any(name.startswith("SDPA math") for name in workload["seconds"])
        rounds = {len(times) for times in workload["seconds"].values()}
        assert rounds == {3} and all(min(times) > 0 for times in workload["seconds"].values())
        for name in workload["seconds"]:
            assert f"| {workload['kind']} | {workload['shape']} | {name} |" in printed


def test_a_backend_that_refuses_is_named_with_its_reason(dry_run):
    printed, found, _ = dry_run
    refused = [w["refused"] for w in found["workloads"] if w["kind"] in ("forward", "decode")]
    assert all(any(name.startswith("SDPA cuDNN") for name in names) for names in refused)
    for names in refused:
        assert all(f"{name} refused: {reason}" in printed for name, reason in names.items())


def test_products_stand_beside_those_of_pytorch(dry_run):
    printed, found, _ = dry_run
    for workload in found["workloads"]:
        if workload["kind"] == "product":
            names = {16: "F.linear", 8: "_weight_int8pack_mm", 4: "PyTorch's product in 4 bits"}
            name = names[workload["D"]]
            assert name in workload["seconds"] or f"{name} refused: " in printed


def test_ceilings_come_before_shapes_and_goals_after(dry_run):
    printed, found, _ = dry_run
    order = [printed.index(word) for word in ("| device copy", "| forward |", "| goal, ")]
    assert order == sorted(order)
    goals = printed[order[2] :].splitlines()[2:]
    assert len(goals) == len(found["goals"]) == 11
    assert all(line.endswith(("| met |", "| missed |")) for line in goals)


def test_what_fails_its_check_is_told_and_the_others_are_measured(script, monkeypatch, capsys):
    """In a run of minutes on a machine that may be there once."""

    def part(fault: str = "") -> Iterator:
        yield script.Workload("decode", "1 x 48", 256, 48, 1, 1.0, 1.0, {script.OURS: [1e-3]})
        if fault:
            raise AssertionError(fault)

    monkeypatch.setattr(script, "parts", lambda bench: [("a", part("dq is wrong")), ("b", part())])
    run = script.Run(script.Bench("cpu", script.DRY), script.Ceilings(1.0, 1.0, 1.0))
    printed = "\n".join(script.report({}, run))
    assert printed.count("| decode | 1 x 48 | **KoGPT** | 1000.0 us |") == 2
    assert run.faults == ["a: dq is wrong"] and "- failed: a: dq is wrong" in printed
    assert capsys.readouterr().err == "benchmark_kernels.py: a: dq is wrong\n"
    verdicts = [goal.verdict for goal in script.goals(script.DRY, run.ceilings, run.workloads)]
    assert verdicts[4] == "missed" and verdicts.count("not measured") == 10


def test_a_flash_attn_that_cannot_be_loaded_takes_no_part(script, monkeypatch, capsys, tmp_path):
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "flash-attn" not in script.prefill_functions()
    expected = "benchmark_kernels.py: flash-attn takes no part: undefined symbol\n"
    assert capsys.readouterr().err == expected


def test_a_dry_run_says_that_it_is_one(dry_run):
    assert dry_run[0].startswith("- dry run: figures mean nothing\n")


def test_the_roofline_is_drawn(dry_run):
    assert dry_run[2].startswith(b"\x89PNG")


def test_without_a_gpu_one_line_says_so():
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "benchmark_kernels.py: needs a CUDA device\n"
