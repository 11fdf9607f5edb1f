"""The benchmark of the kernels runs on a CPU, where its figures mean nothing."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.scripts import run_script


def run(*arguments: str | Path) -> CompletedProcess[str]:
    return run_script("benchmark_kernels.py", *arguments, environment={"CUDA_VISIBLE_DEVICES": ""})


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


def test_a_dry_run_says_that_it_is_one(dry_run):
    assert dry_run[0].startswith("- dry run: figures mean nothing\n")


def test_the_roofline_is_drawn(dry_run):
    assert dry_run[2].startswith(b"\x89PNG")


def test_without_a_gpu_one_line_says_so():
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "benchmark_kernels.py: needs a CUDA device\n"
