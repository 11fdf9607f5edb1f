"""Conversion takes little memory, however large the checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kogpt.checkpoint import ConversionOptions, convert, write_checkpoint
from kogpt.checkpoint.names import expand
from kogpt.checkpoint.writer import MEMORY
from kogpt.model import KoGPTConfig
from kogpt.model.variants import GPT2Config, GPTNeoXConfig
from tests.checkpoint.tiny import write_config
from tests.scale import scaled

WATCHED = """
import json, sys, threading, time, torch
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
base, peak, stop = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, anonymous())
from kogpt.checkpoint import ConversionOptions, convert, load_model
watcher = threading.Thread(target=watch); watcher.start()
convert(sys.argv[1], sys.argv[2], ConversionOptions(**json.loads(sys.argv[3]), quiet=True))
stop.set(); watcher.join()
print((peak - base) // 1024)
"""

KINDS = (
    {"dtype": "float32"},
    {"quantize": "int4", "zero_points": True},
    {"quantize": "int8", "dtype": "float32"},
    {"dtype": "float16"},
    {"dtype": "bfloat16"},
)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("options", KINDS[: scaled(2, 5)], ids=str)
def test_converting_takes_at_most_half_a_gigabyte(tmp_path, options):
    """A checkpoint of 0.25 GB, at full scale 2 GB, beside masks that are never read.

    Measured is anonymous memory above `import torch`, sampled; the bound is what a dry run says.
    """
    width = scaled(2048, 4096)
    config = KoGPTConfig(vocab_size=16384, n_embd=width, n_layer=scaled(1, 5), n_positions=64)
    write_config(tmp_path / "src", config)
    torch.save(hollow_state(config), tmp_path / "src" / "pytorch_model.bin")
    folders, options = [tmp_path / "src", tmp_path / "dst"], json.dumps(options)
    command = [sys.executable, "-c", WATCHED, *folders, options]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert int(result.stdout) < MEMORY >> 20, result.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", [GPT2Config, GPTNeoXConfig])
def test_matrices_that_are_put_together_are_counted(tmp_path, kind):
    """One block of a neighbour, q, k and v in one matrix of 0.2 GB."""
    config = kind(vocab_size=512, n_embd=4096, n_layer=1, n_positions=64, n_head=32)
    tensors = {n: torch.zeros(1).expand(shape) for n, shape in expand(config).items()}
    write_checkpoint(tmp_path / "src", config, tensors)
    dry = convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(dry_run=True))
    assert dry.memory_needed >= MEMORY + 4 * 3 * 4096**2
    command = [sys.executable, "-c", WATCHED, tmp_path / "src", tmp_path / "dst", "{}"]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert int(result.stdout) <= dry.memory_needed >> 20, result.stdout


def hollow_state(config: KoGPTConfig) -> dict:
    mask = torch.ones(1, 1, 4096, 4096, dtype=torch.bool)
    state = {name: torch.zeros(shape).half() for name, shape in expand(config).items()}
    masks = {f"transformer.h.{i}.attn.bias": mask for i in range(config.n_layer)}
    return {**state, **masks}
