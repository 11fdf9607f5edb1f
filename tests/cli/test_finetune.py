"""`kogpt finetune` as a person meets it."""

import json

import pytest

from tests.cli.test_commands import kogpt, refusal
from tests.training.examples import reviews, write_jsonl, write_task

FEW = ("--steps", "3", "--batch-size", "4", "--log-every", "1", "--no-curve", "--no-tensorboard")


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path, reviews(60, 0), reviews(20, 1000))


@pytest.fixture
def finetune(tmp_path, task):
    """The arguments of a small run, some of them changed."""

    def arguments(*more: str, **changes: str) -> list[str]:
        given = {"model": "kogpt/nano", "data": str(task), "data-dir": str(tmp_path)}
        given |= {"method": "lora", "output": str(tmp_path / "out"), **changes}
        if given["data"].endswith(".jsonl"):
            del given["data-dir"]
        named = [part for name, value in given.items() for part in (f"--{name}", value)]
        return ["finetune", *named, *FEW, *more]

    return arguments


def test_a_result_is_told_on_stdout_and_progress_on_stderr(finetune, tmp_path):
    done = kogpt(*finetune())
    first, validation, test = done.stdout.splitlines()
    assert first == "weights of step 3"
    assert validation.startswith("validation, 6 rows: accuracy ")
    assert test.startswith("test, 20 rows: accuracy ")
    assert "49,152 of 8,883,008 parameters trained, 54 examples, 6 held out; 3 steps" in done.stderr
    text = kogpt("generate", "--adapter", str(tmp_path / "out"), "영화", "--max-new-tokens", "4")
    assert text.stdout.startswith("영화")


def test_json_is_the_results_and_nothing_else(finetune, tmp_path):
    done = kogpt(*finetune("--json", **{"test-rows": "5"}))
    results = json.loads(done.stdout)
    assert results == json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["test"]["rows"] == 5


def test_an_interrupted_run_wants_to_be_resumed(finetune):
    kogpt(*finetune())
    assert "exists already" in refusal(*finetune(), code=3)
    assert kogpt(*finetune("--resume")).stdout.startswith("weights of step 3")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--rank", "0"), "argument --rank: is 0"),
        (("--targets", "wte"), "argument --targets: names 'wte'"),
        (("--objective", "completion"), "argument --objective: completion is one of files"),
        (("--objective", "regression"), "the rows of reviews have no degree"),
        (("--prompt", "long"), "no prompt 'long'; there are short"),
        (
            ("--learning-rate", "-1"),
            "argument --learning-rate: is -1.0, it must be a finite number above 0",
        ),
        (("--sequence-length", "4096"), "argument --sequence-length: is 4096, it must be at most"),
        (
            ("--weights", "bfloat16-master"),
            "argument --weights: is 'bfloat16-master', which goes with precision bfloat16",
        ),
        (("--virtual-tokens", "3"), "argument --virtual-tokens: only with --method p-tuning or"),
        (
            ("--method", "prompt-tuning", "--virtual-tokens", "0"),
            "argument --virtual-tokens: is 0, it must",
        ),
        (
            ("--method", "p-tuning", "--encoder-width", "0"),
            "argument --encoder-width: is 0, it must",
        ),
        (
            ("--data", "texts.txt"),
            "argument --data: is texts.txt: neither a task nor .jsonl or .jsonl.xz with",
        ),
        (("--encoder", "mlp"), "argument --encoder: only with --method p-tuning"),
        (("--objective", "head", "--prompt", "short"), "--prompt: only with --objective label-wo"),
        (("--device", "foo"), "argument --device: no such device: 'foo'"),
    ],
)
def test_wrong_values_are_one_line_and_exit_code_2(finetune, more, words):
    assert words in refusal(*finetune(*more), code=2)


def test_options_of_tasks_are_refused_beside_examples(finetune, tmp_path):
    rows = finetune(data=str(write_jsonl(tmp_path / "rows.jsonl", [("가", "나")] * 9)))
    for option, value in (("--data-dir", "."), ("--prompt", "short"), ("--test-rows", "1")):
        words = f"argument {option}: only with a task as --data"
        assert words in refusal(*rows, option, value, code=2)


def test_held_out_rows_are_not_counted_where_a_task_has_a_file_of_them(finetune, tmp_path, task):
    own = task.read_text(encoding="utf-8") + '\n[validation]\nfile = "reviews/scored.tsv"\n'
    task.write_text(own, encoding="utf-8")
    words = "argument --validation-rows: the task has a file of them"
    assert words in refusal(*finetune("--validation-rows", "3"), code=2)


def test_a_shortage_of_memory_is_one_line_and_exit_code_4(finetune):
    assert "not enough memory" in refusal(*finetune("--rank", str(10**12)), code=4)


def test_what_cannot_be_used_is_one_line_and_exit_code_3(finetune, tmp_path):
    (tmp_path / "file").touch()
    out = {"output": str(tmp_path / "file" / "out")}
    assert "file/out: is no folder; choose another" in refusal(*finetune(**out), code=3)
    assert "none: no such file or folder" in refusal(
        *finetune(model=str(tmp_path / "none")), code=3
    )
    missing = finetune(data=str(tmp_path / "none.jsonl"))
    assert "none.jsonl: No such file" in refusal(*missing, code=3)
    assert "holds no integers to keep" in refusal(*finetune(method="qlora"), code=3)
    damaged = write_jsonl(tmp_path / "rows.jsonl", [("가", "나")])
    damaged.write_text("{}\n", encoding="utf-8")
    assert "line 1: 'prompt' is missing" in refusal(*finetune(data=str(damaged)), code=3)


def test_training_refuses_what_does_not_fit_the_model_as_wrong_usage(tmp_path):
    text = tmp_path / "texts.txt"
    text.write_text("이 영화는 재미있다\n" * 20, encoding="utf-8")
    out = tmp_path / "out"
    arguments = ("--tokenizer", "kogpt/nano", "--out", str(out), "--sequence-length", "4096")
    done = kogpt("train", str(text), *arguments, "--no-curve", code=2)
    assert (
        "kogpt: argument --sequence-length: is 4096, it must be at most the model's 1024"
        in done.stderr
    )
    assert not out.exists()
