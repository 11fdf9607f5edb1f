"""The prompt loop in a terminal: Hangul edited with Backspace, Ctrl-C, Ctrl-D, wrong answers."""

import unicodedata

import pytest

import kogpt
from kogpt.generation import SamplingParams, generate
from tests.cli.terminal import Terminal

BACKSPACE, LEFT, CTRL_C, CTRL_D = b"\x7f", b"\x1b[D", b"\x03", b"\x04"


def answer(terminal: Terminal, prompt: str | bytes, max_length: str = "12") -> str:
    """Types one request, answers both settings, and returns what was written."""
    terminal.expect("prompt> ")
    terminal.type(prompt)
    terminal.type("\n")
    terminal.expect("temperature(0.8)> ")
    terminal.type("\n")
    terminal.expect("max_length(128)> ")
    terminal.type(f"{max_length}\n")
    return terminal.expect("prompt> ")


@pytest.mark.parametrize("utf8", [True, False], ids=["with IUTF8", "without IUTF8"])
def test_a_syllable_deleted_with_backspace_is_gone_whole(utf8):
    with Terminal(utf8=utf8) as terminal:
        terminal.expect("prompt> ")
        terminal.type("한글")
        terminal.type(BACKSPACE)
        terminal.type("국\n")
        terminal.expect("temperature(0.8)> ")
        terminal.type("\n")
        terminal.expect("max_length(128)> ")
        terminal.type("20\n")
        written = terminal.expect("prompt> ")
        assert "한국" in written and "한글" not in written
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


@pytest.mark.parametrize("name", ["C", "ko_KR.UTF-8"])  # the second as a rule not installed
def test_a_syllable_is_edited_whole_whatever_the_locale(name):
    typed = "영화 한글".encode() + BACKSPACE + LEFT + "나".encode()
    with Terminal(environment={"LC_ALL": name}) as terminal:
        assert "영화 나한" in answer(terminal, typed, "20")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_wrong_answers_are_asked_again_with_the_allowed_range():
    with Terminal() as terminal:
        terminal.expect("prompt> ")
        terminal.type("\n")  # an empty prompt is no prompt
        terminal.expect("prompt> ")
        terminal.type("이 영화는\n")
        for wrong in ("0,8", "-1", "nan"):
            terminal.expect("temperature(0.8)> ")
            terminal.type(f"{wrong}\n")
        terminal.expect("temperature is nan")
        terminal.expect("temperature(0.8)> ")
        terminal.type("0\n")
        terminal.expect("max_length(128)> ")
        terminal.type("1\n")
        terminal.expect("max_length is 1; it counts the prompt")
        terminal.expect("max_length(128)> ")
        terminal.type(" 8 \n")
        assert "이 영화는" in terminal.expect("prompt> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_ctrl_c_stops_a_text_and_ctrl_d_leaves():
    with Terminal() as terminal:
        terminal.expect("prompt> ")
        terminal.type("이 영화는\n")
        terminal.expect("temperature(0.8)> ")
        terminal.type("1\n")
        terminal.expect("max_length(128)> ")
        terminal.type("1024\n")
        terminal.expect("이 영화는")
        terminal.type(CTRL_C)
        terminal.expect("prompt> ")  # the loop goes on
        terminal.type(CTRL_C)
        terminal.expect("prompt> ")  # at the prompt it begins a new line
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.screen


def test_a_prompt_typed_as_separate_jamo_reads_as_syllables():
    with Terminal() as terminal:
        written = answer(terminal, unicodedata.normalize("NFD", "이 영화"), max_length="20")
        assert "Traceback" not in written
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_a_paste_longer_than_the_context_is_told_with_both_counts():
    with Terminal() as terminal:
        terminal.expect("prompt> ")
        terminal.type("가나다 " * 2500 + "\n")
        terminal.expect("1024")
        terminal.expect("prompt> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_pasted_lines_are_one_prompt():
    """Shots of a few-shot prompt are no answers to the questions that follow it."""
    with Terminal() as terminal:
        terminal.expect("\x1b[?2004h")  # asked so, a terminal marks where a paste begins and ends
        written = answer(terminal, b"\x1b[200~" + "첫째 줄\n둘째 줄".encode() + b"\x1b[201~", "20")
        assert "첫째 줄\r\n둘째 줄" in written
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_a_text_that_was_stopped_is_not_begun_again():
    model, tokenizer = kogpt.load(fast=True)
    length = len(tokenizer.encode("이 영화는", bos=tokenizer.add_bos))
    params = SamplingParams(temperature=0.8, max_new_tokens=24 - length, seed=12, echo=True)
    (second,) = generate(model, tokenizer, ["이 영화는"], params)
    with Terminal(["--seed", "11"]) as terminal:
        terminal.expect("prompt> ")
        terminal.type("이 영화는\n")
        terminal.expect("temperature(0.8)> ")
        terminal.type("\n")
        terminal.expect("max_length(128)> ")
        terminal.type("1024\n")
        terminal.expect("이 영화는")
        terminal.type(CTRL_C)
        assert second.text in answer(terminal, "이 영화는", "24")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
