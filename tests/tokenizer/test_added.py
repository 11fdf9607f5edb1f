"""Tokens that stand only beside a vocabulary have the ids that transformers gives them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import load_tokenizer
from tests.tokenizer.conftest import NANO, SENTENCES, write_byte_level, write_sentencepiece

MAP, CONFIG, IDS = "special_tokens_map.json", "tokenizer_config.json", "added_tokens.json"
TEXTS = [*SENTENCES, "<|user|>영화<|end|>", "가 <|user|> 나  <|end|> 다<a>", "<|end|><|end|>x<a>y"]

# What companions say, with `size` for the first id behind the vocabulary.
KINDS: dict[str, dict[str, Any]] = {
    "stated": {
        CONFIG: {"eos_token": "<|end|>", "added_tokens_decoder": {"0": "<|end|>", "1": "<|user|>"}},
        MAP: {"eos_token": "<|end|>"},
    },
    "in another order": {
        CONFIG: {"added_tokens_decoder": {"1": "<|user|>", "0": "<|end|>", "2": "<a>"}},
    },
    "added_tokens.json": {IDS: {"<|user|>": 0, "<|end|>": 1}, MAP: {"eos_token": "<|end|>"}},
    "named": {MAP: {"eos_token": "<|end|>", "mask_token": "<a>", "cls_token": "<|user|>"}},
    "lists": {
        CONFIG: {"additional_special_tokens": ["<|user|>"], "eos_token": "<|end|>"},
    },
    "lists in the map": {MAP: {"additional_special_tokens": ["<|user|>", "<|end|>"]}},
    "stated and named": {
        IDS: {"<|user|>": 0},
        MAP: {"eos_token": "<|end|>", "additional_special_tokens": ["<a>"]},
    },
}
LOST = ("lists in the map", "stated and named")
FLAGS = {"special": False, "lstrip": False, "rstrip": False, "normalized": False}


def write_companions(folder: Path, contents: dict[str, dict[str, Any]], size: int) -> None:
    """Writes companions over those that are there, ids counted from `size`."""
    for name, content in contents.items():
        if name == IDS:
            content = {text: size + id for text, id in content.items()}
        elif "added_tokens_decoder" in content:
            stated = content["added_tokens_decoder"]
            entries = {
                str(size + int(id)): {**FLAGS, "content": text, "special": text == "<|end|>"}
                for id, text in stated.items()
            }
            content = {**content, "added_tokens_decoder": entries}
        path = folder / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **content}))


def byte_level(folder: Path) -> Path:
    write_byte_level(folder)
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / CONFIG).write_text(json.dumps(config | json.loads((folder / MAP).read_text())))
    return folder


def nano(folder: Path) -> Path:
    for name in ("tokenizer.model", MAP, CONFIG):
        shutil.copy(NANO / name, folder)
    return folder


@pytest.fixture(params=[byte_level, nano])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Small tokenizers of both kinds, with `model_type` for transformers."""
    if request.param is nano:
        pytest.importorskip("google.protobuf", reason="transformers needs protobuf to read it")
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    return request.param(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_beside_a_vocabulary_are_those_of_transformers(folder: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    if kind in LOST and (folder / "tokenizer.model").exists():
        pytest.skip("transformers 5.24 loses this list where it converts a tokenizer.model")
    write_companions(folder, KINDS[kind], load_tokenizer(folder).vocab_size)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, allow_special=True, normalize="none") == ids
        for skip in (True, False):
            written = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special=skip) == written


def test_a_special_token_beside_a_vocabulary_is_text_unless_told_otherwise(folder: Path) -> None:
    size = load_tokenizer(folder).vocab_size
    write_companions(folder, KINDS["stated"], size)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_id == size and tokenizer.eos_id in tokenizer.special_ids
    assert tokenizer.token_bytes(size) == b"" and tokenizer.id_to_piece(size) == "<|end|>"
    assert tokenizer.piece_to_id("<|user|>") == size + 1
    ids = tokenizer.encode("<|user|>끝<|end|>")
    assert ids[0] == size + 1 and size not in ids
    assert tokenizer.decode(ids) == "<|user|>끝<|end|>"


def test_spaces_around_a_token_are_its_own_where_the_file_says_so(folder: Path) -> None:
    from transformers import AutoTokenizer

    size = load_tokenizer(folder).vocab_size
    entry = {**FLAGS, "content": "<b>", "lstrip": True, "rstrip": True}
    write_companions(folder, {CONFIG: {}}, size)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "added_tokens_decoder": {size: entry}}))
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("가  <b> 나", "<b>", " <b>", "😤 <b> 😤<b>"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_a_token_in_the_vocabulary_keeps_how_it_is_matched_when_it_is_named(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = byte_level(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][1]["lstrip"] = True
    path.write_text(json.dumps(content))
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = load_tokenizer(tmp_path).encode("끝  [EOS]", allow_special=True)
    assert ids == theirs.encode("끝  [EOS]", add_special_tokens=False)


@pytest.mark.parametrize("id", [0, 3, 1000])
def test_an_id_that_the_vocabulary_contradicts_is_refused(folder: Path, id: int) -> None:
    size = load_tokenizer(folder).vocab_size
    entries = {id if id < 1000 else size + 1: {"content": "<|user|>"}}
    (folder / CONFIG).write_text(json.dumps({"added_tokens_decoder": entries}))
    with pytest.raises(InputRefusedError, match=r"tokenizer_config.json: .*'<\|user\|>' has id"):
        load_tokenizer(folder)


def test_ids_in_added_tokens_json_are_an_order_as_in_transformers(folder: Path) -> None:
    size, piece = load_tokenizer(folder).vocab_size, load_tokenizer(folder).id_to_piece(5)
    (folder / IDS).write_text(json.dumps({"<|b|>": size + 9, piece: size + 1, "<|a|>": size + 7}))
    tokenizer = load_tokenizer(folder)
    assert [tokenizer.piece_to_id(text) for text in ("<|a|>", "<|b|>", piece)] == [
        size,
        size + 1,
        5,
    ]


def test_beside_a_decoder_the_map_names_no_new_tokens_as_in_transformers(folder: Path) -> None:
    size = load_tokenizer(folder).vocab_size
    entries = {"added_tokens_decoder": {size: {"content": "<|a|>"}}, "mask_token": "<|b|>"}
    (folder / CONFIG).write_text(json.dumps(entries))
    (folder / MAP).write_text(json.dumps({"pad_token": "<|c|>"}))
    tokenizer = load_tokenizer(folder)
    found = [tokenizer.piece_to_id(text) for text in ("<|a|>", "<|b|>", "<|c|>")]
    assert found == [size, size + 1, None]


@pytest.mark.parametrize(
    "entries",
    [[], {"x": {"content": "a"}}, {"9" * 5000: {"content": "a"}}, {"9": "a"}, {"9": {}},
     {"9": {"content": "\ud800"}}, {"9": {"content": "a", "lstrip": 1}}, {"-1": {"content": "a"}}],
)  # fmt: skip
def test_malformed_added_tokens_are_refused(folder: Path, entries: Any) -> None:
    (folder / CONFIG).write_text(json.dumps({"added_tokens_decoder": entries}))
    with pytest.raises(InputRefusedError, match="tokenizer_config.json: ") as refused:
        load_tokenizer(folder)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500


def test_tokens_beyond_the_rows_of_the_model_are_left_out_and_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = load_tokenizer(folder).vocab_size
    (folder / "config.json").write_text(json.dumps({"model_type": "gptj", "vocab_size": size + 1}))
    write_companions(folder, KINDS["added_tokens.json"], size)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == size + 1 and tokenizer.piece_to_id("<|user|>") == size
    assert tokenizer.eos_id is None
    left_out, none = capsys.readouterr().err.splitlines()
    assert f"'<|end|>': its id would be beyond the {size + 1} rows" in left_out
    assert none.endswith("no file states its id: there is none")


def test_an_end_that_is_only_named_is_the_models_or_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = load_tokenizer(folder).vocab_size
    write_companions(folder, {MAP: {"eos_token": "<|end|>"}}, size)
    assert load_tokenizer(folder).eos_id == size
    assert "the eos_token named there" in capsys.readouterr().err
    for id in (size, 7):
        (folder / "config.json").write_text(json.dumps({"eos_token_id": id}))
        tokenizer = load_tokenizer(folder)
        assert tokenizer.eos_id == id and tokenizer.bos_id is not None
        assert tokenizer.encode("<|end|>", allow_special=True) == [size]
    assert capsys.readouterr().err == ""


def test_a_token_beside_a_model_that_rewrites_spaces_is_told_unless_special(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sentencepiece(tmp_path)
    size = load_tokenizer(tmp_path).vocab_size
    (tmp_path / IDS).write_text(json.dumps({"<|end|>": size}))
    (tmp_path / MAP).write_text(json.dumps({"eos_token": "<|end|>"}))
    assert load_tokenizer(tmp_path).eos_id == size
    assert capsys.readouterr().err == ""
    (tmp_path / MAP).unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert "the added token '<|end|>' is not looked for in texts" in capsys.readouterr().err
    assert tokenizer.decode([size]) == "<|end|>"
    assert size not in tokenizer.encode("영화<|end|>", allow_special=True)


def test_copied_files_keep_the_tokens(folder: Path, tmp_path: Path) -> None:
    write_companions(folder, KINDS["added_tokens.json"], load_tokenizer(folder).vocab_size)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in load_tokenizer(folder).files:
        shutil.copy(path, copy)
    text = TEXTS[-2]
    assert load_tokenizer(copy).encode(text) == load_tokenizer(folder).encode(text)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The box as transformers saves it with tokens of one's own, beside what it was read from."""
    pytest.importorskip("google.protobuf", reason="transformers needs protobuf to read it")
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    tokenizer = AutoTokenizer.from_pretrained(nano(tmp_path))
    tokenizer.add_tokens(["<|user|>", AddedToken("<a>", lstrip=True, rstrip=True)])
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    for name in (MAP, CONFIG):
        (tmp_path / name).unlink()
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_tokenizer_json_beside_its_model_adds_what_it_holds_more(saved: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(saved), AutoTokenizer.from_pretrained(saved)
    assert ours.vocab_size == len(theirs) == 8003
    assert ours.eos_id == theirs.eos_token_id == 8002
    assert ours.add_bos and saved / "tokenizer.json" in ours.files
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text, bos=True, allow_special=True, normalize="none") == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_json_without_a_template_puts_no_bos_before_texts(saved: Path) -> None:
    path = saved / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    assert not load_tokenizer(saved).add_bos


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "BPE", "vocab": {}}},
        {"model": {"type": "BPE", "vocab": [["[BOS]", 0.0], [], 3]}},
        {"model": {"type": "BPE", "vocab": {"[BOS]": 1}}},
        {"model": None},
        {"more": "piece"},
    ],
)
def test_a_tokenizer_json_that_was_not_made_from_the_model_is_refused(saved, change) -> None:
    path = saved / "tokenizer.json"
    content = json.loads(path.read_text())
    if "more" in change:
        content["model"]["vocab"]["more"] = 8003
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(InputRefusedError, match="was not made from .*tokenizer.model beside it"):
        load_tokenizer(saved)


def test_a_unigram_model_has_its_pieces_in_a_list(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, model_type="unigram", add_dummy_prefix=False)
    tokenizer = load_tokenizer(tmp_path)
    vocab = [[tokenizer.id_to_piece(id), 0.0] for id in range(tokenizer.vocab_size)]
    added = [{"id": len(vocab), "content": "<|end|>", "special": True}]
    content = {"model": {"type": "Unigram", "vocab": vocab}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).piece_to_id("<|end|>") == len(vocab)
