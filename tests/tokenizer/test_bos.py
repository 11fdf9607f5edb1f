"""Whether a text follows bos is for the model's files to say."""

import json

import pytest

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
