"""Whole runs of a small task: what is reported, resumed, shared among processes, compared."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from contextlib import closing
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kogpt
from kogpt.box import BOX
from kogpt.cli import main
from kogpt.commands import evaluate as evaluate_command
from kogpt.errors import KoGPTError, NotEnoughResourcesError
from kogpt.evaluation import (
    Evaluator,
    Journal,
    Protocol,
    Run,
    comparison_table,
    evaluate,
    load_task,
    measure,
    outcome_of,
    read_data,
    read_report,
    tables,
)
from kogpt.evaluation.likelihood import Query, log_likelihoods
from kogpt.evaluation.plot import draw
from kogpt.evaluation.prompting import Encoder, ask, ask_nothing, example
from kogpt.evaluation.running import prior
from kogpt.generation import score
from kogpt.pictures import families
from tests.evaluation.toy import write_task
from tests.scale import scaled


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_task(folder)
    return folder


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(*kogpt.load())


def arguments(toy: Path, *more: str) -> list[str]:
    task = str(toy / "toy.toml")
    return ["evaluate", task, "--data", str(toy), "--reference", "--device", "cpu", *more]


def run(toy: Path, *more: str) -> dict[str, Any]:
    """Runs the command in this process and reads its report."""
    output = toy / "report.json"
    output.unlink(missing_ok=True)
    assert main(arguments(toy, "--output", str(output), *more)) == 0
    return read_report(output)


def texts_of(run: Run, row, rows) -> tuple[str, list[str]]:
    """The prompt of a row after the shots of the first set, and its answers."""
    shots = [example(run.prompt, rows[index]) for index in run.sets[0].shots]
    question = ask(run.prompt, row)
    return "\n\n".join([*shots, question.context]), list(question.answers)


@pytest.mark.parametrize("prompt", ["words", "sentences"])
@pytest.mark.parametrize("shots", [0, 3])
def test_log_likelihoods_are_those_of_kogpt_score(toy, evaluator, prompt, shots):
    """The same texts scored whole by the other command: context and answer, less the context."""
    task, protocol = load_task(str(toy / "toy.toml")), Protocol((shots,), sets=1, limit=8)
    data = read_data(task, toy, protocol)
    (run,) = evaluator.run(task, task.prompt(prompt), protocol, data)
    for row, values in zip(run.rows, run.sets[0].log_likelihoods, strict=True):
        context, answers = texts_of(run, row, data.shots.rows if data.shots else [])
        wholes = score(evaluator.model, evaluator.tokenizer, [context + a for a in answers])
        (alone,) = score(evaluator.model, evaluator.tokenizer, [context])
        known = len(alone.token_ids)
        assert all(whole.token_ids[:known] == alone.token_ids for whole in wholes)
        expected = [sum(whole.logprobs[known:]) for whole in wholes]
        assert values == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_a_model_at_hand_is_measured_in_one_call(toy, evaluator):
    protocol = Protocol((0, 2), sets=2, limit=6)
    model, modes = evaluator.model.train(), []
    handle = model.transformer.register_forward_pre_hook(
        lambda module, _: modes.append(module.training)
    )
    zero, few = evaluate(
        model, evaluator.tokenizer, str(toy / "toy.toml"), toy, protocol, prompt="sentences"
    )
    handle.remove()
    assert modes and not any(modes)
    assert model.training  # as it was
    model.eval()
    assert (zero.shots, len(zero.sets), few.shots, len(few.sets)) == (0, 1, 2, 2)
    assert zero.prompt.name == "sentences" and zero.rules == ("sum", "per-token")
    (accuracy,) = measure("accuracy", zero.outcome("sum"))
    right = zero.outcome("sum").predicted[0] == [row.label for row in zero.rows]
    assert accuracy == 100 * right.mean()


def test_calibration_takes_off_what_answers_score_when_nothing_is_asked(toy, evaluator):
    task, protocol = load_task(str(toy / "toy.toml")), Protocol((2,), sets=1, limit=4)
    data = read_data(task, toy, protocol)
    (run,) = evaluator.run(task, task.prompt("words"), protocol, data)
    (answers,) = run.sets
    shots = [example(run.prompt, data.shots.rows[index]) for index in answers.shots]
    odds = []
    for blank in ask_nothing(run.prompt, run.rows[0]):
        context = "\n\n".join([*shots, blank.context])
        wholes = score(evaluator.model, evaluator.tokenizer, [context + a for a in blank.answers])
        odds.append(np.exp([whole.log_likelihood for whole in wholes]))
    expected = np.log(np.mean([pair / pair.sum() for pair in odds], axis=0))
    assert answers.priors[0] == pytest.approx(expected, abs=1e-4)
    assert answers.scores("calibrated")[0] == pytest.approx(
        np.array(answers.log_likelihoods[0]) - answers.priors[0]
    )


def test_calibration_asks_after_as_many_examples_as_the_row(tmp_path, capsys):
    """More examples fit before "N/A" than before a long row."""
    task = load_task(str(write_task(tmp_path, rows=4)))
    model, tokenizer = kogpt.load()
    protocol = Protocol((60,), sets=1, limit=4)
    data = read_data(task, tmp_path, protocol)
    long = data.sample[0]
    data.sample[0] = replace(long, fields={"text": long.fields["text"] + " 정말로" * 60})
    (run,) = Evaluator(model, tokenizer).run(task, task.prompt("words"), protocol, data)
    (answers,) = run.sets
    assert answers.fitted[0] < min(answers.fitted[1:])
    for row, fitted in ((0, answers.fitted[0]), (1, answers.fitted[1])):
        drawn = [example(run.prompt, data.shots.rows[at]) for at in answers.shots[60 - fitted :]]
        blanks = ask_nothing(run.prompt, run.rows[row])
        encoder = Encoder(tokenizer, 1024, "\n\n")
        queries = [encoder.encode(blank, drawn) for blank in blanks]
        values = [[answer.value for answer in found] for found in log_likelihoods(model, queries)]
        assert answers.priors[row] == pytest.approx(prior(values), abs=1e-4)


def test_calibration_bears_answers_that_are_far_apart():
    blanks = [[-3.0, -900.0], [-4.0, -950.0], [-2.0, -800.0]]
    assert prior(blanks) == pytest.approx([0.0, -798.0 - math.log(3)])
    assert prior([[-1.0, -2.0]]) == pytest.approx(
        [-math.log1p(math.exp(-1)), -math.log1p(math.exp(1))]
    )


def test_sums_are_divided_by_tokens_and_characters(toy, evaluator):
    task, protocol = load_task(str(toy / "toy.toml")), Protocol(limit=5)
    data = read_data(task, toy, protocol)
    (run,) = evaluator.run(task, task.prompt("sentences"), protocol, data)
    (answers,) = run.sets
    text = run.rows[0].fields["text"]
    assert answers.characters[0] == [len(f"그래서 {text} 별로였다."), len("그래서 좋았다.")]
    targets = [unicodedata.normalize("NFD", target) for target in task.prompt("sentences").targets]
    spelt = replace(task.prompt("sentences"), targets=tuple(targets))
    (again,) = next(evaluator.run(task, spelt, protocol, data)).sets
    assert again.characters == answers.characters
    values = np.array(answers.log_likelihoods)
    assert (answers.scores("per-token") == values / np.array(answers.tokens)).all()
    assert (answers.scores("per-character") == values / np.array(answers.characters)).all()


def test_batches_do_not_change_a_score(toy, evaluator):
    task = load_task(str(toy / "toy.toml"))
    values = []
    for size in (1, 5, 32):
        protocol = Protocol((3,), sets=1, batch_size=size)
        data = read_data(task, toy, protocol)
        (run,) = evaluator.run(task, task.prompt(None), protocol, data)
        values.append(run.sets[0].log_likelihoods)
    assert np.ptp(np.array(values), axis=0).max() < 1e-5


def test_a_report_holds_all_that_made_its_numbers(toy):
    report = run(toy, "--shots", "0", "2", "--sets", "3", "--seed", "4")
    assert report["model"]["name"] == "nano" and len(report["model"]["fingerprint"]) == 64
    assert report["model"]["dtype"] == "float32"
    assert report["kogpt"] == kogpt.__version__ and report["machine"]["torch"]
    zero, few = report["runs"]
    assert (len(zero["sets"]), len(few["sets"])) == (1, 3)
    assert few["protocol"]["seed"] == 4 and few["protocol"]["shots"] == 2
    assert len(few["prompt"]["sha256"]) == len(few["task_sha256"]) == 64
    assert few["scored"]["rows"] == len(few["rows"]) == len(few["gold"]) == 40
    for answers in few["sets"]:
        assert len(answers["shots"]) == 2 and len(answers["log_likelihoods"]) == 40
    # Every figure follows from the rows' scores.
    for result in few["results"]:
        predicted = outcome_of(few, result["scoring"]).predicted
        if result["metric"] == "accuracy":
            assert result["sets"] == [100 * np.mean(p == np.array(few["gold"])) for p in predicted]
        assert result["mean"] == pytest.approx(np.mean(result["sets"]))
        assert result["deviation"] == pytest.approx(np.std(result["sets"], ddof=1))
        assert result["interval"][0] <= result["mean"] <= result["interval"][1]


def test_the_table_marks_what_was_measured_and_what_published(toy, capsys):
    run(toy, "--shots", "0", "3", "--sets", "2", "--scoring", "sum")
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == ["| **nano**", "| **nano**", "| Somebody 1B"]
    assert [row.split(" | ")[2] for row in rows] == ["0", "3", "3"]
    assert rows[0].endswith("| measured |") and rows[2].endswith(
        "| 77.7 |  |  |  | published [1] |"
    )
    assert " ± " in rows[1] and " ± " not in rows[0]
    assert lines[-1] == "[1] nobody."


def test_shots_that_do_not_fit_are_told(tmp_path, capsys):
    write_task(tmp_path, rows=6)
    lines = (tmp_path / "toy_train.tsv").read_text(encoding="utf-8").splitlines()
    long = [line.replace("\t", "\t" + "길고 긴 이야기 " * 60, 1) for line in lines[1:]]
    (tmp_path / "toy_train.tsv").write_text("\n".join([lines[0], *long]), encoding="utf-8")
    report = run(tmp_path, "--shots", "9", "--sets", "1")
    fitted = report["runs"][0]["sets"][0]["fitted"]
    assert 0 < max(fitted) < 9
    told = next(line for line in capsys.readouterr().out.splitlines() if "9 shots" in line)
    assert f"{min(fitted)} to {max(fitted)} fit the context" in told and "100% of the rows" in told


def test_rows_that_exceed_the_context_are_left_out_and_told(tmp_path, capsys):
    write_task(tmp_path, rows=6)
    with (tmp_path / "toy_test.tsv").open("a", encoding="utf-8") as file:
        file.write(f"6\t{'아주 긴 글 ' * 600}\t1\n")
    report = run(tmp_path, "--prompt", "words", "sentences")
    for one in report["runs"]:
        assert one["too_long"] == [6] and 6 not in one["rows"]
    lines = capsys.readouterr().out.splitlines()
    assert "- 7 of 7 rows of toy_test.tsv" in lines
    for prompt in ("words", "sentences"):
        assert f"- prompt {prompt}: left out 1 rows that alone exceed the context" in lines


def test_rows_of_equal_answers_are_told(tmp_path, capsys):
    path = write_task(tmp_path, rows=6)
    text = path.read_text(encoding="utf-8").replace(
        '" 그래서 {text} 별로였다."', '" 그래서 {text}"'
    )
    path.write_text(text, encoding="utf-8")
    with (tmp_path / "toy_test.tsv").open("a", encoding="utf-8") as file:
        file.write("6\t좋았다.\t1\n")
    report = run(tmp_path, "--prompt", "words", "sentences")
    assert [one["equal_answers"] for one in report["runs"]] == [[], [6]]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "equal" in line] == [
        "- prompt sentences: 1 rows have equal answers, the first of which counts"
    ]


def test_pictures_are_drawn(toy, tmp_path):
    run(toy, "--plot", str(tmp_path / "pictures"), "--shots", "0", "1")
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["toy-words-0.png", "toy-words-1.png"]
    for name in names:
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_names_in_pictures_are_letters(toy, tmp_path, recwarn):
    report = run(toy, "--shots", "0")
    of_one = {**report["runs"][0], "title": "a$b_^$ 영화", "labels": ["부정$", "$^긍정"]}
    path = draw(of_one, "모델$_$", tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert families("영화") == families("") or not list(recwarn)  # or no font here has Hangul


def without_circumstances(report: dict[str, Any]) -> str:
    """What must not depend on how the work was done."""
    return json.dumps(report["runs"], sort_keys=True)


# Runs the command line, and dies without a word right after so many batches.
DYING = """
import os, signal, sys
from kogpt.cli import main
from kogpt.evaluation.journal import Journal

left, put = int(sys.argv.pop(1)), Journal.put

def put_and_die(*arguments):
    global left
    put(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.put = put_and_die
sys.exit(main())
"""

KOGPT = ("-m", "kogpt")


def finish(toy: Path, output: Path, *program: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, or in several."""
    sizes = ("--shots", "4", "--sets", "2", "--batch-size", "2")
    options = (*sizes, "--prompt", "words", "tidied", "--output", str(output))
    return subprocess.run(
        [sys.executable, *program, *arguments(toy, *options)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def whole(toy) -> dict[str, Any]:
    """The report of a run that nothing disturbs."""
    output = toy / "whole.json"
    process = finish(toy, output, *KOGPT)
    assert process.returncode == 0, process.stderr
    return read_report(output)


@pytest.mark.parametrize("batches", [7, *(range(1, scaled(1, 12)))])
def test_a_killed_run_goes_on_where_it_was(toy, whole, tmp_path, batches):
    output, journal = tmp_path / "report.json", tmp_path / ".report.json.journal-0"
    killed = finish(toy, output, "-c", DYING, str(batches))
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    with journal.open("a", encoding="utf-8") as file:
        file.write('\n{"batch": "cut sho')  # as a crash in the middle of a write leaves it
    again = finish(toy, output, *KOGPT)
    assert again.returncode == 0, again.stderr
    assert f"going on: {batches} batches are done already" in again.stderr
    assert without_circumstances(read_report(output)) == without_circumstances(whole)
    assert not list(tmp_path.glob(".report.json.journal-*"))


def test_processes_under_torchrun_share_the_rows_and_give_the_same_numbers(toy, whole, tmp_path):
    output = tmp_path / "report.json"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    process = finish(toy, output, *launcher, *KOGPT)
    assert process.returncode == 0, process.stderr
    assert without_circumstances(read_report(output)) == without_circumstances(whole)
    assert process.stdout.count("### Toy") == 1  # one of them speaks


def test_another_model_takes_nothing_from_a_journal(toy, tmp_path):
    """A batch is named by what was read and by the model that read it."""
    from kogpt.evaluation import Journal, Query

    report, batch = tmp_path / "report.json", [Query((1, 2), ((3,),))]
    with closing(Journal(report, "one model")) as first:
        first.put(first.name(batch), [[-1.0]])
    assert Journal(report, "one model", None).get(first.name(batch)) == [[-1.0]]
    other = Journal(report, "another")
    assert other.get(other.name(batch)) is None


def test_a_batch_is_named_by_where_its_answers_begin():
    journal, cuts = Journal(None, ""), [Query((1, 2), ((3,),)), Query((1,), ((2, 3),))]
    assert len({journal.name([query]) for query in cuts}) == 2


def test_a_journal_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(KoGPTError, match="report.json.journal-0: cannot be written"):
        Journal(tmp_path / "none" / "report.json", "model")


def test_one_run_at_a_time_writes_a_report(toy, tmp_path, capsys):
    """Another is told so at once, and leaves what the first has computed."""
    report = tmp_path / "report.json"
    with closing(Journal(report, "model")) as first:
        first.put("a", [[-1.0]])
        with pytest.raises(KoGPTError, match="report.json.journal-0: locked: another process"):
            Journal(report, "model")
        command = ["evaluate", str(toy / "toy.toml"), "--data", str(toy), "--output", str(report)]
        assert main(command) == 1
        assert "locked" in capsys.readouterr().err and first.done == 1
    assert main([*command, "--limit", "2", "--batch-size", "1"]) == 0
    assert sorted(tmp_path.glob("*report*")) == [report]


def test_a_full_disk_is_told_by_the_name_of_the_file(tmp_path, monkeypatch):
    with pytest.raises(NotEnoughResourcesError, match="report.json.journal-0: cannot be written"):
        with closing(Journal(tmp_path / "report.json", "model")) as journal:
            path, file = journal._own
            monkeypatch.setattr(journal, "_own", (path, Full(file.fileno(), "a", closefd=False)))
            journal.put("a", [[-1.0]])


class Full(FileIO):
    def write(self, data: Any) -> int:
        return super().write(data[:3])  # as the system does of what still fits


def test_a_run_is_refused_whose_report_has_come_meanwhile(toy, tmp_path, monkeypatch, capsys):
    report = tmp_path / "report.json"
    load = evaluate_command.load

    def load_meanwhile(*args: Any, **more: Any) -> Any:
        report.write_text("{}")
        return load(*args, **more)

    monkeypatch.setattr(evaluate_command, "load", load_meanwhile)
    command = ["evaluate", str(toy / "toy.toml"), "--data", str(toy), "--output", str(report)]
    assert main(command) == 3
    assert "report.json: exists already" in capsys.readouterr().err
    assert report.read_text() == "{}" and sorted(tmp_path.glob(".*")) == []


def test_progress_counts_every_row_once(toy, evaluator, tmp_path):
    """Also those that the journal has of an earlier run."""
    task, protocol = load_task(str(toy / "toy.toml")), Protocol(limit=8)
    told: list[int] = []
    for _ in range(2):
        watch = SimpleNamespace(update=told.append)
        with closing(Journal(tmp_path / "report.json", "model")) as journal:
            watched = Evaluator(evaluator.model, evaluator.tokenizer, journal, watch=watch)
            data = read_data(task, toy, protocol)
            list(watched.run(task, task.prompt("sentences"), protocol, data))
        assert sum(told) == 8
        told.clear()


def test_a_journal_may_be_named_by_what_is_a_pattern(tmp_path):
    report = tmp_path / "report[1].json"
    with closing(Journal(report, "model")) as written:
        written.put("a", [[-1.0]])
    found = Journal(report, "model")
    assert found.get("a") == [[-1.0]]
    found.remove()
    assert not list(tmp_path.iterdir())


def test_a_journal_knows_changed_weights_and_changed_code(toy, tmp_path, monkeypatch, capsys):
    """A run that ended early is gone on with by the same model and the same code alone."""
    from kogpt.evaluation import provenance

    model, output = tmp_path / "model", tmp_path / "report.json"
    shutil.copytree(BOX, model)
    command = ["evaluate", str(toy / "toy.toml"), "--data", str(toy), "--model", str(model)]
    command += ["--output", str(output), "--limit", "4", "--prompt", "words"]
    monkeypatch.setattr(Journal, "remove", lambda self: None)

    def goes_on() -> bool:
        output.unlink(missing_ok=True)
        assert main(command) == 0
        return "going on" in capsys.readouterr().err

    assert [goes_on(), goes_on()] == [False, True]
    weights = next(model.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-2:] = bytes(2)
    weights.write_bytes(data)
    assert [goes_on(), goes_on()] == [False, True]
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "a.py").write_text("1")
    monkeypatch.setattr(provenance, "PACKAGE", sources)
    assert [goes_on(), goes_on()] == [False, True]
    (sources / "a.py").write_text("2")
    assert [goes_on(), goes_on()] == [False, True]


def test_a_journal_is_read_past_what_is_damaged(tmp_path):
    from kogpt.evaluation import Journal

    report = tmp_path / "report.json"
    (tmp_path / ".report.json.journal-0").write_bytes(
        b'\n{"model": "a", "val\xff\n{"batch": "b"}\n[1]\n{"batch": [], "values": 3}\n'
        + b"[" * 100_000
    )
    with closing(Journal(report, "model")) as written:
        written.put("c", [[-1.0]])
    found = Journal(report, "model")
    assert (found.done, found.get("b"), found.get("c")) == (1, None, [[-1.0]])


def test_reports_are_compared_row_by_row(toy, tmp_path, capsys):
    for name, prompt in (("a", "words"), ("b", "words")):
        report = run(toy, "--shots", "0", "--prompt", prompt)
        (tmp_path / f"{name}.json").write_text(json.dumps(report), encoding="utf-8")
    capsys.readouterr()
    assert main(["evaluate", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nano (A) | nano (B)" in lines[0]
    for line in lines[2:]:
        assert line.endswith("| +0.0 | +0.0 to +0.0 | 1.000 |")


def test_a_comparison_tells_what_differs_besides_the_models(toy, tmp_path, capsys):
    files = []
    for name, more in (("a", []), ("b", ["--seed", "3", "--separator", "##"])):
        report = run(toy, "--shots", "2", "--prompt", "words", "--sets", "1", *more)
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(report), encoding="utf-8")
    capsys.readouterr()
    assert main(["evaluate", "--compare", *map(str, files)]) == 0
    where = "- Toy, prompt words, 2 shots: "
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{where}seed is 0 in the first and 3 in the second",
        f"{where}separator is '\\n\\n' in the first and '##' in the second",
    ]


def test_adapters_are_named_beside_the_model(whole):
    report = {**whole, "model": {"name": "nano", "adapters": [{"name": "a"}, {"name": "b"}]}}
    assert "| **nano + a + b** |" in tables(report)
    assert "| nano + a + b | " in comparison_table(report, whole).splitlines()[0]


DAMAGES = {
    "an adapter without a name": lambda report: {
        **report,
        "model": {"name": "nano", "adapters": [{}]},
    },
    "no list of runs": lambda report: {**report, "runs": 5},
    "an unknown key": lambda report: broken(report, lambda run: run["sets"][0].update(x=1)),
    "a prompt that is a string": lambda report: broken(report, lambda run: run.update(prompt="a")),
    "NaN": lambda report: broken(
        report, lambda run: run["sets"][0]["log_likelihoods"][0].__setitem__(0, math.nan)
    ),
    "rows of unequal lengths": lambda report: broken(
        report, lambda run: run["sets"][0]["log_likelihoods"][0].append(-1.0)
    ),
    "fewer right labels": lambda report: broken(report, lambda run: run["gold"].pop()),
    "a label beyond all": lambda report: broken(
        report, lambda run: run["gold"].append(run["gold"].pop() + 7)
    ),
    "fewer rows": lambda report: broken(report, lambda run: run["rows"].pop()),
    "no name of a prompt": lambda report: broken(report, lambda run: run["prompt"].pop("name")),
    "no shots": lambda report: broken(report, lambda run: run["protocol"].pop("shots")),
    "a task that is a list": lambda report: broken(report, lambda run: run.update(task=[])),
    "examples that are text": lambda report: broken(report, lambda run: run.update(examples="a")),
    "no scale": lambda report: broken(
        report, lambda run: run.update(metrics=["spearman"], degrees=[])
    ),
    "no hash": lambda report: broken(report, lambda run: run.update(scored={})),
    "shots that are no number": lambda report: broken(
        report, lambda run: run["sets"][0].update(fitted=["0"] * len(run["rows"]))
    ),
    "f1 of three labels": lambda report: broken(
        report, lambda run: run.update(metrics=["f1"], labels=["a", "b", "c"])
    ),
    "an unknown metric": lambda report: broken(report, lambda run: run.update(metrics=["foo"])),
}


def broken(report: dict, breaks) -> dict:
    breaks(report["runs"][0])
    return report


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_report_is_refused_in_one_line(damage, whole, tmp_path, capsys):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(DAMAGES[damage](json.loads(json.dumps(whole)))), encoding="utf-8")
    capsys.readouterr()
    assert main(["evaluate", "--compare", str(path), str(path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kogpt: {path}: damaged: ")


def test_a_report_nested_too_deeply_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "report.json"
    path.write_text("[" * 100_000)
    assert main(["evaluate", "--compare", str(path), str(path)]) == 3
    assert capsys.readouterr().err == f"kogpt: {path}: not JSON (nested too deeply)\n"
