"""A rehearsed step, against steps on real tensors, and what the process of one then takes."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kogpt.checkpoint.quantization import Quantization
from kogpt.kernels import attention
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.transformer import Block
from kogpt.training import rehearsal
from kogpt.training.config import FinetuningConfig
from kogpt.training.memory import (
    ACTIVATIONS,
    CACHE,
    CASTS,
    GRADIENTS,
    HOST,
    OPTIMIZER,
    WEIGHTS,
    MemoryTracker,
    on_device,
)
from kogpt.training.rehearsal import (
    FIRST,
    Stage,
    empty_tensors,
    read,
    rehearse_reading,
    rehearse_training,
    take_step,
)
from tests.scale import some
from tests.server import Forked

ROOT = Path(__file__).resolve().parents[2]
SHAPE = KoGPTConfig(vocab_size=1000, n_positions=64, n_embd=128, n_layer=5, n_head=2, rotary_dim=32)
BFLOAT16 = {"precision": "bfloat16"}
WORK = {
    "full": {"method": "full"},
    "full, several micro-batches": {"method": "full", "micro_batch_size": 1},
    "full, packed": {"method": "full", "pack": True},
    "full, autocast": {"method": "full", **BFLOAT16},
    "full, master weights": {"method": "full", **BFLOAT16, "weights": "bfloat16-master"},
    "full, offload": {
        "method": "full",
        **BFLOAT16,
        "weights": "bfloat16-stochastic",
        "offload": True,
    },
    "lora": {"method": "lora", "dropout": 0.1, "targets": ("q_proj", "fc_in", "fc_out")},
    "lora, bfloat16": {"method": "lora", **BFLOAT16},
    "qlora": {"method": "qlora"},
    "prompt tuning": {"method": "prompt-tuning", "virtual_tokens": 4},
    "p-tuning": {"method": "p-tuning", "virtual_tokens": 4, "encoder": "mlp"},
}


def config(**changes):
    fixed = {"out": Path("out"), "model": "", "data": ("",), "batch_size": 2}
    return FinetuningConfig(**{**fixed, **changes})


def stage(name="", shape=SHAPE, **rest):
    quantization = Quantization.of("int4", 32, zero_points=False) if name == "qlora" else None
    return Stage(shape, False, quantization, **rest)


def highest(peaks):
    return max(peaks.values(), key=on_device)


# Each kind of work in one of both ways, some in both.
CASES = [(name, index % 2 == 0) for index, name in enumerate(WORK)]
CASES += [("full", False), ("lora", False), ("qlora", True)]


@pytest.mark.parametrize(("name", "checkpointing"), sorted(set(CASES)))
def test_a_rehearsed_step_takes_what_a_real_one_takes_to_the_byte(name, checkpointing):
    settings = config(**WORK[name], activation_checkpointing=checkpointing)
    short = dataclasses.replace(SHAPE, n_layer=2)
    with MemoryTracker() as real:
        take_step(stage(name, short), real, settings)
    assert rehearse_training(stage(name, short), settings) == real.peaks


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        ("full", False),
        ("full, several micro-batches", True),
        ("full, autocast", True),
        ("lora, bfloat16", False),
        ("qlora", True),
        ("p-tuning", True),
    ],
)
def test_two_short_models_tell_of_a_long_one(name, checkpointing):
    settings = config(**WORK[name], activation_checkpointing=checkpointing)
    with empty_tensors(gpu=False) as tracker:
        take_step(stage(name), tracker, settings)
    assert highest(rehearse_training(stage(name), settings)) == highest(tracker.peaks)


def test_the_parts_are_what_arithmetic_says():
    settings = config(method="full", **BFLOAT16, activation_checkpointing=True)
    peaks = rehearse_training(stage(), settings)
    count, table = SHAPE.num_parameters, 64 * 32 * 4  # of rotary angles
    update = peaks["update"]
    assert update[WEIGHTS] == 4 * count + table
    assert update[GRADIENTS] == 4 * count
    assert update[OPTIMIZER] == 8 * count + 4 * (5 + 10 * SHAPE.n_layer)  # a step for each
    assert peaks["loss"][CASTS] == 2 * (SHAPE.n_layer * (12 * 128**2 + 5 * 128) + 1000 * 129)
    # Of each block its input, float32 beside bfloat16 products; of the embedding a mask and ids.
    inputs = (SHAPE.n_layer + 1) * 2 * 64 * 128 * 4
    assert peaks["forward"][ACTIVATIONS] == inputs + 2 * 64 * 8


def test_what_is_offloaded_counts_on_the_cpu_alone():
    plain = rehearse_training(stage(), config(method="full"))
    moved = rehearse_training(stage(), config(method="full", offload=True))
    assert moved["update"][OPTIMIZER] == 0
    assert moved["update"][HOST] >= plain["update"][OPTIMIZER]
    assert moved[FIRST][GRADIENTS] == plain[FIRST][GRADIENTS]


def test_8_bit_states_take_a_quarter():
    pytest.importorskip("torchao", reason="8-bit states come from torchao")
    plain = rehearse_training(stage(), config(method="full"))
    small = rehearse_training(stage(), config(method="full", optimizer="adamw-8bit"))
    assert small[FIRST][OPTIMIZER] < 0.3 * plain[FIRST][OPTIMIZER]


def test_a_rehearsal_leaves_torchaos_numbers_as_they_are():
    """They are computed once in a process: those of a rehearsal would be those of all training."""
    pytest.importorskip("torchao", reason="8-bit states come from torchao")
    processes = [Forked({}, print_torchaos_numbers, after) for after in (True, False)]
    found, wanted = (process.finish(time.monotonic() + 120)[:2] for process in processes)
    assert found == wanted and "-0.99" in wanted[1], (found, wanted)


def print_torchaos_numbers(after_a_rehearsal: bool) -> None:
    from torchao.optim.subclass_8bit import OptimState8bit

    if after_a_rehearsal:
        rehearse_training(stage(), config(method="full", optimizer="adamw-8bit"))
    print([OptimState8bit.zeros((256,), signed).qmap.tolist() for signed in (True, False)])


def test_reading_fills_a_cache():
    with MemoryTracker() as real:
        read(stage(), real, torch.float32, batch=3, length=64)
    rehearsed = rehearse_reading(stage(), torch.float32, batch=3, length=64)
    assert highest(rehearsed) == highest(real.peaks)
    assert highest(rehearsed)[CACHE] == 3 * 64 * 2 * 128 * SHAPE.n_layer * 4


@pytest.mark.parametrize("changes", [{}, {"batch_size": 400}])
def test_many_rows_take_what_fewer_tell(changes, monkeypatch):
    """More than are rehearsed: against a rehearsal of all of them."""
    place = stage(shape=dataclasses.replace(SHAPE, vocab_size=8000))
    many = config(**{"method": "full", "batch_size": 200, "micro_batch_size": 200, **changes})
    told = rehearse_training(place, many)
    reading = rehearse_reading(place, torch.float32, batch=200, length=64)
    monkeypatch.setattr(rehearsal, "LINEAR", 1 << 30)
    assert told == rehearse_training(place, many)
    assert reading == rehearse_reading(place, torch.float32, batch=200, length=64)


def test_a_gpu_keeps_a_seed_of_attentions_dropout():
    noisy = dataclasses.replace(SHAPE, attn_pdrop=0.1)
    still = dataclasses.replace(SHAPE, attn_pdrop=0.0)
    settings = config(method="full", **BFLOAT16)

    def total(shape, gpu):
        return on_device(highest(rehearse_training(Stage(shape, gpu), settings)))

    assert total(noisy, True) == total(still, True) < total(noisy, False)


@pytest.mark.parametrize("gpu", [False, True])
def test_what_stands_for_a_gpu_takes_the_ways_of_its_kernels(gpu):
    with empty_tensors(gpu):
        q = torch.empty(1, 64, 2, 64, dtype=torch.bfloat16, requires_grad=True)
        way = str(attention(q, q, q).grad_fn)
    assert ("kogpt_attention" in way) is gpu


class WideBlock(Block):
    """Keeps one thing more of what it reads."""

    def forward(self, x, rotate, cache, starts):
        return super().forward(x.exp().log(), rotate, cache, starts)


class WideKoGPT(KoGPT):
    block_class = WideBlock


def test_another_architecture_is_rehearsed_as_it_is():
    settings = config(method="full")
    ours, other = (
        highest(rehearse_training(stage(model_class=model), settings))[ACTIVATIONS]
        for model in (KoGPT, WideKoGPT)
    )
    assert other - ours == SHAPE.n_layer * 2 * 64 * 128 * 4  # what exp gives and log reads


def test_a_rehearsal_leaves_the_generator_as_it_was():
    before = torch.get_rng_state()
    rehearse_training(stage(), config(method="full"))
    assert torch.equal(torch.get_rng_state(), before)


LARGE = dataclasses.replace(SHAPE, vocab_size=8000, n_positions=512, n_embd=768, n_layer=4)
MEASURE = """
import dataclasses, json, sys
import torch
from tests.training.test_rehearsal import LARGE, config, stage
from kogpt.training.memory import MemoryTracker
from kogpt.training.pages import use_huge_pages
from kogpt.training.rehearsal import take_step

use_huge_pages()
torch.set_num_threads(1)

def memory(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

settings = config(**json.loads(sys.argv[1]))
small = dataclasses.replace(LARGE, n_embd=64, n_layer=2, vocab_size=100)
take_step(stage(shape=small), MemoryTracker(), settings)  # what is loaded and made once
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forgets the peak
before = memory("VmRSS")
take_step(stage(shape=LARGE), MemoryTracker(), settings)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells of the peak")
@pytest.mark.parametrize("checkpointing", some([True, False], 1))
def test_a_process_takes_what_was_planned_within_a_tenth(checkpointing):
    changes = {"method": "full", "batch_size": 2, "sequence_length": 384}
    changes["activation_checkpointing"] = checkpointing
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", MEASURE, json.dumps(changes)]
    done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, check=True)
    measured = int(done.stdout)
    planned = on_device(highest(rehearse_training(stage(shape=LARGE), config(**changes))))
    assert measured > 600e6
    assert planned == pytest.approx(measured, rel=0.1)


def test_what_is_said_of_a_tensor_takes_the_place_of_what_was_said_before():
    with MemoryTracker() as tracker:
        tracker.enter("all")
        x = torch.zeros(256)
        tracker.label([x], WEIGHTS)
        tracker.label([x], CACHE)
    assert {part: size for part, size in tracker.parts.items() if size} == {CACHE: 1024}
    assert on_device(tracker.peaks["all"]) == 1024
    del x
    assert on_device(tracker.parts) == 0


def test_what_is_cast_while_all_is_made_on_the_host_is_the_hosts():
    with MemoryTracker() as tracker:
        weight = torch.zeros(256)
        tracker.label([weight], WEIGHTS)
        tracker.made_as = HOST
        wide = weight.to(torch.float64)
    assert (tracker.parts[HOST], tracker.parts[CASTS]) == (wide.nbytes, 0)
