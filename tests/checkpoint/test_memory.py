"""Conversion takes little memory, however large the checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kogpt.checkpoint.writer import MEMORY
from kogpt.model import KoGPTConfig
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


def hollow_state(config: KoGPTConfig) -> dict:
    from kogpt.checkpoint.names import expand

    mask = torch.ones(1, 1, 4096, 4096, dtype=torch.bool)
    state = {name: torch.zeros(shape).half() for name, shape in expand(config).items()}
    masks = {f"transformer.h.{i}.attn.bias": mask for i in range(config.n_layer)}
    return {**state, **masks}
