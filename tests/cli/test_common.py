"""What commands share: memory that is short, numbers that are none."""

import argparse
import math
import re
import subprocess
import sys

import pytest
import torch

from kogpt.cli import exit_code
from kogpt.commands.common import (
    memory_errors,
    naming_options,
    options_of,
    parse_size,
    refuse_below,
    refuse_empty,
    run_settings,
)
from kogpt.errors import NotEnoughResourcesError, ParameterError, UsageError
from kogpt.generation import SamplingParams
from kogpt.training import TrainingConfig


def test_memory_that_a_cpu_has_not_is_told_as_such():
    with pytest.raises(NotEnoughResourcesError, match="not enough memory"), memory_errors():
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="something else"), memory_errors():
        raise RuntimeError("something else")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, [3, 0]])
def test_what_is_below_or_no_number_is_refused(value):
    with pytest.raises(UsageError, match="argument --of-it: must be at least 1"):
        refuse_below(argparse.Namespace(of_it=value), of_it=1)


@pytest.mark.parametrize("value", [1, 2.5, None, [1, 7], []])
def test_what_makes_sense_is_taken(value):
    refuse_below(argparse.Namespace(of_it=value), of_it=1)


def test_sizes_are_of_tens_or_of_twos():
    sizes = {"12": 12, "500MB": 500 * 10**6, "1.5 gb": 1_500_000_000, "2KiB": 2048, "1GiB": 2**30}
    assert {text: parse_size(text, "--it") for text in sizes} == sizes
    for text in ("", "b", "1 tb", "-1GB", "1e3", "GB"):
        with pytest.raises(UsageError, match="argument --it: .* is no size"):
            parse_size(text, "--it")


def test_settings_that_say_nothing_alone_are_refused():
    given = {"device": "cpu", "short_part": 0.5}
    with pytest.raises(UsageError, match="--short-part: only with --short-length"):
        run_settings(argparse.Namespace(**given), TrainingConfig)
    settings = run_settings(argparse.Namespace(**given, short_length=8), TrainingConfig)
    assert settings == {**given, "short_length": 8}
    with pytest.raises(UsageError, match="--epochs: not with --steps"):
        run_settings(argparse.Namespace(device="cpu", epochs=1.0, steps=3), TrainingConfig)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"out": ""}, "--out"),
        ({"out": "", "command": "finetune"}, "--output"),
        ({"model": ""}, "--model"),
        ({"adapter": ["here", ""]}, "--adapter"),
        ({"source": "here", "destination": ""}, "DST"),
        ({"draft_model": ""}, "--draft-model"),
    ],
)
def test_a_place_without_a_name_is_refused(given, name):
    """It would be the folder one is in."""
    with pytest.raises(UsageError, match=f"argument {name}: is empty"):
        refuse_empty(argparse.Namespace(**given))


def test_a_refusal_names_the_option_that_a_parameter_comes_from():
    options = options_of(argparse.Namespace(temperature=1.0, min_new_tokens=0))
    with pytest.raises(UsageError, match="^argument --samples: is 0, it"), naming_options(options):
        SamplingParams(n=0)
    with pytest.raises(UsageError, match="at most --beams, 2$"), naming_options(options):
        SamplingParams(n=3, num_beams=2)
    with pytest.raises(UsageError, match="--temperature: is -1"), naming_options(options):
        SamplingParams(temperature=-1)
    with pytest.raises(UsageError, match="^top_k is -1"), naming_options(options):  # is no option
        SamplingParams(top_k=-1)
    with pytest.raises(UsageError, match="'min_new_tokens' and min_new_tokens.csv"):
        with naming_options(options):  # what is quoted or a file is no parameter
            raise ParameterError("data is 'min_new_tokens' and min_new_tokens.csv")


def test_a_fault_of_a_class_is_no_wrong_usage():
    """It is told with its place, where a parameter's wrong value is one line."""

    def fault() -> None:
        math.sqrt(-1)

    with pytest.raises(ValueError, match="math domain error"):
        exit_code(fault)
    assert exit_code(lambda: SamplingParams(temperature=-1) and None) == 2


UNMAPPED = "libtorch_cpu.so: failed to map segment from shared object"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (UNMAPPED, None),
        ("Importing the numpy C-extensions failed.\n\nThere are many reasons.", UNMAPPED),
        (f"Importing failed.\n\nOriginal error was: {UNMAPPED}", UNMAPPED),
    ],
)
def test_a_library_that_finds_no_address_space_is_a_shortage(message, cause, capsys):
    def load() -> None:
        raise ImportError(message) from cause and ImportError(cause)

    assert exit_code(load) == 4
    assert capsys.readouterr().err == f"kogpt: not enough memory: {UNMAPPED}\n"


@pytest.mark.parametrize(
    "message",
    ["libgomp.so.1: cannot allocate memory in static TLS block", "cannot import name 'it'"],
)
def test_a_library_that_cannot_be_loaded_otherwise_is_a_fault(message):
    """The first is for the order in which libraries are loaded, however much memory there is."""

    def load() -> None:
        raise ImportError(message)

    with pytest.raises(ImportError, match=message):
        exit_code(load)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
def test_a_process_that_has_no_address_space_for_torch_says_so_in_one_line():
    line = f'ulimit -v 300000; "{sys.executable}" -m kogpt generate 이'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch("kogpt: not enough memory: .+\n", done.stderr)


def test_ctrl_c_ends_what_imports(tmp_path):
    """Whatever an import does with exceptions: C++ code aborts, or loses them."""
    code = """
import importlib, os, signal, sys, time
from kogpt import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # which runs in the background have not

def loading(name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except BaseException:
        print("lost")

importlib.import_module = loading
sys.exit(cli.main(["inspect"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "kogpt: interrupted\n")
