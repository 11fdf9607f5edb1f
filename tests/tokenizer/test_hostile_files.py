"""Damaged and hostile tokenizer files: refused by name, and no mutation takes the process down.

`KOGPT_TEST_SCALE=full` runs 2,000 mutations of each kind.
"""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import SentencePieceTokenizer, files, load_tokenizer
from kogpt.tokenizer.modelproto import MAX_FIELDS, check_model
from tests.scale import scaled
from tests.tokenizer.conftest import NANO, Backend, write_byte_level, write_sentencepiece


def field(number: int, value: bytes | int) -> bytes:
    """A protocol buffer field with a small number."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    size = len(value)
    return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + value


def piece(text: str, score: float, kind: int = 1) -> bytes:
    number = bytes([2 << 3 | 5]) + struct.pack("<f", score)
    return field(1, field(1, text.encode()) + number + field(3, kind))


@pytest.fixture
def nano_folder(tmp_path: Path) -> Path:
    for name in ("tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, tmp_path)
    return tmp_path


def refusal(folder: Path, name: str) -> str:
    """The one line with which the tokenizer in a folder is refused, naming the file."""
    with pytest.raises(InputRefusedError) as refused:
        load_tokenizer(folder)
    message = str(refused.value)
    assert str(folder / name) in message
    assert message.isprintable() and len(message) < 500
    return message


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused(nano_folder: Path, score: float) -> None:
    path = nano_folder / "tokenizer.model"
    path.write_bytes(piece("가", score) + path.read_bytes())
    assert "NaN or infinite" in refusal(nano_folder, "tokenizer.model")


def test_a_denormalizer_is_refused(tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text("AC00\tB098\n")  # 가 becomes 나
    write_sentencepiece(tmp_path, denormalization_rule_tsv=str(rules))
    assert "denormalizer" in refusal(tmp_path, "tokenizer.model")


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_what_is_no_model_is_refused(nano_folder: Path, content: bytes) -> None:
    (nano_folder / "tokenizer.model").write_bytes(content)
    refusal(nano_folder, "tokenizer.model")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "[" * 100_000, '{"version": "1.0"}', '{"model": {"type": "\n\t\x07"}}'],
)
def test_what_is_no_tokenizer_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    refusal(tmp_path, "tokenizer.json")


@pytest.mark.parametrize("model", [None, {}, {"type": "Unigram"}, {"type": []}])
def test_a_model_that_is_not_bpe_is_refused(tmp_path: Path, model: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert "not BPE" in refusal(tmp_path, "tokenizer.json")


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_marks_inside_words_are_refused(tmp_path: Path, key: str) -> None:
    # The library cuts merges behind such a prefix by bytes, and then aborts the process.
    write_byte_level(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"][key] = "\x00"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert f"{key} is set" in refusal(tmp_path, "tokenizer.json")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": "\xed\xa0\x80"}')
    refusal(tmp_path, "tokenizer.json")


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", ["{", "[]", "3", "[" * 100_000, "\x00", '{"a": NaN', '{"eos_token": "\\ud800"}']
)
def test_a_malformed_companion_is_refused(nano_folder: Path, name: str, content: str) -> None:
    (nano_folder / name).write_text(content)
    refusal(nano_folder, name)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "special_tokens_map.json"])
def test_a_file_beyond_the_limit_is_refused_unread(nano_folder: Path, name: str) -> None:
    if name == "tokenizer.json":
        (nano_folder / "tokenizer.model").unlink()
    with (nano_folder / name).open("wb") as sparse:
        sparse.truncate(files.MAX_JSON_BYTES + 1)  # the largest of the limits
    assert "larger than" in refusal(nano_folder, name)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
def test_a_folder_in_the_place_of_a_file_is_refused(nano_folder: Path, name: str) -> None:
    if name == "tokenizer.json":
        (nano_folder / "tokenizer.model").unlink()
    (nano_folder / name).unlink(missing_ok=True)
    (nano_folder / name).mkdir()
    assert "not a regular one" in refusal(nano_folder, name)


def test_a_model_of_absurdly_many_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="fields or more"):
        check_model(field(6, 0) * MAX_FIELDS)


def test_the_rules_on_spaces_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    plain = check_model((NANO / "tokenizer.model").read_bytes())
    assert plain.keeps_text
    write_sentencepiece(tmp_path)  # the library's defaults
    rules = SentencePieceTokenizer(tmp_path).spaces
    assert rules.add_dummy_prefix and rules.remove_extra_whitespaces and rules.rewrites_characters
    # A message may come in parts; the last value of a field counts.
    both = field(3, field(3, 0)) + field(3, field(4, 0)) + field(3, field(3, 1))
    rules = check_model(both)
    assert rules.add_dummy_prefix and not rules.remove_extra_whitespaces


@pytest.mark.parametrize("kind", ["byte_level", "nano"])
def test_no_mutation_takes_the_process_down(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    backend: Backend = request.getfixturevalue(kind)
    original = backend.tokenizer.files[0]
    command = [sys.executable, "-m", "tests.tokenizer.mutate", original, tmp_path]
    child = subprocess.run(
        [*map(str, command), str(scaled(150, 2_000))], capture_output=True, text=True
    )
    assert child.returncode == 0, (child.returncode, child.stdout[-200:], child.stderr[-2000:])
    report = json.loads(child.stdout.splitlines()[-1])
    assert report["refused"] > 0 and report["accepted"] > 0, report
    assert report["slowest_s"] < 2 and report["peak_mb"] < 500, report


@pytest.mark.parametrize("count", [0, (1 << 20) + 1])
def test_no_ids_and_absurdly_many_are_refused(tmp_path: Path, count: int) -> None:
    write_byte_level(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    if count:
        vocab[max(vocab, key=vocab.get)] = count - 1  # any number stands there as an id
    else:
        content["added_tokens"] = content["model"]["merges"] = []
        vocab.clear()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert f"{count} ids, not 1 to 1048576" in refusal(tmp_path, "tokenizer.json")
