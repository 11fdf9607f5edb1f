"""tokenizer.json: ids from the file, special text only on request, nothing cut or random."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import ByteLevelTokenizer
from kogpt.tokenizer.bytelevel import BYTE_OF_LETTER
from tests.tokenizer.conftest import (
    EMOTICONS,
    NAMES,
    SENTENCES,
    Backend,
    byte_level_backend,
    write_byte_level,
)


@pytest.fixture
def folder(byte_level: Backend, tmp_path: Path) -> Path:
    """A copy of the small byte-level tokenizer that a test may change."""
    for file in byte_level.tokenizer.files:
        shutil.copy(file, tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_letters_of_bytes_are_those_of_gpt2() -> None:
    assert sorted(BYTE_OF_LETTER.values()) == list(range(256))
    assert [BYTE_OF_LETTER[letter] for letter in "A!ĠĊÿŃ"] == [0x41, 0x21, 0x20, 0x0A, 0xFF, 0xAD]


def test_text_gets_the_ids_of_the_library(byte_level: Backend) -> None:
    for text in SENTENCES:
        assert byte_level.tokenizer.encode(text) == byte_level.encode(text)


def test_raw_emoticons_are_one_id_each(byte_level: Backend) -> None:
    tokenizer = byte_level.tokenizer
    for text in EMOTICONS:
        ids = tokenizer.encode(f"굿{text}")
        assert ids[-1:] == [tokenizer.piece_to_id(text)]
        assert tokenizer.token_bytes(ids[-1]) == text.encode()


def test_threads_that_want_special_ids_and_others_do_not_meet(byte_level, folder, monkeypatch):
    tokenizer = ByteLevelTokenizer(folder)
    both_want = threading.Barrier(2)

    class Slow:
        """A library that another thread has time to interrupt."""

        encode_special_tokens = True

        def encode(self, text: str, **_: object) -> SimpleNamespace:
            before = self.encode_special_tokens
            time.sleep(0.05)
            assert self.encode_special_tokens is before
            return SimpleNamespace(ids=[int(not before)])

    def encode(allow_special: bool) -> list[int]:
        both_want.wait()
        return tokenizer.encode("[EOS]", allow_special=allow_special)

    monkeypatch.setattr(tokenizer, "_backend", Slow())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(encode, [True, False])) == [[1], [0]]


def test_special_text_becomes_the_special_id_only_on_request(byte_level: Backend) -> None:
    tokenizer = byte_level.tokenizer
    text = "끝[EOS][MASK]"
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids) and tokenizer.decode(ids) == text
    asked = tokenizer.encode(text, allow_special=True)
    assert asked[-2:] == [tokenizer.eos_id, tokenizer.piece_to_id("[MASK]")]
    assert tokenizer.encode(text) == ids  # the request does not last


def test_special_text_on_request_is_that_of_transformers(byte_level: Backend) -> None:
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast.from_pretrained(byte_level.tokenizer.files[0].parent)
    for text in [*SENTENCES, "[BOS] 안녕[EOS][PAD] :)[MASK]"]:
        ids = reference.encode(text, add_special_tokens=False)
        assert byte_level.tokenizer.encode(text, allow_special=True) == ids


def test_ids_follow_the_file_and_not_a_habit(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": None}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(NAMES | {"eos_token": "[EOS]"}))

    tokenizer = ByteLevelTokenizer(tmp_path)
    last = tokenizer.vocab_size - 1
    assert (tokenizer.bos_id, tokenizer.eos_id) == (last - 1, last)
    assert (tokenizer.unk_id, tokenizer.pad_id) == (2, 3)  # named in tokenizer_config.json alone
    assert tokenizer.encode("가", bos=True, eos=True)[0] == last - 1


def test_a_role_that_no_file_names_is_none_and_cannot_be_asked_for(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"mask_token": "[MASK]"}')
    tokenizer = ByteLevelTokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)
    with pytest.raises(ValueError, match="no bos token"):
        tokenizer.encode("가", bos=True)
    with pytest.raises(ValueError, match="no eos token"):
        tokenizer.encode("가", eos=True)


def test_a_piece_that_only_a_companion_calls_special_is_special(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"eos_token": "ㅇㅅㅇ"}')
    tokenizer = ByteLevelTokenizer(folder)
    assert tokenizer.eos_id in tokenizer.special_ids
    assert tokenizer.eos_id not in tokenizer.encode("ㅇㅅㅇ")


@pytest.mark.parametrize("wanted", [True, False, None])
@pytest.mark.parametrize("in_json", [True, False])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("GPT2Tokenizer", "tokenizer_config.json"),
        ("GPT2TokenizerFast", "tokenizer_config.json"),
        ("GPTNeoXTokenizerFast", "tokenizer_config.json"),
        ("PreTrainedTokenizerFast", "tokenizer_config.json"),
        ("PreTrainedTokenizerFast", "config.json"),
    ],
)
def test_a_space_goes_in_front_of_a_text_where_it_does_in_transformers(
    folder: Path, wanted: bool | None, in_json: bool, name: str, where: str
) -> None:
    from transformers import AutoTokenizer

    splitter = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]
    edit(folder, pre_tokenizer={**splitter, "add_prefix_space": in_json})
    files = {"config.json": {"model_type": "gptj"}, "tokenizer_config.json": dict(NAMES)}
    if wanted is not None:
        files["tokenizer_config.json"]["add_prefix_space"] = wanted
    files[where]["tokenizer_class"] = name
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    ours, theirs = ByteLevelTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("영화는 정말", " 영화", "가"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_limits_padding_and_randomness_saved_along_have_no_effect(folder: Path) -> None:
    text = "재미있는 영화 " * 50
    expected = ByteLevelTokenizer(folder).encode(text)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(length=4096)
    backend.model.dropout = 0.5
    backend.save(str(folder / "tokenizer.json"))
    assert ByteLevelTokenizer(folder).encode(text) == expected


def test_added_text_that_looks_like_byte_letters_decodes_as_in_the_library(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    quirks = ["é", "Ġ", "하 세", "\xa0", "안녕!", "ìķĪ"]
    backend.add_tokens([AddedToken(text, normalized=False) for text in quirks])
    backend.save(str(folder / "tokenizer.json"))
    ours = byte_level_backend(folder)
    for text in quirks:
        ids = [ours.tokenizer.piece_to_id("ì"), ours.tokenizer.piece_to_id(text)]
        assert ours.tokenizer.decode(ids) == ours.decode(ids)


def test_an_id_that_the_vocabulary_leaves_out_is_named(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocab = {piece: id if id < 300 else id + 1000 for piece, id in model["vocab"].items()}
    edit(folder, model=model | {"vocab": vocab})
    tokenizer = ByteLevelTokenizer(folder)
    assert tokenizer.vocab_size > 1300
    with pytest.raises(ValueError, match="id 1299 has no piece"):
        tokenizer.decode([1299])


@pytest.mark.parametrize("vocab", [{}, {"가": 2**32 - 1}])
def test_an_absurd_number_of_ids_is_refused(folder: Path, vocab: dict[str, int]) -> None:
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    edit(folder, model=model, added_tokens=[])
    with pytest.raises(InputRefusedError, match="tokenizer.json: [0-9]+ ids"):
        ByteLevelTokenizer(folder)


def test_copied_files_make_the_same_tokenizer(byte_level: Backend, folder: Path) -> None:
    copy = ByteLevelTokenizer(folder)
    assert {path.name for path in copy.files} == {"tokenizer.json", "special_tokens_map.json"}
    assert [copy.encode(text) for text in SENTENCES] == list(
        map(byte_level.tokenizer.encode, SENTENCES)
    )


@pytest.mark.parametrize("decoder", [None, {"type": "Fuse"}, {"type": "ByteFallback"}])
def test_a_tokenizer_that_is_not_byte_level_is_refused(folder: Path, decoder: Any) -> None:
    edit(folder, decoder=decoder)
    with pytest.raises(InputRefusedError, match="tokenizer.json.*not ByteLevel"):
        ByteLevelTokenizer(folder)


@pytest.mark.skipif(
    "KOGPT_RELEASE_DIR" not in os.environ,
    reason="needs KOGPT_RELEASE_DIR, a folder with the released tokenizer.json",
)
def test_the_published_example_splits_as_published(release: Backend) -> None:
    # cockroach54/kogpt, misc/kochatgpt_code_lsw-kogpt.ipynb
    tokenizer = release.tokenizer
    ids = tokenizer.encode("안녕하세요. 한국어 GPT-2 입니다.😤:)l^o")
    expected = ["안녕", "하", "세요", ".", " 한국어", " GP", "T", "-", "2", " 입니다", "."]
    assert [tokenizer.decode([id]) for id in ids] == [*expected, "😤", ":)", "l^o"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
