"""Text as it arrives from terminals, files and the clipboard."""

import copy
import pickle
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import has_conjoining_jamo, normalize_text
from tests.scale import scaled
from tests.tokenizer.conftest import SENTENCES, SYLLABLES, Backend, reviews

HALF_DELETED = "한\udcea\udcb8국"  # 한글, Backspace, 국 at a terminal without IUTF8


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_decomposed_hangul_is_found_and_composed() -> None:
    assert has_conjoining_jamo(nfd("한글")) and not has_conjoining_jamo("한글 ㅋㅋ ㅠㅠ é")
    assert all(map(has_conjoining_jamo, "\u1100\u11ff\ua960\ua97c\ud7b0\ud7fb"))  # old ones too
    assert normalize_text(nfd("한글")) == "한글"
    assert normalize_text(nfd("한글 é"), "auto") == "한글 é"


def test_every_syllable_is_composed_from_its_jamo() -> None:
    for syllable in SYLLABLES:
        assert has_conjoining_jamo(nfd(syllable))
        assert normalize_text(nfd(syllable), "auto") == syllable


def test_text_without_jamo_is_left_alone_by_auto() -> None:
    assert normalize_text(nfd("café"), "auto") == nfd("café")
    assert normalize_text(nfd("한글"), "none") == nfd("한글")


def test_old_hangul_that_has_no_syllable_stays_in_pieces(backend: Backend) -> None:
    old = "ᄒᆞᆫ글"
    tokenizer = backend.tokenizer
    assert tokenizer.decode(tokenizer.encode(old)) == normalize_text(old)


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ValueError, match="'nfkc'"):
        normalize_text("한글", "nfkc")


def test_decomposed_text_gives_the_ids_of_composed_text(backend: Backend) -> None:
    encode = backend.tokenizer.encode
    composed = [*SYLLABLES[:: scaled(10, 1)], *SENTENCES]
    for text in composed:
        assert encode(nfd(text)) == encode(unicodedata.normalize("NFC", text))


def test_decomposed_reviews_give_the_ids_of_composed_ones(backend: Backend) -> None:
    encode = backend.tokenizer.encode
    for review in reviews(scaled(200, 2_000)):
        composed = unicodedata.normalize("NFC", review)
        # Without any Hangul there is nothing to notice, and accents stay as they were typed.
        if has_conjoining_jamo(nfd(review)):
            assert encode(nfd(review)) == encode(composed)


def test_half_characters_are_refused_in_one_line_that_names_them(backend: Backend) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        backend.tokenizer.encode(HALF_DELETED)
    message = str(refusal.value)
    assert "U+DCEA, U+DCB8" in message and "index 1" in message
    assert "\n" not in message and message.isprintable()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda whole: pickle.loads(pickle.dumps(whole))])
def test_a_tokenizer_can_be_copied_and_sent_to_another_process(copied, any_backend) -> None:
    ours = any_backend.tokenizer
    other = copied(ours)
    for text in (*SENTENCES, "[EOS] <s>"):
        for special in (False, True):
            ids = ours.encode(text, bos=ours.bos_id is not None, allow_special=special)
            assert ids == other.encode(text, bos=ours.bos_id is not None, allow_special=special)
            assert ours.decode(ids) == other.decode(ids)


def test_many_half_characters_make_no_long_message() -> None:
    with pytest.raises(InputRefusedError, match="and 96 more") as refusal:
        normalize_text("\ud800" * 100, "none")
    assert len(str(refusal.value)) < 250


@given(st.text())
def test_any_text_comes_back_or_is_refused(backend: Backend, text: str) -> None:
    try:
        ids = backend.tokenizer.encode(text, normalize="none")
    except InputRefusedError:
        assert any("\ud800" <= char <= "\udfff" for char in text)
    else:
        assert backend.tokenizer.decode(ids) == text


def test_any_surrogate_is_refused(backend: Backend) -> None:
    generator = random.Random(0)
    for _ in range(scaled(20, 2_048)):
        half = chr(generator.randrange(0xD800, 0xE000))
        with pytest.raises(InputRefusedError, match=f"U\\+{ord(half):04X}"):
            backend.tokenizer.encode(f"좋은 {half}영화")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00널\x00",
        "\ufeff바이트 순서 표시",
        "שלום 안녕 مرحبا \u202e뒤집힌\u202c",
        "\ue000\uf8ff\U000f0000\U0010fffd 사용자 영역",
        "\ufffd\ufffe\uffff\U0010ffff",
        "\r\n\t\x0b\x0c\x85\u2028\u2029",
        "   앞  뒤   ",
        "▁밑줄▁ 아닌 ▁▁ 기호",
        "⁇ ⁇  <0xEA> <unk> </s>",
        "👨‍👩‍👧‍👦🇰🇷",
        "가" * 1000,
    ],
)
def test_odd_text_comes_back_as_it_was(backend: Backend, text: str) -> None:
    ids = backend.tokenizer.encode(text)
    assert backend.tokenizer.decode(ids) == text


@pytest.mark.parametrize("unit", ["가", "ㅋ", " ", "재미있는 영화 ", "▁", "뷁"])
def test_a_line_of_a_megabyte_comes_back(backend: Backend, unit: str) -> None:
    text = unit * (scaled(100_000, 1_000_000) // len(unit.encode()))
    assert backend.tokenizer.decode(backend.tokenizer.encode(text)) == text


def test_every_character_of_unicode_comes_back(backend: Backend) -> None:
    tokenizer = backend.tokenizer
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for code in codes[:: scaled(97, 1)]:
        text = f"가{chr(code)}나"
        assert tokenizer.decode(tokenizer.encode(text, normalize="none")) == text


@pytest.mark.parametrize("form", ["NFC", "Auto", "NONE"])
def test_the_case_of_a_form_does_not_matter(form: str) -> None:
    assert normalize_text(nfd("한글"), form) == normalize_text(nfd("한글"), form.lower())


def test_half_characters_that_are_all_named_are_no_fewer_than_there_are() -> None:
    with pytest.raises(InputRefusedError, match=r"\(lone surrogates (U\+D800, ){3}U\+D800, the"):
        normalize_text("\ud800" * 4)
