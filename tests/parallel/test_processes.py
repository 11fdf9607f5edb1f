"""How processes take leave of each other."""

import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.parallel.launch import run


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
