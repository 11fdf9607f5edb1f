"""`kogpt plan`: what work takes, whether it fits, and what would."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from kogpt import load
from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert
from kogpt.cli import build_parser
from kogpt.commands.plan import find_work
from kogpt.model import PRESETS, KVCache
from kogpt.training.memory import PARTS
from kogpt.training.planning import GATHERED, Work, alternatives, divided
from kogpt.training.rehearsal import bytes_of_prompt
from tests.cli.test_commands import kogpt, refusal

SWAPS = Path(__file__).parents[1] / "model/swaps.py"
NANO = ("plan", "--model", "nano", "--sequence", "64")
WHOLE = ("plan", "--model", "kogpt-6b", "--sequence", "2048", "--batch", "1", "--gpus", "1")
FRUGAL = ("--precision", "bfloat16", "--activation-checkpointing")


def planned(*args, code=0):
    return json.loads(kogpt(*args, "--json", code=code).stdout)


def test_it_tells_of_each_part_and_whether_all_fit():
    told = kogpt(*NANO, "--method", "lora", "--batch", "4", "--gpus", "1", "--memory", "8GB")
    lines = told.stdout.splitlines()
    assert lines[0].startswith("memory on the GPU when most is taken (")
    parts = [line.split()[0] for line in lines[1:-1]]
    assert parts == ["weights", "optimizer", "activations", "temporary", "together"]
    assert lines[-1] == "There are 8.00 GB, less 1.07 GB for CUDA itself: it fits."


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (("--method", "lora"), 14.5e9),
        (("--method", "qlora"), 6.5e9),
        (("--method", "full", "--offload"), 80e9),
        (("--method", "full", "--offload", "--weights", "bfloat16-master"), 80e9),
    ],
)
def test_the_6b_at_2048_tokens_takes_no_more_than_it_should(method, most):
    plan = planned(*WHOLE, *method, *FRUGAL, "--memory", f"{most / 1e9}GB")
    assert (plan["gpus"], plan["rows"], plan["tokens"]) == (1, 1, 2048)
    assert plan["total"] + plan["reserved"] < most
    assert plan["fits"] and not plan["ways"]


def test_8_bit_states_of_the_6b_fit_80_gb():
    pytest.importorskip("torchao", reason="8-bit states come from torchao")
    plan = planned(*WHOLE, "--method", "full", *FRUGAL, "--optimizer", "adamw-8bit")
    assert plan["total"] + plan["reserved"] < 80e9


def test_what_does_not_fit_is_told_with_what_would_and_exits_4():
    asked = ("plan", "--model", "nano", "--sequence", "256", "--gpus", "1", "--memory", "1.2GB")
    plan = planned(*asked, "--method", "full", "--batch", "16", code=4)
    assert not plan["fits"]
    *others, last = plan["ways"]
    options = [way["options"] for way in others]
    cheap = ("--precision bfloat16", " --activation-checkpointing", " --micro-batch-size 1")
    assert options[:3] == ["".join(cheap[:count]) for count in (1, 2, 3)]
    room = plan["limit"] - plan["reserved"]
    assert all(way["total"] > room for way in others) and last["total"] <= room
    again = planned(*asked, "--method", "full", "--batch", "16", *last["options"].split())
    assert again["fits"] and again["total"] == last["total"]


def test_several_gpus_divide_weights_gradients_and_states():
    work = (*NANO, "--method", "full", "--batch", "4")
    one, four = (planned(*work, "--gpus", str(gpus)) for gpus in (1, 4))
    for part in ("weights", "optimizer"):
        assert four["bytes"][part] == one["bytes"][part] // 4
    assert four["bytes"]["gathered"] > 0
    reading = (*NANO, "--method", "inference", "--batch", "4")
    one, four = (planned(*reading, "--gpus", str(gpus))["bytes"] for gpus in (1, 4))
    for part in ("weights", "cache"):
        assert four[part] == one[part] // 4


def test_integers_are_whole_on_each_of_several_gpus():
    work = (*NANO, "--method", "qlora", "--batch", "4", "--precision", "bfloat16")
    one, four = (planned(*work, "--gpus", str(gpus))["bytes"]["weights"] for gpus in (1, 4))
    shape = PRESETS["nano"]
    matrices = shape.n_layer * (4 * shape.n_embd**2 + 2 * shape.n_embd * shape.inner_dim)
    head = shape.vocab_size * (shape.n_embd + 2)  # in 8 bits, with a scale a row
    integers = matrices * (1 / 2 + 2 / 128) + head
    assert four == pytest.approx(integers + (one - integers) / 4, abs=4)
    reading = (*NANO, "--method", "inference", "--gpus", "2", "--batch", "4")
    assert planned(*reading, "--quantize", "int4") == planned(*reading)


def test_a_soft_prompt_begins_with_the_whole_model_on_each_of_several_gpus():
    work = (*WHOLE[:-1], "4", "--method", "prompt-tuning", *FRUGAL)
    plan = planned(*work)
    assert plan["phase"] == "loading, before it is divided"
    assert plan["bytes"]["weights"] >= 2 * PRESETS["kogpt-6b"].num_parameters


def test_a_soft_prompt_is_whole_on_each_of_several_gpus():
    work = ("plan", "--model", "kogpt-6b", "--sequence", "64", "--batch", "2", *FRUGAL)
    one, two = (
        planned(*work, "--method", "p-tuning", "--gpus", str(gpus))["bytes"] for gpus in (1, 2)
    )
    assert two["optimizer"] == one["optimizer"] > 6e9
    prompt = one["optimizer"] / 2  # two moments, and a counter of 4 bytes for each tensor
    wanted = prompt + (one["weights"] - prompt) / 2
    assert two["weights"] == pytest.approx(wanted, abs=64)


def test_what_is_offloaded_on_a_cpu_stays_in_the_same_memory():
    work = (*NANO, "--method", "full", "--batch", "4", "--gpus", "0")
    plain, offloaded = planned(*work), planned(*work, "--offload")
    assert offloaded["bytes"]["host"] == 0
    assert offloaded["total"] == plain["total"]
    assert not any("--offload" in option for option in offered("--gpus", "0"))


def test_each_of_several_gpus_reads_its_share_of_the_rows():
    work = (*NANO, "--method", "lora")
    shared = planned(*work, "--batch", "16", "--gpus", "4")["bytes"]
    alone = planned(*work, "--batch", "4", "--gpus", "4", "--micro-batch-size", "1")["bytes"]
    one = planned(*work, "--batch", "4", "--gpus", "1")["bytes"]
    assert shared["activations"] == one["activations"] > 2 * alone["activations"]


def test_a_way_to_less_is_counted_as_if_it_had_been_asked_for(tmp_path):
    folder = tmp_path / "float16"
    convert(BOX, folder, ConversionOptions(dtype="float16"))
    work = ("plan", "--model", str(folder), "--method", "inference", "--gpus", "0")
    ways = planned(*work, "--memory", "1MB", code=4)["ways"]
    assert ways[0]["options"] == "--precision bfloat16"
    asked = planned(*work, "--precision", "bfloat16", "--memory", "1MB", code=4)
    assert ways[0]["bytes"] == asked["bytes"]


def asked(*args: str) -> Work:
    """What is planned, before anything is counted."""
    parsed = build_parser().parse_args([*NANO, *args])
    return find_work(parsed, parsed.gpus)


def offered(*args):
    """The options of all ways that would be looked at."""
    return [options for options, _ in alternatives(asked("--method", "full", *args))]


def test_several_gpus_are_not_offered_what_one_process_alone_can_do():
    options = offered("--gpus", "2")
    assert any("--offload" in option for option in options)
    assert not any("8bit" in option or "bfloat16-" in option for option in options)


def test_what_another_way_does_not_go_with_is_told():
    options = offered(
        "--gpus", "1", "--offload", "--weights", "bfloat16-master", "--precision", "bfloat16"
    )
    lora, qlora = (next(o for o in options if f"--method {m}" in o) for m in ("lora", "qlora"))
    assert lora == "--activation-checkpointing --method lora; without --weights, --offload"
    assert qlora.endswith("--quantize int4 writes; without --weights, --offload")
    assert any(option.endswith("--offload; without --weights") for option in options)
    assert "without" not in " ".join(offered("--gpus", "1"))


@pytest.mark.parametrize("method", ["full", "lora", "inference"])
def test_a_class_of_ones_own_is_offered_neither_integers_nor_gpus(method):
    own = ("--architecture", f"{SWAPS}:WithSwiGLU", "--sequence", "512")
    work = asked("--method", method, "--gpus", "1", *own)
    options = [options for options, _ in alternatives(work)]
    assert options
    assert not [option for option in options if re.search("gpus|qlora|quantize", option)]


def test_no_gpus_are_offered_where_the_head_is_the_embedding():
    """Tensor parallel cuts heads of their own."""
    asks = ("plan", "--model", "kogpt2", "--method", "inference", "--gpus", "1", "--sequence", "64")
    work = find_work(build_parser().parse_args(asks), 1)
    assert not [options for options, _ in alternatives(work) if "--gpus" in options]


def test_what_one_process_alone_can_do_leads_to_no_more_of_them():
    pytest.importorskip("torchao", reason="8-bit states come from torchao")
    alone = ("--gpus", "1", "--batch", "4")
    options = offered(*alone), offered(*alone, "--optimizer", "adamw-8bit")
    assert [any("--gpus" in option for option in each) for each in options] == [True, False]


def test_reading_takes_weights_and_a_cache():
    reading = (*NANO, "--method", "inference", "--gpus", "1")
    plan, narrow = planned(*reading, "--batch", "4"), planned(*reading, "--quantize", "int8")
    shape = PRESETS["nano"]
    assert plan["bytes"]["cache"] == 4 * 64 * 2 * shape.n_embd * shape.n_layer * 2
    assert narrow["bytes"]["weights"] < plan["bytes"]["weights"]


@pytest.mark.parametrize("quantize", [None, "int4"])
@torch.inference_mode()
def test_a_float16_folder_on_a_cpu_is_planned_as_it_is_used(tmp_path, quantize):
    folder = BOX
    if quantize:
        folder = tmp_path / quantize
        convert(BOX, folder, ConversionOptions(quantize=quantize))
    model, tokenizer = load(folder, fast=True)
    cache = KVCache(64)
    model(torch.tensor([tokenizer.encode("영화")]), cache)
    parts = planned(
        "plan", "--model", str(folder), "--method", "inference", "--gpus", "0", "--sequence", "64"
    )["bytes"]
    held = sum(x.nbytes for x in model.streamed()) + model.transformer.embedding.weight.nbytes
    assert parts["cache"] == cache.nbytes
    assert parts["weights"] == pytest.approx(held, rel=0.03)  # and the angles of positions


def test_the_model_in_the_box_is_planned_by_its_headers():
    plan = planned("plan", "--method", "full", "--sequence", "32")
    assert plan["bytes"]["weights"] >= 4 * PRESETS["nano"].num_parameters


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--method", "lora", "--memory", "much"), 2, "argument --memory: 'much' is no size"),
        (("--method", "lora", "--memory", "9" * 400), 2, "argument --memory: '999"),
        (("--method", "lora", "--gpus", "-1"), 2, "argument --gpus: must be at least 0, is -1"),
        (("--method", "full", "--gpus", "2", "--optimizer", "adamw-8bit"), 2, "is for one process"),
        (("--method", "inference", "--gpus", "3"), 2, "tensor parallel 3 does not divide"),
        (("--method", "inference", "--optimizer", "adamw-8bit"), 2, "--optimizer: not with"),
        (("--method", "inference", "--pack"), 2, "argument --pack: not with --method inference"),
        (("--method", "full", "--quantize", "int8"), 2, "argument --quantize: only with"),
        (("--method", "lora", "--sequence", "9999"), 2, "sequence is 9999, it must be at most"),
        (("--method", "lora", "--rank", "0"), 2, "argument --rank: is 0"),
        (("--method", "full", "--rank", "4"), 2, "--rank: only with --method lora or qlora"),
        (("--method", "prompt-tuning", "--sequence", "20"), 2, "it must be above the 20 virtual"),
        (("--method", "lora", "--model", "no-such"), 3, "no-such: no such file or folder"),
        (
            ("--method", "lora", "--weights", "bfloat16-master", "--precision", "bfloat16"),
            2,
            "full",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(args, code, message):
    assert message in refusal(*NANO, *args, code=code)


def test_what_is_gathered_is_the_tables_two_blocks_and_their_gradients():
    shape = PRESETS["nano"]
    tables = 2 * shape.vocab_size * shape.n_embd
    block = (shape.num_parameters - tables) // shape.n_layer
    parts = dict.fromkeys(PARTS, 0)
    for precision, size in (("float32", 4), ("bfloat16", 2)):
        for method, wanted in (
            ("lora", tables * size + 2 * block * size),
            ("full", 2 * 4 * tables + 3 * block * size + 4 * block),
        ):
            work = asked("--method", method, "--gpus", "2", "--precision", precision)
            assert divided(parts, work)[GATHERED] == wanted


def test_several_gpus_offload_all_that_they_divide_to_one_machine():
    parts = {part: 10**9 + n for n, part in enumerate(PARTS)}
    full = divided(parts, asked("--method", "full", "--gpus", "2", "--offload"))
    assert full["weights"] == full["gradients"] == 0
    assert full["host"] == sum(parts[name] for name in ("host", "weights", "gradients"))
    work = asked("--method", "prompt-tuning", "--gpus", "2", "--offload")
    soft, prompt = divided(parts, work), bytes_of_prompt(work.stage, work.config)
    assert soft["gradients"] == parts["gradients"] and soft["weights"] == prompt > 0
    assert soft["host"] == parts["host"] + parts["weights"] - prompt


def test_only_what_is_possible_is_offered():
    """Heads that GPUs can divide, floats where they do, whole groups, and no length too short."""
    work = asked("--method", "inference", "--gpus", "1", "--quantize", "int8", "--sequence", "600")
    ways = dict(alternatives(work))
    gpus = [way.stage.quantization for options, way in ways.items() if "--gpus" in options]
    assert gpus == [None, None]  # of two and of four: nano has four heads
    lengths = [options.split()[-1] for options in ways if "--sequence" in options]
    assert lengths == ["300", "150"]
    for method, count in (("inference", 1), ("full", 1), ("lora", 1), ("qlora", 0)):
        work = asked("--method", method, "--gpus", "0", "--batch", "1")
        narrow = dataclasses.replace(work.stage.shape, n_embd=192)
        odd = dataclasses.replace(work, stage=dataclasses.replace(work.stage, shape=narrow))
        found = [sum("int4" in options for options, _ in alternatives(w)) for w in (work, odd)]
        assert found == [count, 0]
        assert not any("--micro-batch-size" in options for options, _ in alternatives(work))
