"""Notes that cannot be written are lost, not the work; nor do they end among results."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kogpt.notes import say

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
UNWRITABLE = [pytest.param("full", marks=needs_full), "left"]
BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}


class Full(io.RawIOBase):
    """A file on a disk that has no more room."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_note_that_cannot_be_written_is_lost(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(Full(), write_through=True))
    say("kogpt: no kernels")


def test_a_note_does_not_go_to_the_output_where_there_is_no_place_for_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    say("kogpt: no kernels")
    assert capsys.readouterr().out == ""


def test_a_note_is_a_line_and_a_question_is_none(capsys):
    say("kogpt: no kernels")
    say("prompt> ", end="")
    assert capsys.readouterr().err == "kogpt: no kernels\nprompt> "


@contextmanager
def unwritable(kind: str) -> Iterator[int]:
    """A stream of a full disk, or of a pipe whose reader has left."""
    if kind == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    yield writer
    os.close(writer)


def kogpt(
    *args: str, stderr: int, stdout: int = subprocess.PIPE, input: str = "", **environment: str
) -> tuple[int, str]:
    """Exit code and output of the program."""
    done = subprocess.run(
        [sys.executable, "-m", "kogpt", *args],
        stdout=stdout,
        stderr=stderr,
        input=input.encode(),
        env=BUFFERED | environment,
    )
    return done.returncode, (done.stdout or b"").decode()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("kind", UNWRITABLE)
def test_a_text_is_written_where_notes_cannot_be(kind, unbuffered, tmp_path):
    """There is one: no kernels can be compiled."""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "CXX": "no-such-compiler"}
    asked = ("generate", "이 영화는", "--temperature", "0", "--max-new-tokens", "3")
    with unwritable(kind) as stderr:
        code, text = kogpt(*asked, stderr=stderr, PYTHONUNBUFFERED=unbuffered, **environment)
    assert code == 0 and text.startswith("이 영화는 ")


@pytest.mark.parametrize("kind", UNWRITABLE)
def test_prompts_are_answered_where_questions_cannot_be_written(kind):
    with unwritable(kind) as stderr:
        code, text = kogpt(stderr=stderr, input="이 영화는\n0\n8\n")
    assert code == 0 and text.startswith("이 영화는 ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("kind", UNWRITABLE)
def test_a_refusal_that_cannot_be_written_keeps_its_exit_code(kind, unbuffered):
    with unwritable(kind) as stderr:
        asked = ("inspect", "/no/such/folder")
        assert kogpt(*asked, stderr=stderr, PYTHONUNBUFFERED=unbuffered) == (3, "")


@pytest.mark.parametrize(("kind", "code"), [pytest.param("full", 4, marks=needs_full), ("left", 1)])
def test_an_output_that_cannot_be_written_has_its_exit_code_where_nothing_tells_of_it(kind, code):
    with unwritable(kind) as stream:
        assert kogpt("tokenize", "가나", stdout=stream, stderr=stream) == (code, "")


def test_results_that_cannot_be_written_do_not_hide_what_else_went_wrong():
    """Those before it, where the interpreter is yet to write them."""
    code = """
import sys
from kogpt.cli import exit_code
from kogpt.errors import InputRefusedError

def act():
    print("a result")
    raise InputRefusedError("it is damaged")

sys.exit(exit_code(act))
"""
    with unwritable("left") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, env=BUFFERED
        )
    assert (done.returncode, done.stderr) == (3, b"kogpt: it is damaged\n")


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1:surrogateescape"},
    ],
    ids=["POSIX", "latin-1"],
)
def test_hangul_is_question_marks_where_an_output_has_none(environment):
    asked = ("tokenize", "-")
    code, text = kogpt(*asked, input="이 영화는\n배우들", stderr=subprocess.STDOUT, **environment)
    assert code == 0 and text.isascii()
    *pieces, told = sorted(text.splitlines(), key=lambda line: line.startswith("kogpt: "))
    assert "??" in "".join(pieces) and "? stands for a character that it lacks" in told


def test_a_folder_that_was_removed_is_no_place_to_run_in(tmp_path):
    """There oneMKL ends the process, with the exit code of wrong usage."""
    code = (
        f"import os, sys; os.rmdir({str(tmp_path)!r}); from kogpt.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "inspect"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=BUFFERED | {"PYTHONPATH": root}
    )
    line = "kogpt: the current folder was removed; cd to one that is there\n"
    assert (done.returncode, done.stderr) == (1, line)
