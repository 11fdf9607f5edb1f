"""Training a vocabulary: lossless, deterministic, and read by the loader as it was written."""

import lzma
import runpy
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from tests.tokenizer.conftest import SENTENCES, SYLLABLES

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_tokenizer.py"


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp(request.param)
    train_sentencepiece(SENTENCES, directory, 406, model_type=request.param)
    return load_tokenizer(directory)


def test_special_pieces_are_resolved_from_what_was_written(trained: Tokenizer) -> None:
    ids = [trained.bos_id, trained.eos_id, trained.unk_id, trained.pad_id]
    assert ids == list(map(trained.piece_to_id, ["[BOS]", "[EOS]", "[UNK]", "[PAD]"]))
    assert trained.vocab_size == 406 and trained.add_bos
    assert len(trained.files) == 3


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("가나 \n\t▁ ", max_size=20))
def test_any_composed_text_comes_back(trained: Tokenizer, text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    assert trained.decode(trained.encode(composed)) == composed


def test_every_syllable_comes_back(trained: Tokenizer) -> None:
    for syllable in SYLLABLES:
        assert trained.decode(trained.encode(syllable)) == syllable


def test_a_character_without_a_piece_is_spelled_in_its_bytes(trained: Tokenizer) -> None:
    pieces = [trained.id_to_piece(id) for id in trained.encode("꿹")]
    assert pieces == ["<0xEA>", "<0xBF>", "<0xB9>"]


def test_digits_are_apart_and_runs_of_spaces_are_not(tmp_path: Path) -> None:
    train_sentencepiece(["2010 10점    빈칸"] * 20, tmp_path, 272)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer.encode("2010")) == 4
    assert len(tokenizer.encode("    ")) == 1


def test_the_same_texts_give_the_same_files(tmp_path: Path) -> None:
    train_sentencepiece(SENTENCES, tmp_path / "a", 406)
    decomposed = (unicodedata.normalize("NFD", text) for text in SENTENCES)
    train_sentencepiece(decomposed, tmp_path / "b", 406)
    for name in ("tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_transformers_reads_what_was_written_as_we_do(tmp_path: Path) -> None:
    """Bos in front and no eos behind, no space that is not in the text, and none lost."""
    pytest.importorskip("google.protobuf", reason="transformers needs protobuf to read it")
    from transformers import AutoTokenizer

    train_sentencepiece(SENTENCES, tmp_path, 406)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*SENTENCES, "가", " 빈칸 , 'm 앞 . 뒤 ?"]:
        ids = theirs.encode(text)
        assert ids == ours.encode(text, bos=True, normalize="none")
        assert theirs.decode(ids, skip_special_tokens=True) == text


def test_no_piece_reaches_across_a_line_break(tmp_path: Path) -> None:
    train_sentencepiece(["영화\n영화\r\n영화"] * 10, tmp_path, 263)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("영화\n영화\r\n")) == "영화\n영화\r\n"
    assert tokenizer.encode("영화\n영화").count(tokenizer.encode("영화")[0]) == 2


def test_a_long_line_counts_like_any_other(tmp_path: Path) -> None:
    train_sentencepiece([*SENTENCES, 2000 * "꿹"], tmp_path, 406)  # 6,000 bytes
    assert load_tokenizer(tmp_path).piece_to_id("꿹") is not None


def test_a_vocabulary_that_the_texts_cannot_fill_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no vocabulary of 5000 pieces: .*too high") as refused:
        train_sentencepiece(SENTENCES, tmp_path, 5000)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"vocab_size is 270, these texts take at least \d{3}$"):
        train_sentencepiece(SENTENCES, tmp_path, 270)
    with pytest.raises(ValueError, match="no vocabulary of 300 pieces"):
        train_sentencepiece([], tmp_path, 300)
    assert list(tmp_path.iterdir()) == []


def test_half_characters_in_a_training_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="U\\+DCEA"):
        train_sentencepiece(["한\udcea국"], tmp_path, 300)


def test_the_script_leaves_out_every_hundredth_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["뷁" if row % 100 == 0 else SENTENCES[row % 6] for row in range(500)]
    rows = [f"{row}\t5\t{text}" for row, text in enumerate(texts)]
    with lzma.open(tmp_path / "reviews.tsv.xz", "wt", encoding="utf-8") as file:
        file.write("\n".join(["id\trating\tdocument", *rows]) + "\n")
    command = [SCRIPT, tmp_path / "reviews.tsv.xz", tmp_path / "out", "--vocab-size", "400"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 0

    assert capsys.readouterr().out.startswith("400 pieces, ")
    assert load_tokenizer(tmp_path / "out").piece_to_id("뷁") is None


def test_folders_are_made_for_a_vocabulary(tmp_path: Path) -> None:
    train_sentencepiece(SENTENCES, tmp_path / "of" / "one", 406)
    assert load_tokenizer(tmp_path / "of" / "one").vocab_size == 406
