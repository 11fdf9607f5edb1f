"""The benchmark of the kernels runs on a CPU, where its figures mean nothing."""

import json
import sys
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


def workload(script, kind: str, length: int, batch: int, D: int, seconds: dict) -> object:
    """One of 8 GB and 4 T operations; the times of each contender are equal in all rounds."""
    times = {name: [time] * 3 for name, time in seconds.items()}
    return script.Workload(kind, "", D, length, batch, 4e12, 8e9, times)


def test_goals_are_taken_of_the_shapes_and_peers_they_name(script):
    ours, flash = script.OURS, script.FLASH
    sizes = script.DRY  # 64 tokens in rows of 16; decodes (1, 48), (2, 24) and (3, 24)
    apart, alone = f"{flash} + separate ops", f"{flash}, {script.ALONE}"
    found = [
        workload(script, "forward", 16, 4, 256, {ours: 0.02, flash: 0.03, "SDPA math": 0.01}),
        workload(script, "forward", 16, 4, 64, {ours: 9.0, flash: 9.0}),
        workload(script, "backward", 16, 4, 256, {ours: 0.05, flash: 0.04}),
        workload(script, "decode", 48, 1, 256, {ours: 16e-6, apart: 24e-6, "x": 1e-6, alone: 1e-6}),
        workload(script, "decode", 24, 2, 256, {ours: 2e-3}),
        workload(script, "decode", 24, 3, 256, {ours: 4e-3}),
    ]
    goals = script.goals(sizes, script.Ceilings(1.0, 5e12, 1.0), found)[:7]
    assert [goal.found for goal in goals] == pytest.approx([1.5, 200, 0.8, 1.5, 16, 80, 40])
    verdicts = ["met", "missed", "missed", "met", "met", "missed", "missed"]
    assert [goal.verdict for goal in goals] == verdicts


def test_the_goals_of_products_count_both_matrices_of_each_block_and_the_head(script):
    """Of a head that is never in 4 bits."""
    found = [
        workload(script, "product", N, M, bits, {script.OURS: time * bits / 16 * (1 + M / 8)})
        for N, time in ((96, 1e-3), (64, 2e-3), (160, 4e-3))
        for M in (1, 8)
        for bits in (16, 8, 4)
        if (N, bits) != (160, 4)
    ]
    goals = list(script.product_goals(script.DRY, found))
    step = 2 * (1e-3 + 2e-3)  # of two blocks
    one = 1.125
    expected = [1 / one / (step + 4e-3), 2 / one / (step + 4e-3), 1 / one / (step / 4 + 2e-3)]
    assert [goal.found for goal in goals] == pytest.approx([*expected, 8 / 2 / (step + 4e-3)])
    assert [goal.goal for goal in goals] == [225, 400, 560, 1650]
    assert next(script.product_goals(script.DRY, found[1:])).verdict == "not measured"


def test_buffers_take_four_times_the_cache(script):
    bench = script.Bench("cpu", script.DRY)
    bench.cache = 100
    assert [len(bench.sets(size)) for size in (50, 133, 134, 1000)] == [8, 4, 3, 2]


def test_the_fastest_peer_is_one_that_does_all_that_ours_does(script):
    times = {script.OURS: 1.0, "a": 3.0, "b": 2.0, f"b, {script.ALONE}": 0.5}
    found = workload(script, "decode", 48, 1, 256, times)
    assert (found.best_peer(), found.best_peer("a"), found.best_peer("c")) == ("b", "a", None)


def test_ceilings_and_shapes_count_their_bytes_and_operations(script, monkeypatch):
    monkeypatch.setattr(script.Bench, "median", lambda *_: 2.0)
    monkeypatch.setattr(script.Bench, "compare", lambda *_: None)
    bench = script.Bench("cpu", script.DRY)  # 2 heads, 64 tokens
    size = 4 << 12
    assert script.measure_ceilings(bench) == script.Ceilings(size, size / 2, 32**3)
    one = 2 * 64 * 2 * 256  # bytes of each of queries, keys, values and so on
    forward, backward = script.measure_prefill(bench, 256, 16)
    assert (forward.flops, forward.traffic) == (2 * 4 * 2 * 16**2 * 256, 4 * one)
    assert (backward.flops, backward.traffic) == (2.5 * forward.flops, 8 * one)
    packed, _ = script.measure_prefill(bench, 256, 16, 8)
    assert (packed.flops, packed.traffic) == (forward.flops / 2, 4 * one)
    (decode,) = script.measure_decode(bench, 3, 24)
    assert (decode.flops, decode.traffic) == (4 * 3 * 2 * 24 * 256, 2 * 2 * 3 * 2 * 24 * 256)
    *_, product = script.measure_products(bench, 8, 64, 256)  # of 8 rows
    weights = 64 * 256 + 2 * 64  # with a scale of 16 bits for each output
    assert product.flops == 2 * 8 * 64 * 256
    assert product.traffic == weights + 2 * 8 * (64 + 256)


@pytest.mark.parametrize(
    ("kind", "speed"),
    [
        ("forward", "2000.0 TFLOP/s | 25.0%"),
        ("backward", "2000.0 TFLOP/s | 25.0%"),
        ("decode", "4000 GB/s | 50.0%"),
        ("product", "4000 GB/s | 50.0%"),
    ],
)
def test_what_reads_is_held_against_the_read_ceiling(script, kind, speed):
    found = workload(script, kind, 16, 4, 256, {script.OURS: 2e-3, "a": 3e-3})
    ours, theirs = script.rows(found, script.Ceilings(1.0, 8e12, 8e15))
    assert ours == f"| {kind} |  | {script.OURS} | 2000.0 us |  | {speed} |"
    assert theirs.startswith(f"| {kind} |  | a | 3000.0 us | 1.50 |")


def test_a_run_that_met_a_fault_says_so_to_the_shell(script, monkeypatch):
    def part() -> Iterator:
        yield from ()
        raise AssertionError("dq is wrong")

    monkeypatch.setattr(sys, "argv", ["benchmark_kernels.py", "--dry-run"])
    for some, code in (([("a", part())], script.FAILED), ([], 0)):
        monkeypatch.setattr(script, "parts", lambda bench, some=some: some)
        assert script.main() == code
