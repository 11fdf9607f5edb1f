"""Whether a text follows bos is for the model's files to say."""

import json
import shutil

import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

from kogpt.tokenizer import load_tokenizer
from tests.tokenizer.conftest import write_byte_level


@pytest.mark.parametrize(
    ("says", "expected"), [(True, True), (False, False), (None, False), ("false", False)]
)
def test_the_files_say_whether_texts_follow_bos(says, expected, tmp_path):
    write_byte_level(tmp_path)
    config = {} if says is None else {"add_bos_token": says}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.add_bos is expected
    assert tokenizer.encode("한국어")[0] != tokenizer.bos_id  # `encode` leaves it to the caller


def test_texts_cannot_follow_a_bos_that_the_files_do_not_name(tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "[EOS]"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id is None and tokenizer.add_bos is False


def test_the_model_in_the_box_was_trained_on_texts_that_follow_bos():
    assert load_tokenizer().add_bos


@pytest.mark.parametrize(
    ("template", "says", "expected"),
    [
        ("[BOS] $A", None, True),
        ("[BOS] $A [EOS]", None, True),
        ("[BOS] $A", False, False),
        ("$A [BOS]", None, False),
        ("$A", True, True),
    ],
)
def test_a_template_says_it_where_nothing_else_does(template, says, expected, tmp_path):
    write_byte_level(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(path)
    special = [(piece, library.token_to_id(piece)) for piece in ("[BOS]", "[EOS]")]
    library.post_processor = TemplateProcessing(template, special_tokens=special)
    library.save(path)
    config = {} if says is None else {"add_bos_token": says}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.add_bos is expected
    assert tokenizer.encode("한국어") == library.encode("한국어", add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": {"bos_token_id": 4, "eos_token_id": 5}}, (4, 5, None)),
        ({"config.json": {"eos_token_id": 5, "pad_token_id": 6}}, (None, 5, 6)),
        (
            {
                "config.json": {"bos_token_id": 4, "eos_token_id": 5},
                "generation_config.json": {"eos_token_id": [7, 8]},
            },
            (4, 7, None),
        ),
        ({"config.json": {"bos_token_id": -1, "eos_token_id": 50256}}, (None, None, None)),
        ({"config.json": {"bos_token_id": True, "eos_token_id": []}}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_the_models_files_name_the_ends_that_the_tokenizers_do_not(files, expected, tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == expected
    assert not tokenizer.add_bos


def test_what_the_tokenizers_files_name_goes_before_the_models(tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "[EOS]"}))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 4, "eos_token_id": 5}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id is None
    assert tokenizer.eos_id == tokenizer.piece_to_id("[EOS]") != 5


def test_ids_of_the_models_files_are_those_of_the_vocabulary(tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    size = load_tokenizer(tmp_path).vocab_size
    for bos, eos, expected in ((0, size, (0, None)), (size - 1, -1, (size - 1, None))):
        ids = {"bos_token_id": bos, "eos_token_id": eos}
        (tmp_path / "config.json").write_text(json.dumps(ids))
        tokenizer = load_tokenizer(tmp_path)
        assert (tokenizer.bos_id, tokenizer.eos_id) == expected


def test_a_pad_that_the_tokenizers_files_name_goes_before_the_models(tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5, "pad_token_id": 6}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_id == 5
    assert tokenizer.pad_id == tokenizer.piece_to_id("[PAD]") != 6


@pytest.mark.parametrize(
    ("files", "named", "expected"),
    [
        ({"config.json": [5, 7]}, True, {1, 5, 7}),
        ({"config.json": [5, 7]}, False, {5, 7}),
        ({"config.json": [7, 7], "generation_config.json": [8, 9]}, True, {1, 8, 9}),
        ({"config.json": [5, 7], "generation_config.json": 9}, True, {1}),
        ({"config.json": [5, 7], "generation_config.json": 9}, False, {9}),
        ({"config.json": [5, 10**6, -1]}, True, {1}),
        ({"config.json": 5}, True, {1}),
        ({}, False, set()),
    ],
)
def test_of_several_ends_that_the_models_files_list_all_end_a_text(
    files, named, expected, tmp_path
):
    write_byte_level(tmp_path)
    if not named:
        (tmp_path / "special_tokens_map.json").unlink()
    for name, ends in files.items():
        (tmp_path / name).write_text(json.dumps({"eos_token_id": ends}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.end_ids == expected
    assert tokenizer.eos_id == (1 if named else next(iter(sorted(expected)), None))


def test_a_file_that_lists_ends_goes_with_the_tokenizer(tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    (tmp_path / "copy").mkdir()
    for path in load_tokenizer(tmp_path).files:
        shutil.copy(path, tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").end_ids == {1, 7}


def test_a_file_of_the_model_that_names_ends_goes_with_the_tokenizer(tmp_path):
    write_byte_level(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    for name, eos in (("config.json", 5), ("generation_config.json", 7)):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": eos}))
    (tmp_path / "copy").mkdir()
    for path in load_tokenizer(tmp_path).files:
        shutil.copy(path, tmp_path / "copy")
    assert not (tmp_path / "copy" / "config.json").exists()  # every model has its own
    assert load_tokenizer(tmp_path / "copy").eos_id == 7


@pytest.mark.parametrize("first", [True, False])
def test_where_the_files_disagree_texts_follow_bos(first, tmp_path):
    write_byte_level(tmp_path)
    special = json.loads((tmp_path / "special_tokens_map.json").read_text())
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({**special, "add_bos_token": first})
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": not first}))
    assert load_tokenizer(tmp_path).add_bos
