"""Conversion takes little memory, however large the checkpoint."""

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
import sys, threading, time, torch
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
base, peak, stop = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, anonymous())
from kogpt.checkpoint import ConversionOptions, convert, load_model
watcher = threading.Thread(target=watch); watcher.start()
convert(sys.argv[1], sys.argv[2], ConversionOptions(dtype=sys.argv[3], quiet=True))
stop.set(); watcher.join()
print((peak - base) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"][: scaled(1, 3)])
def test_converting_takes_at_most_half_a_gigabyte(tmp_path, dtype):
    """A checkpoint of 0.25 GB, at full scale 2 GB, beside masks that are never read.

    Measured is anonymous memory above `import torch`, sampled; the bound is what a dry run says.
    """
    width = scaled(2048, 4096)
    config = KoGPTConfig(vocab_size=16384, n_embd=width, n_layer=scaled(1, 5), n_positions=64)
    write_config(tmp_path / "src", config)
    torch.save(hollow_state(config), tmp_path / "src" / "pytorch_model.bin")
    command = [sys.executable, "-c", WATCHED, tmp_path / "src", tmp_path / "dst", dtype]
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
