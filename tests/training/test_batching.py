"""Every example once an epoch, those of like length together, and rows that keep texts apart."""

import random

import pytest
import torch

from kogpt.evaluation import load_task
from kogpt.evaluation.data import Row
from kogpt.model import KoGPT
from kogpt.tokenizer import load_tokenizer
from kogpt.training.batching import RowPlan, lay_out
from kogpt.training.examples import Completion
from kogpt.training.objectives import Classification, Completions
from tests.training.conftest import TINY

CHANCE = random.Random(0)
LENGTHS = [CHANCE.randrange(1, 30) for _ in range(157)]


def steps(plan: RowPlan, epochs: int) -> list[list[list[int]]]:
    return [list(plan.step(step)) for step in range(plan.num_steps(epochs))]


@pytest.mark.parametrize("room", [None, 40])
def test_every_example_comes_once_an_epoch_in_an_order_of_its_own(room):
    plan = RowPlan(LENGTHS, 8, seed=3, room=room)
    counts = [plan._steps_of(epoch) for epoch in range(3)]
    rows = steps(plan, 3)
    assert len(rows) == sum(counts)
    orders = []
    for epoch in range(3):
        first = sum(counts[:epoch])
        orders.append([e for step in rows[first : first + counts[epoch]] for r in step for e in r])
    for order in orders:
        assert sorted(order) == list(range(157))
    assert orders[0] != orders[1] != orders[2]


def test_a_plan_is_a_function_of_seed_and_step():
    forwards = steps(RowPlan(LENGTHS, 8, seed=3), 2)
    plan = RowPlan(LENGTHS, 8, seed=3)
    backwards = [list(plan.step(step)) for step in reversed(range(len(forwards)))]
    assert backwards[::-1] == forwards
    assert steps(RowPlan(LENGTHS, 8, seed=4), 2) != forwards


def test_examples_of_like_length_share_a_batch():
    spread = [
        max(LENGTHS[e] for (e,) in step) - min(LENGTHS[e] for (e,) in step)
        for step in steps(RowPlan(LENGTHS, 8, seed=0), 1)
    ]
    assert sum(spread) / len(spread) < 3  # of 29; at random it is 22


def test_batches_of_short_and_of_long_examples_come_in_no_order():
    """Else an epoch would go from the shortest to the longest."""
    plan = RowPlan(LENGTHS, 8, seed=0)
    for epoch in range(2):
        lengths = [LENGTHS[e] for step in plan._epoch(epoch) for (e,) in step]
        assert lengths != sorted(lengths)


def test_the_orders_of_one_seed_are_not_those_of_the_next():
    first, second = RowPlan(LENGTHS, 8, seed=3), RowPlan(LENGTHS, 8, seed=4)
    assert first._epoch(1) != second._epoch(0)


def test_a_row_may_be_full_to_the_last_token_and_one_too_long_is_alone():
    plan = RowPlan([4, 4, 4, 4], 2, 0, room=8)
    assert plan.num_steps(1) == 1 and [len(row) for row in plan.step(0)] == [2, 2]
    assert sorted(RowPlan([9, 9], 2, 0, room=8).step(0)) == [[0], [1]]


def test_packed_rows_are_nearly_full_and_never_too_long():
    filled = [
        sum(LENGTHS[e] for e in row)
        for step in steps(RowPlan(LENGTHS, 8, 0, 40), 1)
        for row in step
    ]
    assert max(filled) <= 40
    assert sum(filled) / len(filled) > 28


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, 20), (2, 40), (1.5, 30), (0.99, 20), (0.01, 1)]
)
def test_epochs_are_so_many_steps(epochs, expected):
    assert RowPlan(LENGTHS, 8, 0).num_steps(epochs) == expected


@pytest.fixture
def model():
    model = KoGPT(TINY)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


TEXTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15], [16]]


def test_packed_texts_are_read_as_each_alone(model):
    layout = lay_out([[TEXTS[0], TEXTS[1]], [TEXTS[2], TEXTS[3]]])
    logits = model(layout.input_ids, starts=layout.starts)
    for text, row, first in zip(TEXTS, layout.rows, layout.firsts, strict=True):
        alone = model(torch.tensor([text]))[0]
        torch.testing.assert_close(logits[row, first : first + len(text)], alone, rtol=0, atol=1e-5)


def test_a_packed_text_never_feels_its_neighbours(model):
    layout = lay_out([[TEXTS[0], TEXTS[1], TEXTS[2]]])
    changed = lay_out([[[99] * 4, TEXTS[1], [98] * 5]])
    embeddings = []
    model.transformer.wte.register_forward_hook(lambda *args: embeddings.append(args[2]))
    place = slice(layout.firsts[1], layout.firsts[2])
    before = model(layout.input_ids, starts=layout.starts)
    after = model(changed.input_ids, starts=changed.starts)
    assert torch.equal(before[0, place], after[0, place])
    (grad,) = torch.autograd.grad(before[0, place].sum(), embeddings[0])
    assert grad[0, place].abs().amin(1).gt(0).all()
    grad[0, place] = 0
    assert not grad.any()


def test_rows_of_one_text_need_no_starts(model):
    layout = lay_out([[text] for text in TEXTS])
    assert layout.starts is None
    logits = model(layout.input_ids)
    for text, row in zip(TEXTS, layout.rows, strict=True):
        alone = model(torch.tensor([text]))[0]
        torch.testing.assert_close(logits[row, : len(text)], alone, rtol=0, atol=1e-5)


def test_starts_never_fall_along_a_row_and_what_fills_it_up_sees_itself_alone():
    """So attention wants them: a kernel passes over the keys before the start of its queries."""
    starts = lay_out([[TEXTS[0], TEXTS[1]], [TEXTS[2]]]).starts
    assert starts.tolist() == [[0, 0, 0, 0, 4, 4], [0, 0, 0, 0, 0, 5]]


def test_an_example_may_fill_the_room_to_the_last_token():
    """Of a text whose last token is only predicted, one more than of one that is read whole."""
    tokenizer, task = load_tokenizer(), load_task("nsmc")
    learnt, read = (
        Completion("이 영화는", " 정말 좋다"),
        Row(0, {"document": "좋다"}, ("document",), 1),
    )
    size = len(Completions(tokenizer, (5, 6), 99).example(learnt).ids) - 1
    assert Completions(tokenizer, (5, 6), size).example(learnt) is not None
    assert Completions(tokenizer, (5, 6), size - 1).example(learnt) is None
    (text,) = Classification(tokenizer, (5, 6), 99, task).example(read).texts
    assert Classification(tokenizer, (5, 6), len(text), task).example(read) is not None
    assert Classification(tokenizer, (5, 6), len(text) - 1, task).example(read) is None


def test_an_epoch_is_laid_out_once_for_all_its_steps():
    plan = RowPlan(LENGTHS, 8, seed=0)
    assert plan._epoch(1) is plan._epoch(1)


def test_a_part_of_an_epoch_is_one_of_the_steps_of_that_very_epoch():
    plan = RowPlan(LENGTHS, 1, seed=1, room=40)
    first, second = (plan._steps_of(epoch) for epoch in range(2))
    assert abs(first - second) > 1  # packed in another order, it has other rows
    assert plan.num_steps(1.9) == first + round(0.9 * second) != first + round(0.9 * first)
