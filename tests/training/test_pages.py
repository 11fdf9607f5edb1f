"""Huge pages: whether a process that trains has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
NAME = "THP_MEM_ALLOC_ENABLE"
# Starts a run that finds no data, and tells how much of 64 MiB of numbers then is in huge pages.
RUN = """
import sys
from pathlib import Path
import torch
from kogpt.errors import InputRefusedError
from kogpt.training import FinetuningConfig, TrainingConfig, finetune, train

out = Path(sys.argv[2])
try:
    if sys.argv[1] == "train":
        train(TrainingConfig(out=out, data=(Path("missing.txt"),)))
    elif sys.argv[1] == "finetune":
        finetune(FinetuningConfig(out=out, data=("missing.jsonl",), model="nano", method="lora"))
except InputRefusedError:
    pass
numbers = torch.ones(16 << 20)
with open("/proc/self/smaps_rollup") as lines:
    print(next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")) >> 10)
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(),
    reason="Linux gives huge pages to those who ask",
)
@pytest.mark.parametrize(
    ("start", "environment", "used"),
    [
        ("nothing", {}, False),
        ("train", {}, True),
        ("finetune", {}, True),
        ("finetune", {NAME: "0"}, False),
    ],
)
def test_training_uses_huge_pages_unless_the_user_refuses(start, environment, used, tmp_path):
    inherited = {name: value for name, value in os.environ.items() if name != NAME}
    done = subprocess.run(
        [sys.executable, "-c", RUN, start, str(tmp_path / "out")],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    assert (int(done.stdout) > 32) is used  # MiB
