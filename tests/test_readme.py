"""The two README pages: equal in structure, and every command on them runs."""

import dataclasses
import json
import lzma
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from kogpt.cli import main
from tests.checkpoint import tiny
from tests.server import Forked
from tests.tokenizer.conftest import write_byte_level

ROOT = Path(__file__).resolve().parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of every fenced code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def shell_lines(page: str) -> list[str]:
    return [line for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]


def heading_levels(page: str) -> list[int]:
    outside = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", outside, flags=re.MULTILINE)]


def test_both_pages_have_the_same_headings_and_the_same_code():
    assert heading_levels(ENGLISH) == heading_levels(KOREAN)
    assert blocks(ENGLISH) == blocks(KOREAN)


def test_links_on_both_pages_lead_somewhere():
    for page in (ENGLISH, KOREAN):
        for target in re.findall(r"\]\(([^)#]+)\)", page):
            assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_gate_runs_the_two_commands_of_the_page():
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    asked = re.findall(r"^readme_command '(.+?)'", gate, flags=re.MULTILINE)
    found = [next(line for line in ENGLISH.splitlines() if words in line) for words in asked]
    assert found == [line for line in shell_lines(ENGLISH) if line.startswith("python3 -m venv")]


@pytest.fixture(scope="module")
def playground(tmp_path_factory) -> Path:
    """A folder in which the commands of the page find what they name, all of it tiny."""
    folder = tmp_path_factory.mktemp("readme")
    release = folder / "kogpt-6b-release"
    sizes = {"vocab_size": 512, "n_positions": 512, "n_embd": 128, "n_inner": 256}
    config = dataclasses.replace(tiny.CONFIG, **sizes)
    tiny.write_config(release, config)
    torch.save(tiny.released_state(config), release / "pytorch_model.bin")
    write_byte_level(release)
    for name in ("kogpt", "tests"):
        (folder / name).symlink_to(ROOT / name)  # the page is read in a checkout
    (folder / "data").mkdir()
    for name, film in (("test", "영화"), ("train", "드라마")):
        lines = [f"{i}\t{film}가 {i}번 {('별로', '좋았')[i % 2]}다\t{i % 2}" for i in range(60)]
        table = "\n".join(["id\tdocument\tlabel", *lines])
        (folder / "data" / f"ratings_{name}.txt").write_text(table, encoding="utf-8")
    rows = [{"prompt": f"{i}번 영화는", "completion": " 좋았다"} for i in range(40)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "examples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = "".join(f"{i}\t5\t이 영화는 정말 재미있다 {i}\n" for i in range(120))
    with lzma.open(folder / "reviews.tsv.xz", "wt", encoding="utf-8") as file:
        file.write("id\trating\tdocument\n" + rows)
    return folder


def runnable(page: str) -> list[str]:
    """The shell lines that the gate does not run already."""
    return [line for line in shell_lines(page) if not line.startswith("python3 -m venv")]


def run_shell(line: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of a line that is more than one program."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    program = tools / "kogpt"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kogpt "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, text=True, capture_output=True, input=""
    )
    return done.returncode, done.stdout, done.stderr


def run_there(folder: Path, arguments: Sequence[str]) -> int:
    os.chdir(folder)
    return main(arguments)


def run(line: str, folder: Path) -> tuple[int, str, str]:
    """The same of any line."""
    if re.search(r"[|<>&;$]", line):
        return run_shell(line, folder)
    program, *arguments = shlex.split(line)
    assert program == "kogpt", line
    return Forked({}, run_there, folder, arguments).finish(time.monotonic() + 120)


@pytest.mark.timeout(900)  # some thirty programs, one after the other
def test_every_command_of_the_page_runs(playground):
    for line in runnable(ENGLISH):
        code, _, errors = run(line, playground)
        assert code == 0, f"{line}\n{errors}"


def test_the_python_on_the_page_runs(playground):
    code = next(text for kind, text in blocks(ENGLISH) if kind == "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search("[가-힣]", done.stdout)
