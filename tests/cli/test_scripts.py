"""Scripts answer bad input as `kogpt` does: in a line, with its exit code."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NO_FOLDER = "absent: not a checkpoint folder"
NO_FILE = "absent: no such file"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("benchmark_convert.py absent work", 1, "absent: No such file or directory"),
        ("benchmark_evaluation.py absent --contender plain", 3, "test.txt: no such file"),
        ("benchmark_finetuning.py --model absent", 3, NO_FOLDER),
        ("benchmark_finetuning.py --json absent/a.json", 2, "no such folder: absent"),
        ("benchmark_kernels.py --dry-run --json absent/a.json", 2, "no such folder: absent"),
        ("benchmark_kernels.py --dry-run --plot a.txt", 2, "argument --plot: must end in"),
        ("benchmark_peers.py absent work", 3, NO_FOLDER),
        ("benchmark_peers.py absent work --json absent/a.json", 2, "no such folder: absent"),
        ("benchmark_tokenizer.py absent", 3, NO_FILE),
        ("evaluate_nano.py absent", 3, NO_FILE),
        ("evaluate_quantization.py absent", 3, NO_FILE),
        ("sweep.py absent work --variant x=absent.py:C", 3, "absent.py:C: no such file"),
        ("train_tokenizer.py absent work", 3, NO_FILE),
    ],
)
def test_what_is_not_there_is_told_in_a_line(command, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    assert end.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{script}: ") and message in line
