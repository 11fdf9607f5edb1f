"""Indexes that would lead out of their folder: refused before any file they name is opened."""

import codecs
import json
import os
import sys
import unicodedata

import pytest
import safetensors.torch

from kogpt.checkpoint import open_checkpoint
from kogpt.errors import InputRefusedError
from tests.checkpoint.tiny import tiny_state, write_config

GOOD = "model-00001-of-00001.safetensors"
E_ACUTE = unicodedata.normalize("NFC", "é")

NAMES = [
    "../secret.safetensors",
    "../../etc/passwd.safetensors",
    "sub/../../secret.safetensors",
    "sub/model.safetensors",
    "./model-00001-of-00001.safetensors",
    "..",
    ".",
    "",
    "/etc/passwd",
    "/etc/secret.safetensors",
    "//host/share/a.safetensors",
    "\\\\host\\share\\a.safetensors",
    "\\\\?\\C:\\a.safetensors",
    "..\\secret.safetensors",
    "C:\\secret.safetensors",
    "C:secret.safetensors",
    "C:/secret.safetensors",
    "file:///etc/passwd.safetensors",
    "a.safetensors:stream.safetensors",
    "a\0.safetensors",
    "a.safetensors\0.bin",
    "a\n.safetensors",
    "a\u202e.safetensors",
    "\ud800.safetensors",
    "NUL.safetensors",
    "con.safetensors",
    "COM1.safetensors",
    "lpt9.x.safetensors",
    "AUX.safetensors",
    " a.safetensors",
    "a?.safetensors",
    "a*.safetensors",
    "~|a.safetensors",
    "pytorch_model.bin",
    "config.json",
    ".safetensors",
    "secret",
    "x" * 300 + ".safetensors",
    "가" * 100 + ".safetensors",
    "missing.safetensors",
]
OTHER_VALUES = [None, 3, True, ["a.safetensors"], {"file": "a.safetensors"}]
TWINS = [
    ("a.safetensors", "A.safetensors"),
    (f"{E_ACUTE}.safetensors", unicodedata.normalize("NFD", E_ACUTE) + ".safetensors"),
    ("한.safetensors", unicodedata.normalize("NFD", "한") + ".safetensors"),
    ("straße.safetensors", "STRASSE.safetensors"),
]


@pytest.fixture
def folder(tmp_path):
    """A good sharded checkpoint, with a good file outside that an index might lead to."""
    folder = tmp_path / "model"
    write_config(folder)
    for path in (folder / GOOD, tmp_path / "secret.safetensors"):
        safetensors.torch.save_file(tiny_state(), path)
    return folder


def write_index(folder, weight_map, **others):
    text = json.dumps({"weight_map": weight_map, **others})
    (folder / "model.safetensors.index.json").write_text(text)


OPENED: list[str] = []
RECORDING = [False]


def _record(event, args):
    if RECORDING[0] and event == "open":
        OPENED.append(os.fspath(args[0]) if isinstance(args[0], str | os.PathLike) else "")


codecs.lookup("utf-8-sig")  # whose module is a file that the first index would open
sys.addaudithook(_record)  # cannot be taken away again, so one for the whole module


def refuse_without_opening(folder):
    """Opens the checkpoint, which must be refused, and checks what was opened meanwhile."""
    OPENED.clear()
    RECORDING[0] = True
    try:
        with pytest.raises(InputRefusedError) as caught:
            open_checkpoint(folder)
    finally:
        RECORDING[0] = False
    allowed = {"model.safetensors.index.json", "config.json"}
    assert {os.path.basename(str(path)) for path in OPENED} <= allowed
    message = str(caught.value)
    assert "\n" not in message and "\0" not in message and "index.json" in message
    return message


@pytest.mark.parametrize("others", [{}, {"metadata": None}, {"metadata": {}}])
def test_the_good_index_is_read(folder, others):
    write_index(folder, dict.fromkeys(tiny_state(), GOOD), **others)
    with open_checkpoint(folder) as reader:
        assert len(reader.names) == len(tiny_state())


@pytest.mark.parametrize("value", NAMES[:-1] + OTHER_VALUES, ids=lambda value: repr(value)[:40])
def test_a_name_that_is_no_file_of_the_folder_is_refused_unopened(folder, value):
    write_index(folder, {**dict.fromkeys(tiny_state(), GOOD), "lm_head.bias": value})
    assert "lm_head.bias" in refuse_without_opening(folder)


@pytest.mark.parametrize("first, second", TWINS, ids=repr)
def test_names_that_differ_only_in_form_are_refused_unopened(folder, first, second):
    for name in (first, second):
        os.link(folder / GOOD, folder / name)
    write_index(folder, {**dict.fromkeys(tiny_state(), first), "lm_head.bias": second})
    assert "differ only in form" in refuse_without_opening(folder)


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "/dev/zero", "loop"])
def test_a_link_out_of_the_folder_is_refused_unopened(folder, target):
    (folder / "loop.safetensors").symlink_to("loop.safetensors" if target == "loop" else target)
    write_index(folder, dict.fromkeys(tiny_state(), "loop.safetensors"))
    OPENED.clear()
    RECORDING[0] = True
    try:
        with pytest.raises(InputRefusedError, match="loop.safetensors"):
            open_checkpoint(folder)
    finally:
        RECORDING[0] = False
    assert not any("loop" in path or "secret" in path for path in OPENED)


def test_a_link_within_the_folder_is_followed(folder):
    (folder / "link.safetensors").symlink_to(GOOD)
    write_index(folder, dict.fromkeys(tiny_state(), "link.safetensors"))
    open_checkpoint(folder).__exit__()


def test_the_links_of_the_hubs_own_cache_are_followed(tmp_path):
    repository = tmp_path / "models--kakaobrain--kogpt"
    snapshot = repository / "snapshots" / "abc"
    write_config(snapshot)
    (repository / "blobs").mkdir()
    safetensors.torch.save_file(tiny_state(), repository / "blobs" / "00ff")
    (snapshot / GOOD).symlink_to("../../blobs/00ff")
    write_index(snapshot, dict.fromkeys(tiny_state(), GOOD))
    open_checkpoint(snapshot).__exit__()


@pytest.mark.parametrize("place", ["elsewhere/blobs", "models--kakaobrain--kogpt/others"])
def test_links_to_what_only_resembles_the_hubs_cache_are_refused(tmp_path, folder, place):
    (tmp_path / place).mkdir(parents=True)
    safetensors.torch.save_file(tiny_state(), tmp_path / place / "00ff")
    (folder / "link.safetensors").symlink_to(tmp_path / place / "00ff")
    write_index(folder, dict.fromkeys(tiny_state(), "link.safetensors"))
    with pytest.raises(InputRefusedError, match="a link that leaves the folder"):
        open_checkpoint(folder)


def test_links_to_the_hubs_cache_are_followed_from_anywhere(tmp_path, folder):
    blobs = tmp_path / "models--kakaobrain--kogpt" / "blobs"
    blobs.mkdir(parents=True)
    safetensors.torch.save_file(tiny_state(), blobs / "00ff")
    (folder / "link.safetensors").symlink_to(blobs / "00ff")
    write_index(folder, dict.fromkeys(tiny_state(), "link.safetensors"))
    open_checkpoint(folder).__exit__()


@pytest.mark.parametrize(
    "text",
    [
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        '{"weight_map": {}, "weight_map": {"a": "x.safetensors"}}',
        "[" * 100_000,
        '{"weight_map": ' * 50_000,
        "\ufeff{}",
        "null",
        '{"weight_map": {"a": "x.safetensors"}, "metadata": []}',
        '{"weight_map": {"a": "x.safetensors"}, "metadata": {"total_size": "1"}}',
        '{"weight_map": {"a": "x.safetensors"}, "metadata": {"total_size": true}}',
    ],
    ids=lambda text: text[:30],
)
def test_a_malformed_index_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    refuse_without_opening(folder)


def test_an_oversized_index_is_refused_unread(folder):
    with (folder / "model.safetensors.index.json").open("wb") as file:
        file.truncate(1 << 34)  # takes no disk
    assert "larger than" in refuse_without_opening(folder)


def test_there_are_as_many_hostile_indexes_as_asked_for():
    assert len(NAMES) + len(OTHER_VALUES) + len(TWINS) + 4 >= 40
