"""Draws of examples and samples of rows, against rankings by hand."""

import hashlib
import random
import re
import unicodedata
from collections import Counter
from functools import cache

import pytest

from kogpt.errors import InputRefusedError
from kogpt.evaluation import Protocol, load_task, read_data
from kogpt.evaluation.data import Row
from kogpt.evaluation.running import draw_set
from kogpt.evaluation.shots import draw_shots, sample_rows
from kogpt.tokenizer import load_tokenizer
from tests.evaluation.tiny import SCORED, SHOTS, TASK, write_table, write_task

tokenizer = cache(load_tokenizer)


def make_rows(count, labels=2):
    """Rows whose labels come in runs."""
    rng = random.Random(count)
    return [
        Row(index, {"text": f"글 {index}"}, frozenset({"text"}), rng.randrange(labels))
        for index in range(count)
    ]


def indices(rows):
    return [row.index for row in rows]


def ranking(start, count):
    """Numbers in the order of their hashes."""
    hashes = {n: hashlib.sha256(f"{start}{n}".encode()).hexdigest() for n in range(count)}
    return sorted(hashes, key=hashes.get)


# for n in $(seq 0 9); do echo $(printf 3:1:$n | sha256sum | cut -c-8) $n; done | sort
BY_SHELL = [9, 6, 7, 1, 0, 2, 5, 3, 8, 4]


def test_a_draw_can_be_repeated_by_a_shell():
    assert indices(draw_shots(make_rows(10), 10, seed=3, set=1)) == BY_SHELL
    assert indices(draw_shots(make_rows(10), 4, seed=3, set=1)) == BY_SHELL[:4]


@pytest.mark.parametrize("seed", [0, 1, -7, 2**64])
@pytest.mark.parametrize("number", [0, 11])
def test_a_draw_is_the_first_rows_by_their_hashes(seed, number):
    rows = make_rows(500)
    expected = ranking(f"{seed}:{number}:", 500)
    for count in (0, 1, 8, 100, 500):
        assert indices(draw_shots(rows, count, seed, number)) == expected[:count]
    shuffled = random.Random(0).sample(rows, 500)
    assert indices(draw_shots(shuffled, 20, seed, number)) == expected[:20]


def test_seeds_and_sets_draw_different_rows():
    rows = make_rows(1000)
    draws = [tuple(indices(draw_shots(rows, 8, seed, n))) for seed in range(20) for n in range(20)]
    assert len(set(draws)) == 400
    # Each row is drawn as often as another: 3,200 of 1,000 rows, 3.2 in the mean.
    times = Counter(index for draw in draws for index in draw)
    assert len(times) > 900 and max(times.values()) < 15


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_a_balanced_draw_has_labels_within_one_of_each_other(labels):
    rows = make_rows(400, labels)
    before: set[int] = set()
    for count in range(60):
        drawn = draw_shots(rows, count, 0, 0, labels)
        counts = [Counter(row.label for row in drawn)[label] for label in range(labels)]
        assert len(drawn) == count == sum(counts) and max(counts) - min(counts) <= 1
        # In the order of hashes, whatever their labels, and none is lost by asking for more.
        order = ranking("0:0:", 400)
        assert indices(drawn) == sorted(indices(drawn), key=order.index)
        assert before <= set(indices(drawn))
        before = set(indices(drawn))


def test_a_balanced_draw_takes_the_first_of_each_label():
    rows = make_rows(300, 3)
    order = [rows[index] for index in ranking("5:2:", 300)]
    drawn = draw_shots(rows, 12, 5, 2, 3)
    for label in range(3):
        expected = [row.index for row in order if row.label == label][:4]
        assert [row.index for row in drawn if row.label == label] == expected


def test_which_label_has_one_more_changes_with_the_set():
    rows = make_rows(400)
    more = [Counter(row.label for row in draw_shots(rows, 3, 0, n, 2)) for n in range(40)]
    assert 5 < sum(counts[0] == 2 for counts in more) < 35


def test_only_rows_that_suit_are_drawn():
    rows = make_rows(100)
    drawn = draw_shots(rows, 10, 0, 0, suits=lambda row: row.index % 2 == 0)
    assert indices(drawn) == [n for n in ranking("0:0:", 100) if n % 2 == 0][:10]


def test_too_few_rows_are_refused_in_a_line_that_tells_how_many_there_are():
    rows = make_rows(10)
    with pytest.raises(InputRefusedError, match="^there are 10 rows to draw 11 shots from$"):
        draw_shots(rows, 11, 0, 0)
    with pytest.raises(InputRefusedError, match="^there are 0 rows to draw 1 shots from$"):
        draw_shots(rows, 1, 0, 0, suits=lambda row: False)
    few = [row for row in rows if row.label] + [row for row in rows if not row.label][:2]
    with pytest.raises(InputRefusedError, match="^there are 5 rows of equally many labels to dra"):
        draw_shots(few, 6, 0, 0, 2)


def test_a_sample_is_the_same_whatever_the_seed_and_in_the_order_of_the_file():
    rows = make_rows(200)
    for limit in (1, 7, 199):
        assert indices(sample_rows(rows, limit)) == sorted(ranking("rows:", 200)[:limit])
    for limit in (None, 200, 201):
        assert sample_rows(rows, limit) == rows
    assert set(indices(sample_rows(rows, 50))) < set(indices(sample_rows(rows, 51)))


@pytest.fixture
def folder(tmp_path):
    write_task(tmp_path)
    return tmp_path


def drawn(folder, text=TASK, number=0, **protocol):
    """The rows that are scored, and those that are drawn."""
    (folder / "reviews.toml").write_text(text, encoding="utf-8")
    task = load_task(str(folder / "reviews.toml"))
    how = Protocol(**protocol)
    data = read_data(task, folder, how)
    return data.sample, draw_set(task, task.prompt(None), how, data, number, tokenizer())


@pytest.mark.parametrize("balanced", [False, True])
def test_shots_never_share_their_text_with_a_row_that_is_scored(balanced, folder):
    scored = {text for text, _ in SCORED}
    allowed = {index for index, (text, _) in enumerate(SHOTS) if text not in scored}
    assert len(allowed) == len(SHOTS) - 2
    for number in range(10):
        _, shots = drawn(folder, number=number, shots=(6,), balanced=balanced)
        assert set(indices(shots)) <= allowed
    _, shots = drawn(folder, shots=(7,))
    assert set(indices(shots)) == allowed
    with pytest.raises(InputRefusedError, match="there are 7 rows to draw 8 shots from"):
        drawn(folder, shots=(8,))


def test_a_text_is_the_same_however_its_hangul_is_written(folder):
    rows = [(unicodedata.normalize("NFD", text), label) for text, label in SCORED]
    write_table(folder / "reviews" / "scored.tsv", [("document", "label"), *rows])
    with pytest.raises(InputRefusedError, match="there are 7 rows to draw 8 shots from"):
        drawn(folder, shots=(8,))


def test_a_row_that_is_not_in_the_sample_may_be_shown(folder):
    sample, shots = drawn(folder, shots=(8,), limit=1)
    texts = {row.text for row in shots}
    assert len(sample) == 1 and sample[0].text not in texts
    assert texts & {(text,) for text, _ in SCORED}


def test_a_file_can_be_its_own_source_of_examples(folder):
    text = TASK.replace("reviews/shots.tsv", "reviews/scored.tsv")
    sample, shots = drawn(folder, text, shots=(2,), limit=3)
    assert len(shots) == 2 and not set(indices(sample)) & set(indices(shots))
    with pytest.raises(InputRefusedError, match="there are 0 rows to draw 1 shots from"):
        drawn(folder, text, shots=(1,))


def test_no_examples_need_no_file(folder):
    (folder / "reviews" / "shots.tsv").unlink()
    assert drawn(folder, shots=(0,))[1] == []


def test_only_examples_as_short_as_asked_are_drawn(folder):
    encode = tokenizer().encode
    sizes = {index: len(encode(text)) for index, (text, _) in enumerate(SHOTS)}
    limit = sorted(sizes.values())[4]
    scored = {text for text, _ in SCORED}
    short = {i for i, (text, _) in enumerate(SHOTS) if sizes[i] <= limit and text not in scored}
    _, shots = drawn(folder, shots=(len(short),), max_shot_tokens=limit)
    assert set(indices(shots)) == short and len(short) < 7
    with pytest.raises(InputRefusedError, match=f"there are {len(short)} rows to draw"):
        drawn(folder, shots=(len(short) + 1,), max_shot_tokens=limit)


def test_texts_that_no_prompt_shows_make_no_example_longer(folder):
    limit = max(len(tokenizer().encode(text)) for text, _ in SHOTS)
    numbered = [(f"{'긴 이름 ' * 20}{i}", *row) for i, row in enumerate(SHOTS)]
    write_table(folder / "reviews" / "shots.tsv", [("id", "document", "label"), *numbered])
    text = TASK.replace("[fields]\n", '[fields]\nid = "id"\n')
    assert len(drawn(folder, text, shots=(7,), max_shot_tokens=limit)[1]) == 7
    only_in_shots = text.replace(' 최고"]', ' 최고"]\nshot_targets = [" {id}", " {id}"]', 1)
    with pytest.raises(InputRefusedError, match="there are 0 rows to draw"):
        drawn(folder, only_in_shots, shots=(7,), max_shot_tokens=limit)


@pytest.mark.parametrize("key", ["targets", "shot_targets"])
def test_a_row_whose_right_answer_is_empty_is_no_example(folder, key):
    rows = [(i, f"글 {i}", i % 2, "" if i in (1, 2) else "답") for i in range(6)]
    names = ("id", "document", "label", "own")
    write_table(folder / "reviews" / "shots.tsv", [names, *rows])
    scored = 'file = "reviews/scored.tsv"\n'
    text = TASK.replace("[fields]\n", '[fields]\nown = "own"\n')
    text = text.replace(scored, f'{scored}fields = {{ own = "id" }}\n')
    own = '[" 최악", " {own}"]'
    more = own if key == "targets" else f'[" 최악", " 최고"]\nshot_targets = {own}'
    text = text.replace('[" 최악", " 최고"]', more)
    _, shots = drawn(folder, text, shots=(5,))
    assert set(indices(shots)) == {0, 2, 3, 4, 5}  # the answer of row 2 is the other one
    with pytest.raises(InputRefusedError, match="draw 6 shots from .*scored and have an answer"):
        drawn(folder, text, shots=(6,))


def test_texts_of_two_fields_are_the_same_only_if_both_are(tmp_path):
    task = load_task("kobest_boolq")
    header = ("ID", "Text", "Question", "Answer")
    write_table(tmp_path / task.scored.file, [header, (1, "가", "나", "TRUE")])
    rows = [(1, "가", "나", "False"), (2, "가", "다", "TRUE"), (3, "라", "나", "FALSE")]
    write_table(tmp_path / task.shots[0].file, [header, *rows])
    how = Protocol(shots=(2,))
    data = read_data(task, tmp_path, how)
    assert set(indices(draw_set(task, task.prompt(None), how, data, 0, tokenizer()))) == {1, 2}


def test_a_text_that_no_prompt_shows_makes_no_other_row(folder):
    text = TASK.replace("[fields]\n", '[fields]\nid = "id"\n')
    for name, rows in (("scored", SCORED), ("shots", SHOTS)):
        numbered = [(f"{name}{i}", *row) for i, row in enumerate(rows)]
        write_table(folder / "reviews" / f"{name}.tsv", [("id", "document", "label"), *numbered])
    scored = {text for text, _ in SCORED}
    _, shots = drawn(folder, text, shots=(7,))
    assert not {row.fields["document"] for row in shots} & scored
    with pytest.raises(InputRefusedError, match="there are 7 rows to draw 8 shots from"):
        drawn(folder, text, shots=(8,))


def test_texts_that_a_prompt_makes_the_same_are(folder):
    rows = [("document", "label"), ("영화 최고 .", 1)]
    write_table(folder / "reviews" / "scored.tsv", rows)
    write_table(folder / "reviews" / "shots.tsv", [*rows[:1], ("영화 최고.", 1), ("별로", 0)])
    text = re.sub(r"(\[prompts\.\w+\]\n)", r"\1detokenize = true\n", TASK)
    _, shots = drawn(folder, text, shots=(1,))
    assert [row.fields["document"] for row in shots] == ["별로"]
