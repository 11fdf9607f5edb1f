"""`kogpt evaluate`: what it refuses, shows, lists and prints."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from kogpt import load
from kogpt.adapters import LoRAConfig, attach_lora, write_adapter
from kogpt.adapters.head import attach_head
from kogpt.box import BOX
from kogpt.checkpoint import load_model, write_checkpoint
from kogpt.commands import evaluate as command
from kogpt.evaluation import Protocol, load_preset, load_task, preset_names, read_data, task_names
from kogpt.evaluation.prompting import Encoder, ask, example
from kogpt.evaluation.running import draw_set
from kogpt.model.variants import read_config
from kogpt.tokenizer import load_tokenizer
from tests.cli.test_commands import kogpt, refusal
from tests.evaluation.tiny import SCORED, SHOTS, TASK, write_table, write_task
from tests.model import swaps


@pytest.fixture
def reviews(tmp_path):
    """The arguments that run the made-up task."""
    return "evaluate", str(write_task(tmp_path)), "--data", str(tmp_path)


def strict(text):
    """JSON without what JSON does not have."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--prompt", "longer"], "task reviews has no prompt 'longer'; there are short, long"),
        (["--prompt", "long", "longer"], "task reviews has no prompt 'longer'"),
        (["--preset", "polyglott"], "no preset 'polyglott'; there are hyperclova, lm-eval-303"),
        (
            ["--preset", "polyglot"],
            "argument --preset: polyglot has no reviews; has kobest_boolq, kobest",
        ),
        (["--shots", "-1"], "argument --shots: is -1, it must be a whole number of at least 0"),
        (
            ["--shots", "0", "-2"],
            "argument --shots: is -2, it must be a whole number of at least 0",
        ),
        (["--sets", "0"], "argument --sets: is 0, it must be a whole number of at least 1"),
        (["--limit", "0"], "argument --limit: is 0, it must be a whole number of at least 1"),
        (
            ["--batch-size", "0"],
            "argument --batch-size: is 0, it must be a whole number of at least 1",
        ),
        (
            ["--max-shot-tokens", "-3"],
            "argument --max-shot-tokens: is -3, it must be a whole number",
        ),
        (["--show", "0"], "argument --show: must be at least 1, is 0"),
        (["--show", "-1"], "argument --show: must be at least 1, is -1"),
        (["--device", "gpu9"], "argument --device: no such device: 'gpu9'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(more, words, reviews):
    assert words in refusal(*reviews, *more, code=2)


def test_a_run_needs_a_task_and_its_data(reviews, tmp_path, monkeypatch):
    which = refusal("evaluate", "--data", str(tmp_path), code=2)
    assert which == f"kogpt: which task? There are {', '.join(task_names())}, or a .toml file"
    monkeypatch.chdir(tmp_path)
    assert refusal(*reviews[:2], code=3).startswith("kogpt: data/")
    assert "no task 'nsmcc'; there are klue_sts" in refusal(
        "evaluate", "nsmcc", "--data", str(tmp_path), code=2
    )


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--scoring", "product"], "'product'"),
        (["--shots", "many"], "'many'"),
        (["--compare", "one.json"], "--compare"),
        (["--dtype", "int8"], "'int8'"),
    ],
)
def test_what_the_parser_refuses_is_exit_code_2(more, word, reviews):
    done = kogpt(*reviews, *more, code=2)
    assert word in done.stderr.splitlines()[-1] and done.stdout == ""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--scoring", "sum", "sum"], "argument --scoring: must differ, are sum, sum"),
        (["--shots", "1", "1"], "argument --shots: must differ, are 1, 1"),
        (["--prompt", "short", "short"], "argument --prompt: short is given twice"),
        (["--list"], "argument TASK: of no use with --list"),
        (["--compare", "a", "b"], "argument TASK: of no use with --compare"),
        (["--show", "1", "--json"], "argument --json: of no use with --show"),
        (["--show", "1", "--output", "x"], "argument --output: of no use with --show"),
        (["--output", ""], "argument --output: is empty"),
        (["--plot", ""], "argument --plot: is empty"),
    ],
)
def test_what_would_say_nothing_or_the_same_twice_is_wrong_usage(more, words, reviews):
    assert refusal(*reviews, *more, code=2) == f"kogpt: {words}"


@pytest.mark.parametrize(
    "more", [["--limit", "3"], ["--model", "x"], ["--adapter", "x"], ["--prompt", "x"]], ids=str
)
def test_a_comparison_is_of_whole_reports(more):
    told = refusal("evaluate", "--compare", "a", "b", *more, code=2)
    assert told == f"kogpt: argument {more[0]}: of no use with --compare"


def test_one_thing_is_done_instead_of_running():
    told = refusal("evaluate", "--list", "--compare", "a", "b", code=2)
    assert told.startswith("kogpt: argument --compare: not allowed with argument --list")


def test_two_tasks_of_one_name_are_wrong_usage(reviews, tmp_path):
    """Pictures and comparisons would take one for the other."""
    other = tmp_path / "other"
    other.mkdir()
    copy = other / Path(reviews[1]).name
    copy.write_bytes(Path(reviews[1]).read_bytes())
    told = refusal("evaluate", str(copy), *reviews[1:], code=2)
    assert told == "kogpt: argument TASK: reviews is given twice"


def test_a_model_that_computes_nan_has_no_figures(reviews, tmp_path):
    model, _ = load()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    files = {"tokenizer.model": BOX / "tokenizer.model"}
    tensors, names = model.state_dict(), ["*"]
    broken = tmp_path / "broken"
    write_checkpoint(broken, model.config, tensors, files=files, allow_nonfinite=names)
    report = tmp_path / "report.json"
    arguments = (*reviews, "--model", str(broken), "--output", str(report))
    told = refusal(*arguments, code=1)
    assert "the model computes logits that are NaN or infinite" in told
    assert not report.exists()
    assert not list(tmp_path.glob(".report.json.journal-*"))


def test_a_report_is_never_written_over_or_lost(reviews, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("precious")
    assert f"{path}: exists already" in refusal(*reviews, "--output", str(path), code=3)
    assert path.read_text() == "precious"
    missing = tmp_path / "absent" / "report.json"
    told = refusal(*reviews, "--output", str(missing), code=2)
    assert told == f"kogpt: argument --output: no such folder: {missing.parent}"
    folder = tmp_path / "folder"
    folder.mkdir()
    told = refusal(*reviews, "--output", str(folder), code=2)
    assert told == f"kogpt: argument --output: is a folder: {folder}"
    told = refusal(*reviews, "--plot", str(path), code=2)
    assert told == f"kogpt: argument --plot: no folder: {path}"


def test_inputs_that_cannot_be_used_are_one_line_and_exit_code_3(reviews, tmp_path):
    name, data = reviews[1], reviews[3]
    assert f"{data}/x.toml: No such file" in refusal(
        "evaluate", f"{data}/x.toml", "--data", data, code=3
    )
    assert "nsmc/ratings_test.txt: no such file" in refusal(
        "evaluate", "nsmc", "--data", data, code=3
    )
    told = refusal(*reviews, "--shots", "0", "8", code=3)
    assert told.endswith(
        ": there are 7 rows to draw 8 shots from (texts that are not scored and have an answer)"
    )
    missing = str(tmp_path / "absent")
    assert missing in refusal(*reviews, "--model", missing, code=3)
    write_task(tmp_path, TASK.replace("{document}", "{text}"))
    assert f"{name}: prompts.short: no field 'text'" in refusal(*reviews, code=3)
    write_task(tmp_path)
    write_table(tmp_path / "reviews" / "scored.tsv", [("document", "label"), ("좋다", "x")])
    told = refusal(*reviews, code=3)
    assert told.endswith("reviews/scored.tsv: line 2: label is 'x'; known are 0, 1")


def test_a_prompt_longer_than_the_context_is_refused(reviews, tmp_path):
    write_table(tmp_path / "reviews" / "scored.tsv", [("document", "label"), ("긴 글 " * 900, 1)])
    assert "no row fits the context" in refusal(*reviews, code=3)
    assert "row 0: exceeds the context, is left out" in kogpt(*reviews, "--show", "1").stdout


def test_a_calibration_longer_than_the_context_is_refused(tmp_path):
    """An empty review fits the context; "N/A" in its place does not."""
    tokenizer = load_tokenizer()
    repeats = 1024 - len(tokenizer.encode("영화 한마디로 최고", bos=True)) + 1
    filled = TASK.replace("{document} 한", "{document}" + "영화" + " 영화" * repeats + " 한")
    arguments = ("evaluate", str(write_task(tmp_path, filled)), "--data", str(tmp_path))
    write_table(tmp_path / "reviews" / "scored.tsv", [("document", "label"), ("", 1)])
    assert "1 of 1 rows" in kogpt(*arguments, "--scoring", "sum").stdout
    assert "calibration asks what exceeds the context" in refusal(*arguments, code=3)


def test_the_list_names_every_task_prompt_and_preset():
    done = kogpt("evaluate", "--list")
    for name in task_names():
        task = load_task(name)
        assert f"  {name}: {task.about}\n" in done.stdout
        for prompt in task.prompts.values():
            assert f"    {prompt.name}: {prompt.source}\n" in done.stdout
    for name in preset_names():
        preset = load_preset(name)
        assert f"  {name}: {preset.title} ({', '.join(preset.tasks)})\n" in done.stdout
        for word, facts in (("known", preset.known), ("assumed", preset.assumed)):
            assert all(f"    {word}: {fact}" in done.stdout.splitlines() for fact in facts)
    assert done.stderr == ""


def blocks(text):
    """Headings and texts of what `--show` prints."""
    parts = re.split(r"^=== (.*) ===\n", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], (part.rstrip("\n") for part in parts[2::2]), strict=True))


@pytest.mark.parametrize("prompt", ["short", "long"])
@pytest.mark.parametrize("separator", ["\n\n", "\n###\n"])
def test_what_is_shown_is_what_the_model_reads(prompt, separator, reviews, tmp_path):
    """The printed text against the decoded ids of what is put to the model."""
    long = [("길고 긴 이야기 " * 60 + text, label) for text, label in SHOTS]
    write_table(tmp_path / "reviews" / "shots.tsv", [("document", "label"), *long])
    options = ("--shots", "0", "2", "9", "--seed", "3", "--prompt", prompt, "--show", "9")
    written = separator.replace("\n", "\\n")
    done = kogpt(*reviews, *options, "--separator", written)
    found = blocks(done.stdout)
    task, tokenizer = load_task(reviews[1]), load_tokenizer()
    how = task.prompts[prompt]
    encoder = Encoder(tokenizer, 1024, separator)
    for shots in (0, 2, 9):
        protocol = Protocol((shots,), seed=3, separator=separator)
        data = read_data(task, tmp_path, protocol)
        drawn = draw_set(task, how, protocol, data, 0, tokenizer)
        for row in data.sample:
            query, fitted = encoder.fit(ask(how, row), [example(how, one) for one in drawn])
            heading, text = found.pop(0)
            assert heading == (
                f"reviews, prompt {prompt}, {fitted} of {shots} shots, row {row.index}, "
                f"{query.num_read} tokens, right: {task.labels[row.label]}"
            )
            assert fitted == shots or (shots == 9 and 0 < fitted < 9)
            context, answers = text.removesuffix("⟩").rsplit("⟨", 1)
            for answer, ids in zip(answers.split(" | "), query.continuations, strict=True):
                assert tokenizer.decode([*query.context, *ids]) == context + answer
    assert not found and done.stderr == ""


def test_as_many_prompts_are_shown_as_asked_and_no_model_is_loaded(reviews, monkeypatch):
    monkeypatch.delattr(command, "load")
    for count in (1, 3, 99):
        done = kogpt(*reviews, "--show", str(count), "--shots", "0", "1", "--prompt", "all")
        assert len(blocks(done.stdout)) == 2 * 2 * min(count, len(SCORED))
    rows = [re.search(r"row (\d+)", heading)[1] for heading, _ in blocks(done.stdout)]
    assert rows == ["0", "1", "2", "3", "4"] * 4


def test_a_task_of_ones_own_runs_from_one_file(reviews):
    done = kogpt(*reviews, "--shots", "0", "2", "--sets", "3")
    lines = done.stdout.splitlines()
    assert lines[:3] == ["### Reviews", "", "- 5 of 5 rows of scored.tsv"]
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| **")]
    assert [row[:4] for row in cells] == [
        ["**nano**", "short", shots, rule] for shots in "02" for rule in ("sum", "calibrated")
    ]
    assert all(row[-1] == "measured" for row in cells)


def test_a_head_that_no_prompt_asks_is_noted(reviews, tmp_path):
    note = "note: there is the head of a classifier, which no prompt asks: kogpt classify does"
    assert note not in kogpt(*reviews).stderr
    model, _ = load()
    attach_head(model, 2)
    write_checkpoint(tmp_path / "whole", model.config, model.state_dict())
    attach_lora(model, LoRAConfig())
    write_adapter(tmp_path / "head", model)
    assert note in kogpt(*reviews, "--adapter", str(tmp_path / "head")).stderr
    for path in BOX.glob("*token*"):
        shutil.copy(path, tmp_path / "whole")
    assert note in kogpt(*reviews, "--model", str(tmp_path / "whole")).stderr


def test_json_is_one_object_and_nothing_else(reviews, tmp_path):
    path = tmp_path / "report.json"
    options = ("--shots", "2", "--sets", "2", "--limit", "3", "--prompt", "all")
    done = kogpt(*reviews, *options, "--json", "--output", str(path))
    (line,) = done.stdout.splitlines()
    report = strict(line)
    assert report == strict(path.read_text(encoding="utf-8"))
    assert [run["prompt"]["name"] for run in report["runs"]] == ["short", "long"]
    for run in report["runs"]:
        assert len(run["rows"]) == 3 and len(run["sets"]) == 2
        assert run["labels"] == ["bad", "good"]
        assert run["protocol"]["limit"] == 3 and run["protocol"]["shots"] == 2
        assert run["gold"] == [SCORED[row][1] for row in run["rows"]]
    assert "한마디로" in line and "\\u" not in line
    assert list(tmp_path.glob(".report*")) == []


def test_a_metric_that_is_undefined_is_still_json(tmp_path):
    text = TASK.replace("[fields]\n", '[fields]\ndegree = "label"\n')
    path = write_task(tmp_path, text.replace('["accuracy"]', '["spearman", "f1", "macro_f1"]'))
    done = kogpt("evaluate", str(path), "--data", str(tmp_path), "--limit", "1", "--json")
    (run,) = strict(done.stdout)["runs"]
    assert [result["mean"] for result in run["results"] if result["metric"] == "spearman"] == [0, 0]


def test_options_change_a_preset_and_it_can_name_the_tasks(tmp_path):
    task = load_task("nsmc")
    rows = [("id", "document", "label"), *((i, f"영화 {i}", i % 2) for i in range(40))]
    write_table(tmp_path / task.scored.file, rows[:6])
    write_table(tmp_path / task.shots[0].file, rows[:1] + rows[6:])
    arguments = ("evaluate", "--preset", "lm-eval-338", "--data", str(tmp_path), "--json")
    report = strict(kogpt(*arguments, "--shots", "1", "--sets", "1").stdout)
    (run,) = report["runs"]
    assert (run["task"], run["prompt"]["name"]) == ("nsmc", "harness-338")
    assert (run["protocol"]["shots"], run["protocol"]["scoring"]) == (1, ["sum"])
    assert report["preset"]["name"] == "lm-eval-338"
    more = ("--sets", "2", "--prompt", "kogpt", "--shots", "2", "3", "--scoring", "per-token")
    runs = strict(kogpt(*arguments, *more).stdout)["runs"]
    assert [(run["protocol"]["shots"], len(run["sets"])) for run in runs] == [(2, 2), (3, 2)]
    assert {run["prompt"]["name"] for run in runs} == {"kogpt"}
    assert {tuple(run["protocol"]["scoring"]) for run in runs} == {("per-token",)}
    assert "40 shots" in refusal(*arguments, code=3)  # the preset's, of the 35 rows there are


def write_report(path, arguments, *more):
    kogpt(*arguments, "--output", str(path), *more)
    return str(path)


def test_reports_of_the_same_rows_are_compared(reviews, tmp_path):
    paths = [
        write_report(tmp_path / f"{seed}.json", reviews, "--shots", "0", "1", "--seed", seed)
        for seed in ("0", "1")
    ]
    done = kogpt("evaluate", "--compare", *paths)
    head, _, *lines, empty, note = done.stdout.splitlines()
    assert "| nano (A) | nano (B) | difference |" in head
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert [row[:5] for row in cells] == [
        ["Reviews", "short", shots, rule, "accuracy"]
        for shots in "01"
        for rule in ("sum", "calibrated")
    ]
    assert all(row[7:] == ["+0.0", "+0.0 to +0.0", "1.000"] for row in cells[:2])
    seeds = "- Reviews, prompt short, 1 shots: seed is 0 in the first and 1 in the second"
    assert (empty, note) == ("", seeds)


def test_reports_that_cannot_be_compared_are_refused(reviews, tmp_path):
    one = write_report(tmp_path / "one.json", reviews)
    fewer = write_report(tmp_path / "two.json", reviews, "--limit", "2")
    other = write_report(tmp_path / "three.json", reviews, "--prompt", "long")
    for path, words in (
        (
            fewer,
            "reviews: the reports were not scored on the same rows: 5 of scored.tsv and 2 of"
            " scored.tsv",
        ),
        (other, "the reports have no task, prompt and number of shots in common"),
        (reviews[1], f"{reviews[1]}: not JSON (Expecting value: line 1"),
        (str(tmp_path / "absent.json"), f"{tmp_path}/absent.json: No such file"),
        (str(tmp_path), f"{tmp_path}: Is a directory"),
    ):
        assert words in refusal("evaluate", "--compare", one, path, code=3)
    path = tmp_path / "odd.json"
    contents = "[]", "{}", '{"format": "kogpt-evaluation-1"}', '{"format": "2", "runs": [1]}'
    for content in contents:
        path.write_text(content)
        told = refusal("evaluate", "--compare", str(path), one, code=3)
        assert told == f"kogpt: {path}: no report of kogpt evaluate (kogpt-evaluation-1)"


@pytest.mark.parametrize("metric", ["spearman", "accuracy"])
def test_unequally_many_sets_are_not_compared(metric, tmp_path):
    text = TASK.replace("[fields]\n", '[fields]\ndegree = "label"\n')
    path = write_task(tmp_path, text.replace('"accuracy"', f'"{metric}"'))
    arguments = ("evaluate", str(path), "--data", str(tmp_path), "--shots", "1")
    one = write_report(tmp_path / "one.json", arguments, "--sets", "1")
    two = write_report(tmp_path / "two.json", arguments, "--sets", "2")
    told = refusal("evaluate", "--compare", one, two, code=3)
    assert told.endswith("rows change sides between equally many sets of shots, not 1 and 2")


def test_scales_that_differ_are_not_compared_and_metrics_of_both_are(tmp_path):
    scaled = TASK.replace("[fields]\n", '[fields]\ndegree = "label"\n')
    paths = {}
    for name, metrics in (("plain", '"accuracy"'), ("both", '"accuracy", "spearman"')):
        text = (scaled if name == "both" else TASK).replace('"accuracy"', metrics, 1)
        task = write_task(tmp_path, text)
        arguments = ("evaluate", str(task), "--data", str(tmp_path))
        paths[name] = write_report(tmp_path / f"{name}.json", arguments)
    for pair in (("both", "plain"), ("plain", "both")):
        done = kogpt("evaluate", "--compare", *(paths[name] for name in pair))
        assert "accuracy" in done.stdout and "Spearman" not in done.stdout
    report = json.loads((tmp_path / "both.json").read_text())
    report["runs"][0]["degrees"].reverse()
    (tmp_path / "turned.json").write_text(json.dumps(report))
    told = refusal("evaluate", "--compare", paths["both"], str(tmp_path / "turned.json"), code=3)
    assert "the reports were not scored on the same rows" in told


def test_a_tokenizer_of_another_model_is_refused(reviews, tmp_path):
    whole = load_model().state_dict()
    state = {n: value[:5000] if len(value) == 8000 else value for n, value in whole.items()}
    config = dataclasses.replace(read_config(BOX / "config.json"), vocab_size=5000)
    files = {path.name: path for path in load_tokenizer().files}
    write_checkpoint(tmp_path / "model", config, state, files=files)
    told = refusal(*reviews, "--model", str(tmp_path / "model"), code=3)
    assert told.endswith("the tokenizer has 8000 ids, the model 5000: they do not belong together")


def test_damaged_reports_are_refused_and_so_is_nothing_to_compare(reviews, tmp_path):
    path = write_report(tmp_path / "one.json", reviews, "--scoring", "sum")
    report = json.loads((tmp_path / "one.json").read_text())

    def told(name, change):
        changed = json.loads(json.dumps(report))
        change(changed)
        (tmp_path / name).write_text(json.dumps(changed))
        return refusal("evaluate", "--compare", path, str(tmp_path / name), code=3)

    cut = told("cut.json", lambda changed: changed["runs"][0].pop("degrees"))
    assert cut.endswith("cut.json: damaged: a run has no degrees")
    assert "a run has no" in told("odd.json", lambda changed: changed.update(runs=[1]))
    for change in (lambda changed: changed.pop("model"), lambda c: c["model"].update(adapters=5)):
        assert told("nameless.json", change).endswith("damaged: no name of the model")
    turned = told("gold.json", lambda changed: changed["runs"][0]["gold"].reverse())
    assert "the reports were not scored on the same rows" in turned
    rules = told(
        "rule.json", lambda changed: changed["runs"][0]["protocol"].update(scoring=["per-token"])
    )
    assert rules.endswith("the reports have no rule of scoring in common")


def test_an_architecture_takes_nothing_from_the_journal_of_another(reviews, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    output = ("--scoring", "sum", "--output", str(tmp_path / "report[1].json"))
    with monkeypatch.context() as interrupted:
        interrupted.setattr(command, "make_report", stop)
        kogpt(*reviews, *output, code=130)
    assert (tmp_path / ".report[1].json.journal-0").exists()
    own = ("--architecture", f"{swaps.__file__}:WithHalfRotation")
    kogpt(*reviews, *output, *own)
    report = strict((tmp_path / "report[1].json").read_text())
    assert report["model"]["architecture"]["name"] == "WithHalfRotation"
    assert report["model"]["network"] == "reference"
    fresh = strict(kogpt(*reviews, "--scoring", "sum", "--json", *own).stdout)
    plain = strict(kogpt(*reviews, "--scoring", "sum", "--json").stdout)
    assert report["runs"] == fresh["runs"] != plain["runs"]
    assert not list(tmp_path.glob(".*journal*"))


def test_prompts_of_a_class_of_ones_own_are_shown(reviews, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text(
        "import dataclasses\nfrom typing import ClassVar\n"
        "from kogpt.model import KoGPT, KoGPTConfig\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Config(KoGPTConfig):\n    model_type: ClassVar[str] = 'mine'\n"
        "class Mine(KoGPT):\n    config_class = Config\n"
    )
    folder = tmp_path / "model"
    shutil.copytree(BOX, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mine"}))
    asked = (*reviews, "--show", "1", "--model", str(folder))
    own = ("--architecture", f"{source}:Mine")
    assert kogpt(*asked, *own).stdout == kogpt(*reviews, "--show", "1").stdout


def test_an_answer_of_nothing_is_refused_by_row(tmp_path):
    text = TASK.replace('targets = [" 최악", " 최고"]', 'targets = [" 최악", " {document}"]')
    path = write_task(tmp_path, text)
    told = refusal("evaluate", str(path), "--data", str(tmp_path), code=3)
    assert told.endswith("scored.tsv: row 2: an answer is empty")


def test_a_folder_for_pictures_that_cannot_be_is_told_before_anything_is_computed(
    reviews, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "run_all", lambda *_: pytest.fail("it has begun"))
    told = refusal(*reviews, "--plot", str(tmp_path / "file" / "plots"), code=2)
    assert told == f"kogpt: argument --plot: {tmp_path / 'file' / 'plots'}: Not a directory"
