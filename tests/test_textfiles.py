"""Tables for a terminal: columns stand where it shows them, whichever script fills them."""

from kogpt.textfiles import aligned


def test_words_are_flush_left_and_numbers_right():
    assert aligned([("layer", "error"), ("0", "12.5")], "<>") == ["layer  error", "0       12.5"]


def test_a_last_column_of_words_leaves_no_blanks_behind_it():
    assert aligned([("1", "a long one"), ("10", "b")], "><") == [" 1  a long one", "10  b"]


def test_hangul_takes_two_columns_of_a_terminal():
    assert aligned([("layer", "1"), ("한국", "20")], "<>") == ["layer   1", "한국   20"]
