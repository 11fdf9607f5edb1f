"""tokenizer.model: the library's ids, spaces kept, special text only on request."""

import json
import shutil
from pathlib import Path

import pytest

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import ByteLevelTokenizer, SentencePieceTokenizer, load_tokenizer
from tests.tokenizer.conftest import (
    NANO,
    SENTENCEPIECE_KINDS,
    SENTENCES,
    SYLLABLES,
    Backend,
    sentencepiece_backend,
    write_byte_level,
    write_sentencepiece,
)


def test_text_gets_the_ids_of_the_library(any_backend: Backend) -> None:
    for text in SENTENCES:
        assert any_backend.tokenizer.encode(text) == any_backend.encode(text)


def test_the_box_names_its_special_pieces(nano: Backend) -> None:
    tokenizer = nano.tokenizer
    ids = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id]
    assert ids == [tokenizer.piece_to_id(name) for name in ("[BOS]", "[EOS]", "[UNK]", "[PAD]")]
    assert tokenizer.special_ids == {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    assert tokenizer.vocab_size == 8000


def test_every_syllable_comes_back_alone_and_in_text(nano: Backend) -> None:
    tokenizer = nano.tokenizer
    for syllable in SYLLABLES:
        assert tokenizer.decode(tokenizer.encode(syllable)) == syllable
        assert tokenizer.decode(tokenizer.encode(f"이 {syllable}다")) == f"이 {syllable}다"


def test_the_text_of_a_continuation_keeps_its_leading_space(nano: Backend) -> None:
    ids = nano.tokenizer.encode("정말 재미있다")
    parts = [nano.tokenizer.decode(ids[:1]), nano.tokenizer.decode(ids[1:])]
    assert "".join(parts) == "정말 재미있다"


def test_special_text_becomes_the_special_id_only_on_request(nano: Backend) -> None:
    tokenizer = nano.tokenizer
    text = "[BOS]끝[EOS][EOS"
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids) and tokenizer.decode(ids) == text
    asked = tokenizer.encode(text, allow_special=True)
    plain = tokenizer.encode("끝"), tokenizer.encode("[EOS")
    assert asked == [tokenizer.bos_id, *plain[0], tokenizer.eos_id, *plain[1]]


def test_of_special_pieces_that_begin_alike_the_longest_is_meant(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, control_symbols=["<a>", "<a>b", "<"])
    tokenizer = SentencePieceTokenizer(tmp_path)
    for piece in ("<a>b", "<a>", "<"):
        ids = tokenizer.encode(piece, allow_special=True)
        assert ids == [tokenizer.piece_to_id(piece)]


def test_where_text_is_not_kept_the_space_symbol_is_the_library_s(tmp_path: Path) -> None:
    backend = sentencepiece_backend(
        write_sentencepiece(tmp_path, **SENTENCEPIECE_KINDS["defaults"])
    )
    assert backend.tokenizer.piece_to_id("<0xE2>") is not None
    assert backend.tokenizer.encode("밑▁줄") == backend.encode("밑▁줄")


def test_the_space_symbol_is_not_mistaken_for_a_space(nano: Backend) -> None:
    tokenizer = nano.tokenizer
    assert tokenizer.decode(tokenizer.encode("▁ 밑줄▁")) == "▁ 밑줄▁"
    assert nano.decode(nano.encode("▁")) == " "  # what the library alone makes of it
    assert nano.decode(tokenizer.encode("▁")) == "▁"


def test_a_vocabulary_without_bytes_leaves_the_space_symbol_to_the_library(
    tmp_path: Path,
) -> None:
    directory = write_sentencepiece(tmp_path, **SENTENCEPIECE_KINDS["no-bytes"])
    backend = sentencepiece_backend(directory)
    assert backend.tokenizer.encode("▁가 뷁") == backend.encode("▁가 뷁")
    assert backend.tokenizer.decode(backend.encode("뷁")) == backend.decode(backend.encode("뷁"))


def test_roles_come_from_the_model_where_no_companion_names_them(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, bos_id=5, eos_id=6, unk_id=0, pad_id=-1)
    tokenizer = SentencePieceTokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (5, 6, 0)
    assert tokenizer.pad_id is None
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "</s>"}))
    assert SentencePieceTokenizer(tmp_path).pad_id == 6


def test_a_piece_that_does_not_exist_has_no_id(nano: Backend) -> None:
    assert nano.tokenizer.piece_to_id("없는 조각") is None
    assert nano.tokenizer.piece_to_id("[UNK]") == nano.tokenizer.unk_id


def test_the_folder_decides_the_kind(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), ByteLevelTokenizer)
    shutil.copy(NANO / "tokenizer.model", tmp_path)
    with pytest.raises(InputRefusedError, match="tokenizer.json: was not made from .*er.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)
    with pytest.raises(InputRefusedError, match="nowhere: no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefusedError, match="neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path / "empty")


def test_transformers_reads_the_box_the_same_way(nano: Backend, tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf", reason="transformers needs protobuf to read it")
    from transformers import AutoTokenizer

    for file in nano.tokenizer.files:
        shutil.copy(file, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for text in SENTENCES:
        ids = nano.tokenizer.encode(text, bos=nano.tokenizer.add_bos)
        assert reference.encode(text) == ids
        assert reference.decode(ids, skip_special_tokens=True) == text
    assert reference.eos_token_id == nano.tokenizer.eos_id
    assert reference.pad_token_id == nano.tokenizer.pad_id
