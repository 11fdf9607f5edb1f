"""Notes that cannot be written are lost, not the work; nor do they end among results."""

import errno
import io
import os
import sys

from kogpt.notes import say


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
