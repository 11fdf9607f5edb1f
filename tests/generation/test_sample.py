"""Stop strings against their definition, and the text of a sample."""

import random
import tracemalloc

from kogpt.generation.sample import StopStrings
from tests.scale import scaled


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What is let through, and the stop string found, reading character by character."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held_back(text: str, stops: list[str]) -> str:
    """The longest end of a text that a stop string may begin with."""
    ends = [text[cut:] for cut in range(len(text))]
    return next((end for end in ends if any(s.startswith(end) and s != end for s in stops)), "")


def test_stop_strings_are_found_and_held_back_however_the_text_is_cut():
    random_numbers = random.Random(1)
    choose = random_numbers.choices
    for _ in range(scaled(3000, 300_000)):
        stops = ["".join(choose("가나b", k=random_numbers.randint(1, 5))) for _ in range(3)]
        text = "".join(choose("가나b", k=20))
        finder, shown, read = StopStrings(stops), "", ""
        while len(read) < len(text) and finder.found is None:
            piece = text[len(read) :][: random_numbers.randint(1, 4)]
            shown += finder.push(piece)
            read += piece
            if finder.found is None:
                assert shown == read.removesuffix(held_back(read, stops))
        shown += finder.flush()
        assert (shown, finder.found) == expected(text, stops)


def test_without_stop_strings_nothing_is_held_back():
    finder = StopStrings([])
    assert finder.push("아무 글") == "아무 글" and finder.flush() == ""


def test_a_long_stop_string_takes_no_memory_of_its_square():
    tracemalloc.start()
    stops = StopStrings(["가" * 20_000])
    assert stops.push("나" + "가" * 500) == "나" and stops.flush() == "가" * 500
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1e6  # a table of its beginnings would take 400 MB
