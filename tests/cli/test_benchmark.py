"""`kogpt benchmark`: what it counts, what it prints, what it refuses."""

import inspect
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kogpt.benchmarking import (
    Bench,
    Figures,
    Plan,
    Report,
    bandwidth,
    cache_bytes,
    generate,
    machine,
    peak_memory,
    process_age,
    read_bandwidth,
    step_bytes,
    streamed_bytes,
    timing,
)
from kogpt.benchmarking.machine import (
    device_name,
    processor_name,
    reset_peak,
)
from kogpt.benchmarking.plot import draw, limit
from kogpt.benchmarking.report import duration
from kogpt.box import BOX
from kogpt.checkpoint import load_model, write_checkpoint
from kogpt.commands.benchmark import check_context
from kogpt.errors import UsageError
from kogpt.fast import load_fast
from kogpt.generation import generate as continue_prompts
from kogpt.model import PRESETS, KoGPT, KoGPTConfig, KVCache
from tests.cli.test_commands import kogpt, refusal

QUICK = ("--prompt-tokens", "4", "--new-tokens", "3", "--rounds", "2")

# Width 8, inner 32, one block: 4 projections of 64, fc_in and fc_out of 256 with biases of 32 and
# 8, two norms of 16; a head of 10 x 8 with 10 biases. The embedding, 10 x 8 too, is not among it.
TINY = KoGPTConfig(vocab_size=10, n_positions=64, n_embd=8, n_layer=1, n_head=2, rotary_dim=4)
TINY_STREAMED = 4 * 64 + 2 * 256 + 32 + 8 + 2 * 16 + 10 * 8 + 10


def test_streamed_bytes_are_all_weights_but_the_embedding():
    assert streamed_bytes(KoGPT(TINY)) == 4 * TINY_STREAMED
    assert streamed_bytes(KoGPT(TINY).bfloat16()) == 2 * TINY_STREAMED


def test_the_whole_model_streams_what_the_page_of_limits_says():
    with torch.device("meta"):
        model = KoGPT(PRESETS["kogpt-6b"]).bfloat16()
    assert streamed_bytes(model) == 2 * (6_166_502_400 - 64_512 * 4096)  # 11.80 GB
    assert cache_bytes(model) == 458_752


def test_the_prepared_model_streams_the_same_but_for_zeros_in_its_biases():
    # q, k and v have no bias; beside fc_in, which has one, they get 3 x 256 zeros a block.
    model, prepared = load_model(dtype=torch.float32), load_fast(dtype=torch.float32)
    assert streamed_bytes(prepared) == streamed_bytes(model) + 6 * 3 * 256 * 4


def test_a_step_reads_the_weights_once_and_the_embedding_and_cache_of_each_row():
    # Steps 2 to 4 of 4 read 6, 7 and 8 keys and values of 8 floats behind a prompt of 5.
    row = 4 * 8 + 2 * 4 * 8 * (6 + 7 + 8) / 3
    assert step_bytes(KoGPT(TINY), 3, 5, 4) == 4 * TINY_STREAMED + 3 * row


def test_rates_are_counts_over_seconds_and_the_first_token_is_the_prompt_s():
    figures = Figures(batch=2, prompt_tokens=10, new_tokens=5, step_bytes=1e9)
    figures.add([0.5, 1.0, 1.5, 2.0, 2.5], 7)
    figures.add([1.0, 2.0, 3.0, 4.0, 9.0], 9)
    figures.add([0.25, 0.5, 0.75, 1.0, 1.25], 8)
    assert figures.prefill_rates == [40, 20, 80]
    assert figures.decode_rates == [4, 1, 8]
    assert figures.read_rate == 2e9  # two steps a second, the median
    found = figures.to_dict(bandwidth=8e9)
    assert found["fraction_of_bandwidth"] == 0.25
    assert found["decode_tokens_per_second"] == {"median": 4, "rounds": [4, 1, 8]}
    assert found["peak_memory"] == 9


def test_the_clock_writes_what_greedy_reading_of_the_whole_text_writes():
    model = load_model()
    prompts = torch.randint(5, 8000, (2, 7), generator=torch.Generator().manual_seed(1))
    ids, times = generate(model, prompts, 6, KVCache(13))
    assert ids.shape == (2, 6) and times == sorted(times) and len(times) == 6
    with torch.inference_mode():
        likeliest = model(torch.cat((prompts, ids), dim=1)).argmax(-1)
    assert torch.equal(likeliest[:, 6:-1], ids)


def test_reading_alone_is_faster_than_reading_for_a_copy():
    source = torch.zeros(1 << 26)
    target = torch.empty_like(source)
    start = time.perf_counter()
    target.copy_(source)
    copied = source.nbytes / (time.perf_counter() - start)
    assert copied < read_bandwidth(torch.device("cpu")) < 1e13  # no memory delivers 10 TB a second


def test_the_ceiling_is_the_fastest_pass_before_or_after_what_is_measured(monkeypatch):
    monkeypatch.setattr(bandwidth, "CPU_BYTES", 1 << 12)
    took = iter(range(99, 2, -1))
    monkeypatch.setattr(bandwidth, "seconds", lambda action, device: next(took))
    passes = bandwidth.ROUNDS * len(bandwidth.cpu_passes(torch.zeros(8)))
    assert read_bandwidth(torch.device("cpu")) == (1 << 12) / (100 - passes)
    for seen in ([1.0, 2.0], [2.0, 1.0]):
        reads = iter(seen)
        monkeypatch.setattr(timing, "read_bandwidth", lambda device, reads=reads: next(reads))
        bench = Bench(KoGPT(TINY).eval())
        bench.measure(Plan((1,), (3,), new_tokens=2, rounds=1))
        assert bench.bandwidth == 2.0


def test_a_round_that_makes_buffers_is_not_counted(monkeypatch):
    told = iter([9.0, 1.0, 2.0])
    monkeypatch.setattr(timing, "generate", lambda *args: (None, [next(told), 10.0]))
    figures = Bench(KoGPT(TINY)).measure_shape(1, 3, Plan(new_tokens=2, rounds=2))
    assert figures.first_token == [1.0, 2.0]


def test_a_peak_that_cannot_be_begun_anew_is_not_told(monkeypatch):
    monkeypatch.setattr(timing, "reset_peak", lambda device: False)
    model, tracked = KoGPT(TINY).eval(), []
    model.transformer.register_forward_hook(lambda *args: tracked.append(args[2].requires_grad))
    figures = Bench(model).measure_shape(1, 3, Plan(new_tokens=2, rounds=1))
    assert figures.memory is None and figures.cells(1.0)[-1] == "unknown"
    assert tracked and not any(tracked)  # nothing is kept for a gradient


def test_a_text_may_fill_the_context_to_the_last_token():
    bench = Bench(KoGPT(TINY))
    check_context(bench, Plan((1,), (60,), new_tokens=4))
    with pytest.raises(UsageError, match="65 tokens exceed the model's context of 64"):
        check_context(bench, Plan((1,), (61,), new_tokens=4))


def test_age_and_memory_of_the_process_are_in_seconds_and_bytes():
    assert 0 < process_age() < time.clock_gettime(time.CLOCK_BOOTTIME)
    held = torch.ones(1 << 26, dtype=torch.uint8)
    assert held.nbytes < peak_memory(torch.device("cpu")) < 1 << 40


def test_short_times_are_told_in_milliseconds_and_a_limit_counts_all_rows():
    assert [duration(0.0123), duration(1.5)] == ["12.3 ms", "1.50 s"]
    assert limit(Figures(4, 32, 5, step_bytes=1e9), bandwidth=8e9) == 32


def test_every_shape_is_run_in_every_round():
    bench = Bench(load_model())
    figures = bench.measure(Plan((1, 2), (3, 4), new_tokens=2, rounds=2))
    shapes = [(f.batch, f.prompt_tokens) for f in figures]
    assert shapes == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert all(len(f.first_token) == len(f.decode) == 2 for f in figures)


def test_json_has_the_keys_that_the_page_documents():
    found = json.loads(kogpt("benchmark", *QUICK, "--json").stdout)
    assert list(found) == ["model", "machine", "start", "read_bandwidth", "runs"]
    model = found["model"]
    assert model["parameters"] == 8_833_856 and model["dtype"] == "float32"
    assert model["decoding"] == "fast"
    (run,) = found["runs"]
    rates = run["decode_tokens_per_second"]
    assert len(rates["rounds"]) == 2
    assert rates["median"] == statistics.median(rates["rounds"]) > 0
    read = rates["median"] * run["bytes_per_step"]
    assert run["bytes_per_second"] == pytest.approx(read, rel=1e-6)
    share = run["bytes_per_second"] / found["read_bandwidth"]
    assert run["fraction_of_bandwidth"] == pytest.approx(share)
    assert found["machine"]["threads"] == torch.get_num_threads()


def test_a_class_of_ones_own_is_told_as_what_it_runs(tmp_path):
    """It is not prepared for speed, asked for or not."""
    own = tmp_path / "own.py"
    own.write_text(
        "from kogpt.model import KoGPT\n"
        "class Own(KoGPT):\n"
        "    def make_head(self, config):\n"
        "        head = super().make_head(config)\n"
        "        head.weight = self.transformer.wte.weight\n"
        "        return head\n"
    )
    model = KoGPT(PRESETS["nano"])
    state = {**model.state_dict(), "lm_head.weight": model.transformer.wte.weight}
    write_checkpoint(tmp_path / "tied", model.config, state)
    for path in BOX.glob("*token*"):
        shutil.copy(path, tmp_path / "tied")
    options = ("--model", str(tmp_path / "tied"), "--json", "--architecture", f"{own}:Own")
    told = json.loads(kogpt("benchmark", *QUICK, *options).stdout)["model"]
    assert told["decoding"] == "reference"
    assert told["parameters"] == 8_833_856 - 8000 * 256  # of the embedding, there once
    assert told["bits_per_weight"] == 32


def test_the_table_has_a_row_for_each_shape_and_so_has_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    args = ("--batch", "1", "2", "--reference", "--plot", str(tmp_path / "a.svg"))
    lines = kogpt("benchmark", *QUICK, *args).stdout.splitlines()
    assert lines[0].endswith("8.8 M parameters, 32.00 bits a weight, float32, reference")
    assert [line.split()[0] for line in lines[:4]] == ["model", "machine", "bandwidth", "start"]
    assert [line.split()[:2] for line in lines[-2:]] == [["1", "4"], ["2", "4"]]
    assert len({len(line) for line in lines[-3:]}) == 1  # columns are flush
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.count("<!-- 1 x 4 -->") == drawn.count("<!-- 2 x 4 -->") == 2


def test_the_dtype_asked_for_is_the_one_that_is_measured():
    done = kogpt("benchmark", *QUICK, "--dtype", "bfloat16", "--reference", "--json")
    assert json.loads(done.stdout)["model"]["bits_per_weight"] == 16


def test_threads_are_those_asked_for():
    before = torch.get_num_threads()
    try:
        done = kogpt("benchmark", *QUICK, "--threads", "1", "--json")
    finally:
        torch.set_num_threads(before)
    assert json.loads(done.stdout)["machine"]["threads"] == 1


def test_bars_of_one_name_stand_apart_below_a_name_of_any_signs(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path: drawn.append(self))
    figures = [Figures(3, 4, 5, 1e9) for _ in range(3)]
    for shape in figures:
        shape.add([0.1, 0.2, 0.3, 0.4, 0.5], 1)
    about = {"path": "한국어 $\\frac$ $a$", "dtype": "bfloat16"}
    draw(Report(about, {"device": "a machine"}, {}, 8e9, figures), tmp_path / "a.png")
    for axes in drawn[0].axes:
        centers = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
        assert centers == pytest.approx([0, 1, 2])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["3 x 4"] * 3
    title = drawn[0].get_suptitle()
    assert title == "한국어 $\\frac$ $a$, bfloat16, a machine"
    drawn[0].canvas.draw()  # which reads no mathematics in it


def test_the_picture_shows_both_speeds(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    figures = [Figures(batch, 32, 5, 1e9) for batch in (1, 8)]
    for shape in figures:
        shape.add([0.1, 0.2, 0.3, 0.4, 0.5], 1)
        shape.add([0.1, 0.3, 0.5, 0.7, 0.9], 1)
    about = {"path": "folder", "dtype": "bfloat16"}
    draw(Report(about, {"device": "a machine"}, {}, 8e9, figures), tmp_path / "a.png")
    pixels = image.imread(tmp_path / "a.png")[..., :3]
    halves = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    bluish, orange = (half[..., 2] - half[..., 0] for half in halves)  # blue less red
    assert (bluish > 0.3).mean() > 0.1 and (orange < -0.3).mean() > 0.1


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refusal("benchmark", *QUICK, "--plot", str(tmp_path / "a.png"), code=1)
    assert "pip install 'kogpt[train]'" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--batch", "1", "0"), "--batch: must be at least 1, is 0"),
        (("--prompt-tokens", "-4"), "--prompt-tokens: must be at least 1, is -4"),
        (("--new-tokens", "1"), "--new-tokens: must be at least 2, is 1"),
        (("--rounds", "0"), "--rounds: must be at least 1, is 0"),
        (("--threads", "0"), "--threads: must be at least 1, is 0"),
        (("--prompt-tokens", "32", "1020"), "1052 tokens exceed the model's context of 1024"),
        (("--plot", "figures.txt"), "--plot: must end in .png or .svg or .pdf: figures.txt"),
        (("--plot", "no/such/figures.png"), "--plot: no such folder: no/such"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_and_exit_code_2(args, words):
    assert words in refusal("benchmark", *args, code=2)


def test_a_folder_that_is_not_there_is_exit_code_3():
    assert "nowhere" in refusal("benchmark", "--model", "nowhere", code=3)


def test_a_cache_larger_than_the_memory_is_exit_code_4_and_told_at_once():
    line = refusal("benchmark", "--batch", "100000000", code=4)
    assert "the cache of a batch of 100000000: not enough memory on cpu" in line


def test_the_prepared_model_keeps_as_many_keys_and_values():
    assert cache_bytes(load_fast(dtype=torch.float32)) == cache_bytes(load_model())


def test_an_embedding_that_is_the_head_too_is_read_whole():
    model = KoGPT(TINY)
    model.lm_head.weight = model.transformer.wte.weight
    assert streamed_bytes(model) == 4 * TINY_STREAMED


def test_age_and_peak_are_the_figures_that_linux_documents(monkeypatch, tmp_path):
    """The start is field 22 of `stat`, whatever the name in it; the peak is that of residence."""
    here, clock = torch.device("cpu"), SimpleNamespace(CLOCK_BOOTTIME=7)
    clock.clock_gettime = lambda which: 30.5 if which == 7 else 0
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "time", clock)
    assert process_age() is None and peak_memory(here) is None
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [str(field * ticks) for field in range(4, 53)]
    (tmp_path / "stat").write_text(" ".join(("1 (a) R 2 name) S", *fields)))
    (tmp_path / "status").write_text("VmPeak:\t9 kB\nVmHWM:\t   7 kB\nVmRSS:\t5 kB\n")
    assert process_age() == 8.5 and peak_memory(here) == 7 * 1024
    assert reset_peak(here) and (tmp_path / "clear_refs").read_text() == "5"
    monkeypatch.setattr(machine, "PROC", tmp_path / "none")
    assert not reset_peak(here)


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that names the processor")
def test_a_processor_is_told_by_its_name_and_cores():
    name = processor_name()
    known = f": {name}\n" in Path("/proc/cpuinfo").read_text() or name == platform.machine()
    assert known and device_name(torch.device("cpu")) == f"{name}, {os.cpu_count()} cores"


def test_a_prompt_is_read_in_pieces_and_every_token_is_waited_for(monkeypatch):
    model = load_model()
    prompts = torch.randint(5, 8000, (2, 7), generator=torch.Generator().manual_seed(1))
    whole, _ = generate(model, prompts, 4, KVCache(11))
    monkeypatch.setattr(timing, "PREFILL_CHUNK", 3)
    monkeypatch.setattr(timing, "reads_on", lambda device: True)  # as on a GPU
    read = []
    model.transformer.register_forward_hook(lambda *args: read.append(args[2].size(1)))
    ids, times = generate(model, prompts, 4, KVCache(11))
    assert torch.equal(ids, whole) and len(times) == 4
    assert read == [3, 3, 1, 1, 1, 1]


def test_every_batch_is_measured_with_every_prompt_the_same_in_each_run(monkeypatch):
    monkeypatch.setattr(timing, "read_bandwidth", lambda device: 1.0)
    model = KoGPT(TINY).eval()
    plan = Plan((1, 2), (3, 5), new_tokens=2, rounds=1)
    shapes = [(f.batch, f.prompt_tokens) for f in Bench(model).measure(plan)]
    assert shapes == [(1, 3), (1, 5), (2, 3), (2, 5)]
    assert torch.equal(Bench(model).prompts(2, 9), Bench(model).prompts(2, 9))


def test_prompts_are_read_in_the_pieces_that_generation_reads():
    asked = inspect.signature(continue_prompts).parameters["prefill_chunk"]
    assert asked.default == timing.PREFILL_CHUNK


def test_to_describe_the_machine_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "describe_machine(torch.device('cpu'))"
    code = f"import torch; from kogpt.benchmarking.machine import describe_machine; {code}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not list(tmp_path.iterdir())
