"""How processes take leave of each other."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import distributed

from kogpt.errors import KoGPTError
from kogpt.parallel import Parallel
from kogpt.parallel.processes import is_loss
from tests.parallel.launch import run

ROOT = Path(__file__).parents[2]


def say_goodbye(parallel):
    """Leaves while a thread of gloo's name computes; returns whether it had come to rest."""
    begun, rested = threading.Event(), threading.Event()

    def compute():
        me = Path(f"/proc/self/task/{threading.get_native_id()}")
        (me / "comm").write_text("pt_gloo_runloop")
        begun.set()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            torch.ones(300, 300) @ torch.ones(300, 300)
        rested.set()

    threading.Thread(target=compute).start()
    begun.wait()
    parallel.__exit__(None, None, None)
    left = rested.is_set()
    distributed.init_process_group("gloo")  # for `run`, which leaves as well
    return left


@pytest.mark.skipif(sys.platform != "linux", reason="threads are looked at through Linux's /proc")
def test_no_process_ends_while_a_thread_of_gloo_still_works():
    assert run(2, say_goodbye) == [True, True]


def test_a_rank_alone_is_none(monkeypatch):
    """Schedulers leave it in the environment of a single process."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parallel = Parallel.launched()
    assert parallel.alone and parallel.first and parallel.leads and parallel.data_rank == 0


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK is '5', it must be a whole number 0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', it must be a whole number 1 to"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'"),
    ],
)
def test_variables_that_no_launcher_sets_so_are_refused(told, message, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Parallel.launched()


def test_the_processes_of_a_machine_take_a_gpu_each(monkeypatch):
    for name, value in {"RANK": 6, "LOCAL_RANK": 1, "WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Parallel.launched().device == torch.device("cuda", 1)
    assert Parallel.launched(device="cuda:3").device == torch.device("cuda", 3)
    assert Parallel.launched(device="cpu").device == torch.device("cpu")


MEETINGS = """
from kogpt.parallel import Parallel
for i in range(4):
    with Parallel.launched(device="cpu", seconds=20) as parallel:
        print(f"{parallel.add_up(i + 1)} ", end="", flush=True)
"""


def test_processes_of_torchrun_meet_as_often_as_they_like(tmp_path):
    (tmp_path / "meet.py").write_text(MEETINGS)
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", tmp_path / "meet.py")
    done = subprocess.run(
        [sys.executable, *map(str, launcher)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(2 * ["2", "4", "6", "8"])


@pytest.mark.parametrize("tensor", [0, -1])
def test_a_model_is_held_by_one_process_at_least(tensor):
    with pytest.raises(ValueError, match=f"tensor parallel {tensor} does not divide the 2 proc"):
        Parallel(0, 2, tensor_size=tensor)


def test_more_processes_than_gpus_share_them(monkeypatch):
    for name, value in {"RANK": 6, "LOCAL_RANK": 6, "WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Parallel.launched(device="cuda").device == torch.device("cuda", 2)


def test_a_pipe_that_is_closed_is_no_process_that_ended(monkeypatch):
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    closed, lost = BrokenPipeError(32, "Broken pipe"), RuntimeError("Connection closed by peer")
    assert Parallel(0, 2).__exit__(type(closed), closed, None) is None
    with pytest.raises(KoGPTError, match="process 0 of 2: another process has ended"):
        Parallel(0, 2).__exit__(type(lost), lost, None)


@pytest.mark.parametrize(
    ("message", "loss"),
    [
        ("NCCL error: remote process exited or there was a network error, ncclRemoteError", True),
        ("[1] is setting up NCCL communicator ... wait timeout after 1800000ms", True),
        ("NCCL error: invalid usage\nDuplicate GPU detected : rank 0 and rank 1 both on", False),
        ("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'", False),
    ],
)
def test_what_is_a_processes_own_fault_is_not_told_as_another_s(message, loss):
    assert is_loss(message) is loss
