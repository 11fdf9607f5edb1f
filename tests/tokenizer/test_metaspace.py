"""KoGPT2's layout, BPE of characters with "▁" for spaces, against the libraries that write it."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import ByteLevelTokenizer, MetaspaceTokenizer, load_tokenizer
from tests.tokenizer.conftest import EMOTICONS, SENTENCES

SPECIAL = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>"]
NAMES = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
UNCOVERED = "빓 안녕 𝕂 뛟"


def write(folder: Path, prepend: str = "always", normalize: bool = True) -> Path:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    if normalize:
        backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_tokens([AddedToken(text, normalized=False) for text in EMOTICONS])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "special_tokens_map.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture(scope="module", params=["always", "first", "never"])
def folder(request, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("metaspace"), request.param)


@pytest.fixture(scope="module")
def ours(folder) -> MetaspaceTokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def library(folder) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_folder_is_known_for_what_it_is(ours):
    assert type(ours) is MetaspaceTokenizer
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (1, 1, 3, 5)


@pytest.mark.parametrize("text", [*SENTENCES, UNCOVERED, "", " ", "  둘", "끝 ", "▁ 밑줄"])
def test_ids_and_text_are_those_of_the_library(ours, library, text):
    ids = ours.encode(text, normalize="none")
    assert ids == library.encode(text, add_special_tokens=False).ids
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 399), max_size=12))
def test_any_ids_read_as_the_library_has_them(ours, library, ids):
    ids = [id for id in ids if id < ours.vocab_size]
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


def test_a_first_piece_loses_every_space_as_in_the_library(tmp_path):
    library = tokenizers.Tokenizer.from_file(str(write(tmp_path) / "tokenizer.json"))
    library.add_tokens([AddedToken("▁둘▁", normalized=False)])
    library.save(str(tmp_path / "tokenizer.json"))
    id = library.token_to_id("▁둘▁")
    assert load_tokenizer(tmp_path).decode([id, id]) == library.decode([id, id]) == "둘 둘 "


def test_korean_comes_back_piece_by_piece(ours):
    for text in (*SENTENCES[:2], SENTENCES[-1]):  # which NFKC leaves as they are
        ids = ours.encode(text)
        stream = ours.stream_decoder()
        pieces = [stream.push(id) for id in ids]
        assert "".join(pieces) + stream.flush() == text
        assert all(pieces[1:])  # characters are whole: each token shows at once


def test_transformers_reads_the_same(folder, ours):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for text in SENTENCES:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(
            text, normalize="none"
        )


def test_typed_special_pieces_are_text_unless_told_otherwise(ours):
    assert 1 not in ours.encode("문장</s>끝")
    assert 1 in ours.encode("문장</s>끝", allow_special=True)


def test_the_wrong_kind_is_refused_by_name(tmp_path):
    write(tmp_path)
    with pytest.raises(InputRefusedError, match="its decoder is not ByteLevel"):
        ByteLevelTokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputRefusedError, match="only ByteLevel and Metaspace are read"):
        load_tokenizer(tmp_path)
