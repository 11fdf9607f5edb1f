"""A finetuning from its data to its result, by every method and for every objective."""

import io
import json
import math
import random
import unicodedata
from itertools import starmap
from operator import attrgetter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score

import kogpt
from kogpt.adapters import load_adapters, load_classifier
from kogpt.checkpoint import load_model, verify, write_checkpoint
from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.evaluation import evaluate, measure
from kogpt.evaluation.data import Row
from kogpt.evaluation.task import load_task
from kogpt.parallel import Parallel
from kogpt.tokenizer import load_tokenizer
from kogpt.training import TrainingConfig, finetune, train
from kogpt.training.examples import Completion, hold_out, read_task
from kogpt.training.finetuning import Finetuning
from kogpt.training.log import read_log
from kogpt.training.objectives import LabelWords
from tests.training.examples import PAIRS, TASK, reviews, write_jsonl, write_pairs, write_task

NUMBERED = '[fields]\nid = "id"\n'
METHODS = ["full", "lora", "p-tuning", "prompt-tuning"]
# In 60 steps; of a network as narrow as this, virtual tokens move little.
FALLS_TO = {"full": 0.6, "lora": 0.6, "p-tuning": 0.9, "prompt-tuning": 0.93}
RATES = {"full": 3e-3, "lora": 2e-2, "p-tuning": 5e-3, "prompt-tuning": 1e-1}


def run(config):
    return finetune(config, io.StringIO())


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_answers_of_a_task(finetuning, base, task, method):
    config = finetuning(method=method, steps=60, learning_rate=RATES[method], rank=4, batch_size=16)
    results = run(config)
    losses = [entry["loss"] for entry in read_log(config.folder / "log.jsonl") if "loss" in entry]
    assert np.mean(losses[-5:]) < FALLS_TO[method] * losses[0]
    if method == "full":
        model, tokenizer = kogpt.load(config.out)
    else:
        model, tokenizer = kogpt.load(base, adapter=config.out)
    (again,) = evaluate(model, tokenizer, str(task), task.parent)
    for metric in ("accuracy", "macro_f1"):
        assert measure(metric, again.outcome("sum"))[0] == results["test"][metric]["value"]
    assert results["test"]["rows"] == 40
    assert json.loads((config.out / "results.json").read_text(encoding="utf-8")) == results


def test_full_finetuning_leaves_a_checkpoint_like_any_other(finetuning):
    config = finetuning()
    run(config)
    verify(config.out)
    assert load_tokenizer(config.out).encode("영화") == load_tokenizer(config.model).encode("영화")
    manifest = json.loads((config.out / "manifest.json").read_bytes())
    assert manifest["license"] == "CC0"


def test_a_head_learns_classes_and_is_found_in_the_result(finetuning, task):
    config = finetuning(objective="head", steps=60, learning_rate=3e-3, batch_size=16)
    results = run(config)
    assert results["test"]["accuracy"]["value"] > 90
    model, tokenizer = load_classifier(config.out), load_tokenizer(config.out)
    right = 0
    for text, label in reviews(40, 1000):
        ids = torch.tensor([tokenizer.encode(text, bos=True, eos=True)])
        right += model.score(model.transformer(ids)[0, -1]).argmax().item() == label
    assert 100 * right / 40 == pytest.approx(results["test"]["accuracy"]["value"])
    assert right == count_right(model, tokenizer, config)


def count_right(model, tokenizer, config):
    """Reviews that a classifier takes for what they are, by the names of the task's labels."""
    texts, gold = zip(*reviews(40, 1000), strict=True)
    found = kogpt.classify(model, tokenizer, texts)
    labels = load_task(config.task).labels
    return sum(one.label == labels[label] for one, label in zip(found, gold, strict=True))


def test_training_goes_on_with_the_head_that_there_is(finetuning, tmp_path):
    first = finetuning(objective="head", steps=2)
    run(first)
    path = first.out / "config.json"  # as of a head that was trained elsewhere
    path.write_text(path.read_text(encoding="utf-8").replace('"id2label"', '"other"'), "utf-8")
    again = {"model": str(first.out), "objective": "head", "steps": 1, "learning_rate": 1e-9}
    for method in ("full", "lora"):
        config = finetuning(**again, method=method, out=tmp_path / method, seed=5)
        finetune(config, told := io.StringIO())
        assert ", the head of the model;" in told.getvalue()
        name = "model-00001-of-00001" if method == "full" else "adapter_model"
        tensors = load_file(config.out / f"{name}.safetensors")
        (head,) = (value for key, value in tensors.items() if "score" in key)
        torch.testing.assert_close(head, load_classifier(first.out).score.weight)
        if method == "full":  # what is told of the head there
            described = json.loads((config.out / "config.json").read_text(encoding="utf-8"))
            assert list(described["id2label"].values()) == list(load_task(config.task).labels)
    pairs = {"objective": "regression", "data": (str(write_pairs(tmp_path)),)}
    other = finetuning(**again | pairs, out=tmp_path / "other")
    finetune(other, told := io.StringIO())
    assert ", a new head;" in told.getvalue()
    for method, said in (("full", ", without the head of the model;"), ("lora", " held out;")):
        without = {"objective": "label-words", "method": method, "out": tmp_path / f"no-{method}"}
        finetune(finetuning(**again | without), told := io.StringIO())
        assert said in told.getvalue()


def test_a_head_beside_an_adapter_is_stored_with_it(finetuning, base):
    config = finetuning(objective="head", method="lora", steps=40, learning_rate=2e-2)
    results = run(config)
    model, tokenizer = load_model(base), load_tokenizer(base)
    load_adapters(model, [config.out])
    right = 0
    for text, label in reviews(40, 1000):
        ids = torch.tensor([tokenizer.encode(text, bos=True, eos=True)])
        right += model.score(model.transformer(ids)[0, -1]).argmax().item() == label
    assert 100 * right / 40 == pytest.approx(results["test"]["accuracy"]["value"])
    assert right == count_right(model, tokenizer, config)


def test_a_regression_reads_pairs_in_both_orders(finetuning, tmp_path):
    pairs = write_pairs(tmp_path)
    config = finetuning(
        data=(str(pairs),), objective="regression", steps=80, learning_rate=3e-3, batch_size=16
    )
    results = run(config)
    assert results["test"]["spearman"]["value"] > 50
    model, tokenizer = load_classifier(config.out), load_tokenizer(config.out)
    lines = (tmp_path / "pairs-test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    gold, found, pairs = [], [], []
    for line in lines:
        score, *texts = line.split("\t")
        pairs.append(texts)
        orders = [texts, texts[::-1]]
        ids = [
            [i for t in order for i in tokenizer.encode(t, bos=True, eos=True)] for order in orders
        ]
        outputs = [model.score(model.transformer(torch.tensor([row]))[0, -1]) for row in ids]
        gold.append(float(score))
        found.append(torch.stack(outputs).mean().item())
    expected = 100 * spearmanr(gold, found).statistic
    assert results["test"]["spearman"]["value"] == pytest.approx(expected, abs=1e-4)
    values = [one.value for one in kogpt.classify(model, tokenizer, pairs)]
    assert values == pytest.approx(found, abs=1e-5)


def test_completions_of_files_are_learnt_and_nothing_else(finetuning, tmp_path):
    rows = [(f"{text} ->", " 최고" if label else " 낭비") for text, label in reviews(120, 0)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = finetuning(data=(str(data),), steps=60, learning_rate=3e-3, batch_size=16)
    results = run(config)
    assert results["validation"]["held_out_loss"] < 0.3
    assert "test" not in results
    model, tokenizer = kogpt.load(config.out)
    greedy = kogpt.SamplingParams(temperature=0, max_new_tokens=8)
    prompts = ["재미있는 영화 999 ->", "시간 낭비 998 ->"]
    texts = [sample.text for sample in kogpt.generate(model, tokenizer, prompts, greedy)]
    assert texts == [" 최고", " 낭비"]  # and then the end, which is learnt too


def test_packed_examples_give_the_loss_of_padded_ones(finetuning, tmp_path):
    padded, packed = (
        run_loss(finetuning(steps=1, batch_size=200, pack=pack, out=tmp_path / f"pack-{pack}"))
        for pack in (False, True)
    )
    assert packed == pytest.approx(padded, rel=1e-5)


def run_loss(config):
    run(config)
    (entry,) = [e for e in read_log(config.folder / "log.jsonl") if "loss" in e]
    return entry["loss"]


def test_figures_are_of_their_own_rows_alone(finetuning, tmp_path):
    """The published table was withdrawn because training rows had come into validation figures."""
    chance = random.Random(0)
    rows = [(text, chance.randrange(2)) for text, _ in reviews(40, 0)]
    others = [(text, chance.randrange(2)) for text, _ in reviews(200, 1000)]
    task = write_task(tmp_path, rows, others)
    config = finetuning(
        **{"data": (str(task),), "objective": "head", "steps": 200, "batch_size": 36},
        **{"learning_rate": 1e-2, "keep_weights": "last", "validate_every": 50},
    )
    results = run(config)
    log = read_log(config.folder / "log.jsonl")
    assert [entry["loss"] for entry in log if "loss" in entry][-1] < 0.05  # learnt by heart
    assert 35 < results["test"]["accuracy"]["value"] < 65
    model, tokenizer = load_classifier(config.out), load_tokenizer(config.out)
    predicted = []
    for text, _ in others:
        ids = torch.tensor([tokenizer.encode(text, bos=True, eos=True)])
        predicted.append(model.score(model.transformer(ids)[0, -1]).argmax().item())
    expected = 100 * accuracy_score([label for _, label in others], predicted)
    assert results["test"]["accuracy"]["value"] == pytest.approx(expected)


def test_no_text_is_in_two_splits(finetuning, tmp_path):
    train = reviews(80, 0) * 2 + reviews(10, 1000)
    task = write_task(tmp_path, train, reviews(40, 1000))
    config = finetuning(data=(str(task),), steps=1)
    results = run(config)
    assert "10 rows are not learnt: test.tsv has their text" in results["notes"]
    assert results["examples"] + results["validation"]["rows"] == 160
    assert results["validation"]["rows"] % 2 == 0  # both of a pair, or none


def numbered(rows, name):
    """Lines of a table with a number for each row, in which every second mark stands apart."""
    ends = (" .", ".")
    return [
        "id\tdocument\tlabel",
        *(f"{name}{i}\t{text}{ends[i % 2]}\t{label}" for i, (text, label) in enumerate(rows)),
    ]


def test_rows_that_a_prompt_shows_alike_are_the_same(finetuning, tmp_path):
    """They differ by a number that it does not show, and by a space that it drops."""
    train = [row for row in reviews(80, 0) for _ in range(2)] + reviews(9, 1001)
    text = TASK.replace("[fields]\n", NUMBERED) + "detokenize = true\n"
    path = write_task(tmp_path, [], [])
    path.write_text(text, encoding="utf-8")
    dev = '[validation]\nfile = "dev.tsv"\n'
    for name, rows in (("train", train), ("test", reviews(40, 1000)), ("dev", reviews(9, 1035))):
        (tmp_path / f"{name}.tsv").write_text("\n".join(numbered(rows, name)), encoding="utf-8")
    results = run(finetuning(data=(str(path),), steps=1))
    assert "9 rows are not learnt: test.tsv has their text" in results["notes"]
    assert results["examples"] + results["validation"]["rows"] == 160
    assert results["validation"]["rows"] % 2 == 0  # both of a pair, or none
    path.write_text(text + dev, encoding="utf-8")
    results = run(finetuning(data=(str(path),), steps=1, out=tmp_path / "own"))
    note = "5 rows choose that are measured too: both files have their text"
    assert note in results["notes"]


def test_the_best_weights_by_validation_are_kept(finetuning):
    config = finetuning(steps=30, validate_every=3, learning_rate=3e-2)
    results = run(config)
    log = [e for e in read_log(config.folder / "log.jsonl") if "accuracy" in e]
    best = max(entry["accuracy"] for entry in log)
    assert results["validation"]["accuracy"]["value"] == best
    assert results["step"] == next(entry["step"] for entry in log if entry["accuracy"] == best)


def test_a_finished_run_is_not_run_again(finetuning):
    config = finetuning(steps=2)
    first = run(config)
    before = weights(config.out)
    second = run(finetuning(steps=2, resume=True))
    assert {**first, "settings": {}} == {**second, "settings": {}}
    assert weights(config.out) == before
    with pytest.raises(InputRefusedError, match="exists already"):
        run(config)


def test_rows_that_cannot_be_learnt_are_counted(finetuning, tmp_path):
    rows = [("가", "나")] * 20 + [("너무 뻔해서 " * 60, "나")] * 3 + [("가", "")] * 2
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    told = io.StringIO()
    results = finetune(finetuning(data=(str(data),), steps=1), told)
    assert results["left_out"] == 5
    assert "(5 left out: too long, or nothing to learn)" in told.getvalue()


def test_rows_whose_answer_is_empty_are_left_out(finetuning, tmp_path):
    """In training where it is the right one, else whichever it is."""
    path = write_task(tmp_path, reviews(80, 0), reviews(20, 1000))
    text = TASK.replace("[fields]\n", '[fields]\nown = "own"\n')
    path.write_text(text.replace('" 최고"]', '" {own}"]'), encoding="utf-8")
    for name in ("train", "test"):
        head, *rows = (tmp_path / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        lines = [f"{row}\t{'최고' * (i >= 10)}" for i, row in enumerate(rows)]
        (tmp_path / f"{name}.tsv").write_text("\n".join([f"{head}\town", *lines]), "utf-8")
    results = run(finetuning(data=(str(path),), steps=1))
    assert (results["examples"], results["left_out"]) == (68, 4)  # one that is right is held out
    assert (results["validation"]["rows"], results["test"]["rows"]) == (6, 10)
    assert [note.partition(" are left out")[0] for note in results["notes"]] == [
        "2 rows of the validation split",
        "10 rows of the test split",
    ]


def test_texts_that_are_read_alike_are_held_out_together():
    def decomposed(text):
        return unicodedata.normalize("NFD", text)

    rows = [Completion(f"{n}번 영화는", " 좋다") for n in range(100)]
    rows += [Completion(*map(decomposed, row)) for row in rows]
    training, held_out = hold_out(rows, 1000, Completion.texts)
    assert len(held_out) == 20
    composed = {unicodedata.normalize("NFC", row.prompt) for row in held_out}
    assert len(composed) == 10 and not composed & {
        unicodedata.normalize("NFC", row.prompt) for row in training
    }


@pytest.mark.parametrize("held_out", [0, 1])
def test_held_out_rows_of_which_nothing_can_be_told_are_noted(finetuning, tmp_path, held_out):
    """Of these rows the empty one is held out, and of twice as many another one as well."""

    def is_held_out(row, rows):
        return Completion(*row) in hold_out([*starmap(Completion, rows)], 1000, Completion.texts)[1]

    rows = [(text, "나") for text, _ in reviews(12 + 10 * held_out, 0)]
    empties = [(str(i), "") for i in range(1000)]
    empty = next(row for row in empties if is_held_out(row, [*rows, row]))
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows, empty])
    results = run(finetuning(data=(str(data),), steps=1))
    assert results["examples"] == len(rows) - held_out
    note = "1 rows of the validation split are left out: too long, or nothing to learn"
    assert results["notes"] == [note]
    assert ("validation" in results) == bool(held_out)
    if held_out:
        assert results["validation"]["rows"] == 1


@pytest.mark.parametrize("objective", ["head", "regression"])
def test_heads_read_only_what_prompts_show(finetuning, tmp_path, objective):
    """A text that none shows changes neither what is learnt nor which rows are the same."""
    path = write_pairs(tmp_path)
    known = (tmp_path / "pairs-test.tsv").read_text(encoding="utf-8").splitlines()[1:4]
    results = []
    for number, text in enumerate((PAIRS, PAIRS.replace("[fields]\n", NUMBERED))):
        write_pairs(tmp_path)
        with (tmp_path / "pairs-train.tsv").open("a", encoding="utf-8") as file:
            file.write("\n".join(known) + "\n")
        for name in ("train", "dev", "test"):
            table = tmp_path / f"pairs-{name}.tsv"
            head, *rows = table.read_text(encoding="utf-8").splitlines()
            lines = [f"id\t{head}", *(f"{name} {i}\t{row}" for i, row in enumerate(rows))]
            table.write_text("\n".join(lines), encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        out = tmp_path / str(number)
        results.append(run(finetuning(data=(str(path),), objective=objective, steps=2, out=out)))
    assert {**results[0], "settings": {}} == {**results[1], "settings": {}}
    assert "3 rows are not learnt: pairs-test.tsv has their text" in results[1]["notes"]


def test_heads_count_only_the_held_out_rows_that_they_read(finetuning, tmp_path):
    test = [*reviews(40, 1000), ("너무 뻔해서 " * 60, 0)]
    data = write_task(tmp_path, reviews(80, 0), test)
    results = run(finetuning(data=(str(data),), objective="head", steps=1))
    assert results["test"]["rows"] == 40
    assert any(note.startswith("1 rows of the test split") for note in results["notes"])


def test_the_held_out_loss_is_per_token_as_that_of_training(base, task, tmp_path):
    text = task.read_text(encoding="utf-8").replace('" 최고"', '" 최고 만점"')
    (tmp_path / "longer.toml").write_text(text, encoding="utf-8")
    model, tokenizer = load_model(base), load_tokenizer(base)
    longer = load_task(str(tmp_path / "longer.toml"))
    objective = LabelWords(tokenizer, (), 64, longer, longer.prompt(None), 64)
    rows = [
        Row(i, {"document": text}, ("document",), label)
        for i, (text, label) in enumerate(reviews(20, 0))
    ]
    batch = objective.collate([[objective.example(row)] for row in rows])
    assert batch.count > 20  # an answer has more than one token
    expected = objective.loss(model, batch).item() / batch.count
    assert objective.figures(model, rows)["held_out_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_regression_wants_a_label_that_is_cut_out_of_the_degree(finetuning, tmp_path):
    path = write_pairs(tmp_path)
    cut = 'label = { column = "score", at_least = 3.0 }'
    message = 'the label of pairs is not cut out of its degree: label = { column = "score", at_l'
    for label in (
        'label = { column = "good", values = { 0 = 0, 1 = 1 } }',
        'label = { column = "good", at_least = 1.0 }',
    ):
        path.write_text(PAIRS.replace(cut, label), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            run(finetuning(data=(str(path),), objective="regression"))


def test_rows_that_choose_and_are_measured_are_noted_and_stay(finetuning, tmp_path):
    data = write_pairs(tmp_path)
    before = read_task(load_task(str(data)), finetuning(data_dir=tmp_path), attrgetter("text"))
    head, *rows = (tmp_path / "pairs-test.tsv").read_text(encoding="utf-8").splitlines()
    with (tmp_path / "pairs-dev.tsv").open("a", encoding="utf-8") as file:
        file.write("\n".join(rows[:3]) + "\n")
    found = read_task(load_task(str(data)), finetuning(data_dir=tmp_path), attrgetter("text"))
    assert len(found.validation) == len(before.validation) + 3
    assert "3 rows choose that are measured too: both files have their text" in found.notes


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("objective", ["label-words", "regression"])
def test_a_split_of_which_no_row_fits_is_noted_and_the_result_there(
    finetuning, tmp_path, objective, split
):
    data = write_pairs(tmp_path)
    path = tmp_path / f"pairs-{split}.tsv"
    head, first, *_ = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{head}\n{first}{' 너무 뻔해서' * 60}\n", encoding="utf-8")
    name = {"dev": "validation"}.get(split, split)
    config = finetuning(data=(str(data),), objective=objective, steps=1)
    results = run(config)
    assert name not in results
    assert any(note.startswith(f"1 rows of the {name} split are") for note in results["notes"])
    verify(config.out)


def test_a_pair_that_fits_in_each_order_is_packed_beside_short_ones(finetuning, tmp_path):
    data = write_pairs(tmp_path)
    rows = [(f"{i}", "영화 최고" * 14 if i % 7 == 0 else f"{i}") for i in range(40)]
    lines = [
        "score\tsentence1\tsentence2",
        *(f"{i % 5}\t{a}\t{b}" for i, (a, b) in enumerate(rows)),
    ]
    (tmp_path / "pairs-train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    encode = load_tokenizer(finetuning().model).encode
    lengths = [sum(len(encode(text, bos=True, eos=True)) for text in row) for row in rows]
    assert 2 * min(lengths) < 32 < max(lengths) <= 64  # two orders of the longest exceed a row
    settings = {"data": (str(data),), "objective": "regression", "method": "lora", "batch_size": 4}
    results = run(finetuning(**settings, pack=True, steps=None))
    assert results["examples"] == 40


@pytest.mark.parametrize("row", [("가", ""), ("너무 뻔해서 " * 60, "나")])
def test_nothing_to_learn_is_refused(finetuning, tmp_path, row):
    data = write_jsonl(tmp_path / "rows.jsonl", [row] * 5)
    with pytest.raises(InputRefusedError, match="none of 5 rows fits the context of 64 tokens and"):
        run(finetuning(data=(str(data),)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON \(Expecting"),
        ("[1]", "line 2: is no object"),
        ('{"prompt": "가"}', "line 2: 'completion' is missing or no text"),
        ('{"prompt": 1, "completion": "나"}', "line 2: 'prompt' is missing or no text"),
        ('{"prompt": "가", "completion": "나", "weight": 1}', "line 2: unknown key 'weight'"),
        ("[" * 100_000, "line 2: "),
        (r'{"prompt": "가", "completion": "\ud83d"}', "line 2: .*surrogate"),
    ],
)
def test_a_damaged_example_is_refused_by_line(finetuning, tmp_path, line, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [("가", "나")])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(InputRefusedError, match=message):
        run(finetuning(data=(str(path),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "sft"},
            "method is 'sft', it must be full, lora, qlora",
        ),
        ({"objective": "rank"}, "objective is 'rank', it must be"),
        ({"objective": "completion"}, "objective completion is one of files, not of tasks"),
        ({"objective": "regression"}, "objective regression: the rows of reviews have no degree"),
        ({"prompt": "long"}, "task reviews has no prompt 'long'; there are short"),
        ({"sequence_length": 65}, "sequence_length is 65, it must be at most the model's 64"),
        ({"method": "lora", "targets": ("wte",)}, "targets names 'wte'"),
        ({"method": "lora", "rank": 0}, "rank is 0"),
        ({"method": "prompt-tuning", "virtual_tokens": 64}, "has 64 tokens, the context leaves"),
        ({"data": ("nothing",)}, "no task 'nothing'"),
        ({"data": ("nsmc", "rows.jsonl")}, "data is one task or files of examples: nsmc is no"),
        ({"weight_decay": math.inf}, "weight_decay is inf, it must be a finite number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(finetuning, change, message):
    with pytest.raises(ValueError, match=message):
        run(finetuning(**change))


def test_an_adapter_in_the_place_of_a_model_is_told_as_such(finetuning, tmp_path):
    """And not as a folder without a tokenizer, which it is as well."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_model.safetensors").touch()
    adapter = str(tmp_path / "adapter")
    with pytest.raises(InputRefusedError, match="safetensors: an adapter, which is no model"):
        run(finetuning(model=adapter))
    config = TrainingConfig(data=(tmp_path / "a.txt",), out=tmp_path / "run", model=adapter)
    with pytest.raises(InputRefusedError, match="safetensors: an adapter, which is no model"):
        train(config, io.StringIO())


def test_qlora_wants_integers(finetuning):
    with pytest.raises(InputRefusedError, match="holds no integers to keep"):
        run(finetuning(method="qlora"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_no_result(
    finetuning, tmp_path, base, method
):
    model = load_model(base)
    model.transformer.ln_f.weight.data[0] = math.nan
    spoiled = tmp_path / "spoiled"
    files = {path.name: path for path in load_tokenizer(base).files}
    tensors = model.state_dict()
    write_checkpoint(spoiled, model.config, tensors, files=files, allow_nonfinite=("*",))
    config = finetuning(model=str(spoiled), method=method)
    with pytest.raises(KoGPTError, match="step 1: the loss is nan"):
        run(config)
    assert [path.name for path in config.out.iterdir()] == ["run"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_figures_that_are_no_numbers_stop_the_run_and_leave_no_result(finetuning, method):
    config = finetuning(method=method, steps=1, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(KoGPTError, match="step 1: the model .* NaN .*; lower the learning rate"):
        run(config)
    assert not list(config.out.rglob("best.safetensors"))
    assert [path.name for path in config.out.iterdir()] == ["run"]
    assert "NaN" not in (config.folder / "log.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_that_the_last_step_spoils_are_not_published(finetuning, tmp_path, method):
    rows = write_jsonl(tmp_path / "few.jsonl", [("가", "나")] * 4)  # of which none is held out
    changes = {"steps": 1, "learning_rate": 1e38, "warmup_steps": 0, "data_dir": None}
    config = finetuning(data=(str(rows),), method=method, **changes)
    with pytest.raises(KoGPTError, match="step 1: .* is not finite; lower the learning rate"):
        run(config)
    assert [path.name for path in config.out.iterdir()] == ["run"]
    assert not list(config.folder.glob("step-*"))


def test_a_run_that_could_not_begin_leaves_a_folder_that_was_there(finetuning, tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with pytest.raises(InputRefusedError, match="none.jsonl: No such file"):
            run(finetuning(data=("none.jsonl",), data_dir=None, out=tmp_path / name))
    assert (tmp_path / "there").is_dir() and not (tmp_path / "new").exists()


def test_a_compiled_run_wants_a_compiler(finetuning, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KoGPTError, match="compile: no C.. compiler: no no-such-compiler"):
        run(finetuning(compile=True))


def test_epochs_are_counted_at_once(finetuning):
    config = finetuning(steps=None, epochs=999_999.5)
    started = Finetuning.start(config, None, io.StringIO(), Parallel())
    assert started.num_steps() == round(999_999.5 * 14)  # of 108 rows, 8 a step
    with pytest.raises(ValueError, match="epochs is 1e.308, it must be .* and at most"):
        finetuning(epochs=1e308)
