"""Tables for a terminal: columns stand where it shows them, whichever script fills them."""

from pathlib import Path

import pytest

from kogpt.errors import InputRefusedError
from kogpt.textfiles import (
    abridged,
    aligned,
    display_width,
    read_limited,
    read_lines,
    read_table,
)


def test_words_are_flush_left_and_numbers_right():
    assert aligned([("layer", "error"), ("0", "12.5")], "<>") == ["layer  error", "0       12.5"]


def test_a_last_column_of_words_leaves_no_blanks_behind_it():
    assert aligned([("1", "a long one"), ("10", "b")], "><") == [" 1  a long one", "10  b"]


def test_hangul_takes_two_columns_of_a_terminal():
    assert aligned([("layer", "1"), ("한국", "20")], "<>") == ["layer   1", "한국   20"]


def test_halfwidth_and_fullwidth_forms_take_one_and_two_columns():
    assert [display_width(text) for text in ("a", "ｱ", "Ａ", "한")] == [1, 1, 2, 2]


def test_a_byte_order_mark_is_one_where_a_file_begins_and_text_further_on(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeff하나\n\ufeff둘\n", encoding="utf-8")
    assert list(read_lines(path)) == ["하나", "\ufeff둘"]


def test_a_file_is_read_as_far_as_it_may_be_large(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    monkeypatch.setattr(Path, "stat", None)  # a size told before may be another one by now
    assert read_limited(path, 4) == b"1234"
    with pytest.raises(InputRefusedError, match="a: larger than 3 bytes"):
        read_limited(path, 3)
    with pytest.raises(InputRefusedError, match="b: No such file"):
        read_limited(tmp_path / "b", 3)


def test_a_column_that_is_there_twice_is_refused_where_it_is_asked_for(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\ttext\tlabel\na\tb\t1\n")
    assert list(read_table(path, ["label"])) == [["1"]]
    with pytest.raises(InputRefusedError, match="several columns 'text'"):
        list(read_table(path, ["label", "text"]))


def test_what_is_longer_than_it_may_be_loses_its_end():
    assert abridged("가" * 100) == "가" * 100
    assert abridged("가" * 101) == "가" * 100 + "…"
    assert abridged("abc", 2) == "ab…"
