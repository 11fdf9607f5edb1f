"""lm-evaluation-harness with our model and tasks, against its own model and our evaluation."""

import json
import logging
import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kogpt
from kogpt.adapters import (
    LoRAConfig,
    PromptConfig,
    attach_prompt,
    prompt_embeddings,
    write_adapter,
)
from kogpt.errors import KoGPTError
from kogpt.evaluation.data import find_first
from kogpt.evaluation.harness import rows
from kogpt.evaluation.metrics import Outcome, measure
from kogpt.evaluation.prompting import ask, example
from kogpt.evaluation.protocol import Protocol
from kogpt.evaluation.running import Evaluator, Run, draw_set, read_data
from kogpt.evaluation.task import Prompt, Task, load_task, task_names
from kogpt.tokenizer import load_tokenizer
from tests.adapters.filled import trained_lora
from tests.adapters.test_prompt import by_hand
from tests.checkpoint import tiny
from tests.shared import shared
from tests.tokenizer.conftest import write_byte_level

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: '.[harness]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from kogpt.evaluation.lm_eval import TASKS, TOO_FEW, KoGPTLM, main  # noqa: E402

logging.getLogger("lm_eval").setLevel(logging.ERROR)

ROOT = Path(kogpt.__file__).resolve().parents[1]
NANO = ROOT / "kogpt" / "nano"
PROMPTS = [(task, prompt) for task in task_names() for prompt in load_task(task).prompts]


@pytest.fixture(scope="module")
def ours() -> KoGPTLM:
    return KoGPTLM(dtype="float32", device="cpu", batch_size=8)


def harness_model(folder: Path, bos: bool, **more: str) -> Any:
    """The harness's own way to run a folder."""
    pytest.importorskip("transformers")
    asked = {"dtype": "float32", "device": "cpu", "batch_size": 8, **more}
    return get_model("hf")(pretrained=str(folder), add_bos_token=bos, **asked)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return harness_model(NANO, bos=True)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A tiny model with a tokenizer like the released one: byte-level, and texts without bos."""
    folder = tmp_path_factory.mktemp("released")
    sizes = {"vocab_size": 448, "n_positions": 64, "n_embd": 32, "n_inner": 64}
    config = replace(tiny.CONFIG, **sizes)
    write_byte_level(folder)
    tiny.write_config(folder, config)
    torch.save(tiny.released_state(config), folder / "pytorch_model.bin")
    kogpt.convert(folder, folder / "converted")
    return folder / "converted"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The first rows of all real files, which as wholes take seconds to read."""
    folder = tmp_path_factory.mktemp("data")
    for task in map(load_task, task_names()):
        for file in (task.scored, find_first(task.shots, shared("data"))):
            source, target = shared("data", file.file), folder / file.file
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".json":
                target.write_text(json.dumps(json.loads(source.read_text())[:200]))
            else:
                with source.open("rb") as lines:
                    target.write_bytes(b"".join(islice(lines, 200)))
    return folder


def requests(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, 0) for given in arguments]


def manager(data: Path, **metadata: object) -> TaskManager:
    """Our tasks alone: those of the harness take seconds to look through."""
    metadata["data"] = str(data)
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)


def test_a_harness_that_asks_more_of_a_model_is_noticed():
    assert TemplateLM.__abstractmethods__ == {
        *("eot_token_id", "tok_encode", "_loglikelihood_tokens"),
        *("loglikelihood_rolling", "generate_until"),
    }
    assert not KoGPTLM.__abstractmethods__


def test_the_model_is_found_by_its_name_and_made_from_the_arguments_of_a_command():
    asked = f"path={NANO},dtype=bfloat16,max_length=64,fast=False"
    given = {"batch_size": "auto", "max_batch_size": None, "device": "cpu"}
    model = get_model("kogpt").create_from_arg_string(asked, given)
    assert isinstance(model, KoGPTLM) and type(model.model) is kogpt.KoGPT
    assert (model.model.lm_head.weight.dtype, model.max_length) == (torch.bfloat16, 64)
    for wrong in ("dtype=int8", "max_length=1", "max_length=1025"):
        with pytest.raises(ValueError, match=wrong.split("=")[0]):
            KoGPTLM.create_from_arg_string(wrong)


def test_texts_begin_with_bos_as_the_prompts_of_the_model_do(ours):
    tokenizer = ours.tokenizer
    assert tokenizer.add_bos
    assert ours.tok_encode("영화") == tokenizer.encode("영화", bos=True)
    assert ours.tok_encode("영화", add_special_tokens=False) == tokenizer.encode("영화")
    assert ours.prefix_token_id == tokenizer.bos_id and ours.eot_token_id == tokenizer.eos_id


PAIRS = [  # the context's end is the tokenizer's affair as much as its words
    ("이 영화는", " 재미있다"),
    ("이 영화는", " 정말 지루하다"),
    ("이 영화는 ", " 재미있다"),
    ("배우들의 연기는 좋", "았는데 정말"),
    ("", " 재미있다"),
    ("이 영화는", " 재미있다"),
    ("뷁 😤\n정답:", " 긍정"),
]


def test_likelihoods_are_those_of_the_harness_s_own_model(ours, theirs):
    asked = requests("loglikelihood", *PAIRS)
    found, expected = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, theirs))
    for (value, greedy), (other, also_greedy) in zip(found, expected, strict=True):
        assert value == pytest.approx(other, abs=1e-4)
        assert greedy is bool(also_greedy)


def test_an_adapter_is_used_as_the_harness_uses_it_through_peft(tmp_path):
    pytest.importorskip("peft")
    model = kogpt.load_model(dtype="float32")
    trained_lora(model, LoRAConfig(rank=2, alpha=0.5))
    write_adapter(tmp_path, model)
    asked = requests("loglikelihood", ("이 영화를 보고", " 감동"), ("10점 만점에", " 2점"))
    adapted = KoGPTLM(dtype="float32", device="cpu", adapter=str(tmp_path))
    found = adapted.loglikelihood(asked, disable_tqdm=True)
    theirs = harness_model(NANO, bos=True, peft=str(tmp_path))
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-3)


def test_a_soft_prompt_stands_before_every_context(tmp_path):
    model = kogpt.load_model(dtype="float32")
    attach_prompt(model, PromptConfig(5), torch.Generator().manual_seed(1))
    write_adapter(tmp_path, model)
    adapted = KoGPTLM(dtype="float32", device="cpu", adapter=str(tmp_path), fast=False)
    assert adapted.max_length == 1024 - 5
    context, answer = "이 영화를 보고", " 감동"
    (found,) = adapted.loglikelihood(
        requests("loglikelihood", (context, answer)), disable_tqdm=True
    )
    start, whole = map(adapted.tok_encode, (context, context + answer))
    logits = by_hand(model, prompt_embeddings(model), torch.tensor([whole]))[0].double()
    logprobs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(whole[1:])[:, None])
    assert found[0] == pytest.approx(float(logprobs[len(start) - 1 :].sum().detach()), abs=1e-4)


def test_a_class_of_ones_own_is_read_with_its_own_network(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from kogpt.model import KoGPT\n\n\n"
        "class Warm(KoGPT):\n    def logits(self, *inputs):\n"
        "        return super().logits(*inputs) / 2\n"
    )
    warm = KoGPTLM(dtype="float32", device="cpu", architecture=f"{tmp_path / 'mine.py'}:Warm")
    asked = requests("loglikelihood", ("이 영화를 보고", " 감동"))
    ((found, _),) = warm.loglikelihood(asked, disable_tqdm=True)
    start, whole = map(warm.tok_encode, ("이 영화를 보고", "이 영화를 보고 감동"))
    model = kogpt.load_model(dtype="float32")
    with torch.no_grad():
        logprobs = (model(torch.tensor([whole[:-1]]))[0] / 2).log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(whole[1:])[:, None])[len(start) - 1 :].sum()
    assert found == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"pretrained": "x"}, "model_args: no 'pretrained'; there are path, dtype, device"),
        ({"batch_size": "foo"}, "batch_size is 'foo', it must be a number or auto"),
    ],
)
def test_an_argument_that_is_none_is_told(asked, told):
    with pytest.raises(ValueError, match=told):
        KoGPTLM(**asked)


def test_there_is_no_chat_template(ours):
    with pytest.raises(KoGPTError, match="no chat template: leave out --apply_chat_template"):
        ours.chat_template(True)


def test_a_model_whose_texts_do_not_begin_with_bos_is_read_as_the_harness_reads_it(released):
    ours, theirs = KoGPTLM(str(released), "float32", "cpu"), harness_model(released, bos=False)
    assert not ours.tokenizer.add_bos and ours.tok_encode("영") == ours.tokenizer.encode("영")
    asked = requests("loglikelihood", *PAIRS)
    found, expected = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, theirs))
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    (blank,) = ours.loglikelihood(requests("loglikelihood", (" ", "영")), disable_tqdm=True)
    (empty,) = ours.loglikelihood(requests("loglikelihood", ("", " 영")), disable_tqdm=True)
    assert blank == empty  # behind bos, since something must be there


def test_a_context_that_is_too_long_loses_its_left_end_and_that_is_told_once(ours, theirs, capfd):
    short = KoGPTLM(dtype="float32", device="cpu", max_length=12)
    long = "배우들의 연기는 좋았는데 이야기가 너무 뻔해서 아쉽네요.. " * 3
    answers = (long, " 추천"), (long, " 추천하지 않아요"), ("짧다", " 추천")
    asked = requests("loglikelihood", *answers)
    capfd.readouterr()
    found = short.loglikelihood(asked, disable_tqdm=True)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("kogpt: ")]
    assert len(lines) == 1
    assert "2 of 3 requests exceed the context and lost their left end" in lines[0]
    theirs._max_length, whole = 12, theirs._max_length
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    theirs._max_length = whole
    for (value, _), (other, _) in zip(found, expected, strict=True):
        assert value == pytest.approx(other, abs=1e-4)
    with pytest.raises(KoGPTError, match="tokens, the context holds 12"):
        short.loglikelihood(requests("loglikelihood", ("가", long)), disable_tqdm=True)


def test_an_answer_that_the_context_s_last_token_swallows_has_no_likelihood(ours):
    with pytest.raises(KoGPTError, match="answer '가' has no token of its own after '영화'$"):
        ours.loglikelihood(requests("loglikelihood", ("영화", "가")), disable_tqdm=True)


def test_a_text_that_fits_scores_as_kogpt_score_does_and_a_longer_one_in_windows(ours):
    texts = ["정말 재미있는 영화", "뷁 😤"]
    found = ours.loglikelihood_rolling(requests("rolling", *((text,) for text in texts)))
    scores = kogpt.score(ours.model, ours.tokenizer, texts)
    assert found == pytest.approx([score.log_likelihood for score in scores], abs=1e-4)

    text = "배우들의 연기는 좋았는데 이야기가 너무 뻔해서 아쉽네요.. 추천하지 않아요"
    ids = torch.tensor([ours.prefix_token_id, *ours.tokenizer.encode(text)])
    logprob, step = 0.0, 8
    for start in range(1, len(ids), step):  # each id once, with the step's worth of ids before it
        window = ids[: start + step][-step - 1 :]
        logprobs = ours.model(window[None, :-1])[0].log_softmax(-1)
        chosen = logprobs.gather(1, window[1:, None])
        logprob += chosen[-len(ids[start : start + step]) :].sum().item()
    short = KoGPTLM(dtype="float32", device="cpu", max_length=step)
    (found,) = short.loglikelihood_rolling(requests("rolling", (text,)))
    assert len(ids) == 13 and found == pytest.approx(logprob, abs=1e-4)


def test_texts_are_continued_as_the_harness_s_own_model_does_until_a_stop(ours, theirs):
    how = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    prompts = ["이 영화는", "배우들 연기가", "한국어"]
    asked = requests("generate_until", *((prompt, dict(how)) for prompt in prompts))
    found = ours.generate_until(asked)
    expected = theirs.generate_until(asked, disable_tqdm=True)
    assert [text.strip() for text in found] == [text.strip() for text in expected]
    word = found[0].split()[1]
    (cut,) = ours.generate_until(requests("", (prompts[0], {**how, "until": ["", word]})))
    assert cut == found[0][: found[0].index(word)]


@pytest.mark.parametrize("more", [{}, {"temperature": 0.0}, {"num_beams": 3}])
def test_texts_are_greedy_or_searched_where_a_task_says_nothing_of_sampling(ours, theirs, more):
    asked = requests("", ("이 영화는", {"until": ["\n\n"], "max_gen_toks": 24, **more}))
    (found,) = ours.generate_until(asked)
    (expected,) = theirs.generate_until(asked, disable_tqdm=True)
    assert found.strip() == expected.strip()


def test_sampling_follows_the_harness_s_seed_and_unknown_wishes_are_refused(ours):
    asked = requests("", ("이 영화는", {"temperature": 1.0, "max_gen_toks": 20, "top_p": 0.9}))

    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return ours.generate_until(asked * 2)

    assert sample(1) == sample(1) != sample(2)
    assert len(set(sample(1))) == 2
    with pytest.raises(ValueError, match="no_such_thing"):
        ours.generate_until(requests("", ("가", {"no_such_thing": 1})))
    with pytest.raises(ValueError, match="2000 tokens are to be written, the context holds 1024"):
        ours.generate_until(requests("", ("가", {"max_gen_toks": 2000})))


def test_the_harness_s_tasks_are_the_prompts_of_ours():
    found = {path.stem for path in TASKS.glob("[!_]*.yaml")}
    assert found == {f"{task}_{prompt}" for task, prompt in PROMPTS}


@pytest.mark.parametrize(("name", "prompt_name"), PROMPTS, ids=map("-".join, PROMPTS))
def test_the_harness_renders_our_prompts_and_measures_what_we_do(data, name, prompt_name):
    full = f"kogpt_{name}_{prompt_name}"
    theirs = manager(data, limit=12).load([full])["tasks"][full]
    task = load_task(name)
    prompt = task.prompt(prompt_name)
    protocol = Protocol(shots=(2,), limit=12)
    read = read_data(task, data, protocol)
    drawn = (task, prompt, protocol, read, 0, load_tokenizer())
    shots = [example(prompt, row) for row in draw_set(*drawn)]
    assert "acc" in theirs.aggregation() and "accuracy" in task.metrics
    # Labels that no row has, and none is taken for, count in both.
    gold, taken = [0, 1, 1, 0], [0, 1, 0, 0]
    outcome = Outcome(len(task.labels), np.array(gold), np.eye(len(task.labels))[[taken]])
    metric = "f1" if "f1" in task.metrics else "macro_f1"
    found = 100 * theirs.aggregation()["f1"](list(zip(gold, taken, strict=True)))
    assert [found] == pytest.approx(measure(metric, outcome))
    for count in (0, 2):
        for document, row in zip(theirs.eval_docs, read.sample, strict=True):
            context = theirs.fewshot_context(document, count)
            asked = theirs.construct_requests(document, context)
            question = ask(prompt, row)
            text = "\n\n".join([*shots[:count], question.context])
            assert [request.args for request in asked] == [(text, a) for a in question.answers]
            assert theirs.doc_to_target(document) == row.label


def test_a_document_of_digits_is_text(tmp_path):
    (tmp_path / "ratings_test.txt").write_text("id\tdocument\tlabel\n1\t10\t1\n2\t\t0\n")
    name = "kogpt_nsmc_harness-338"
    task = manager(tmp_path, shots=0).load([name])["tasks"][name]
    assert [task.fewshot_context(document, 0) for document in task.eval_docs] == ["10", ""]


def test_rows_want_to_know_where_the_data_is():
    with pytest.raises(KoGPTError, match='--metadata \'{"data": "FOLDER"}\''):
        rows("nsmc")


def test_balanced_examples_want_their_number(data):
    with pytest.raises(KoGPTError, match="how many examples are balanced"):
        rows("nsmc", str(data), limit=1, balanced=True)
    shots = rows("nsmc", str(data), limit=1, balanced=True, shots=4)["shots"]
    assert sorted(shots["label"]) == [0, 0, 1, 1]


def test_without_examples_their_file_is_not_needed(data, tmp_path, monkeypatch, capsys, ours_alone):
    (tmp_path / "ratings_test.txt").symlink_to(data / "nsmc" / "ratings_test.txt")
    found = rows("nsmc", str(tmp_path), limit=3)
    assert (len(found["scored"]), len(found["shots"])) == (3, 0)
    asked = "--model kogpt --tasks kogpt_nsmc_kogpt --num_fewshot 2 --metadata".split()
    with pytest.raises(SystemExit) as refusal:
        run_main(monkeypatch, *asked, f'{{"data": "{tmp_path}", "limit": 2}}')
    assert refusal.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"kogpt: {TOO_FEW}"


def test_fields_are_what_is_read_however_their_hangul_is_spelt(tmp_path):
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "id\tdocument\tlabel\n1\t좋은 영화\t1\n")
        (tmp_path / "ratings_test.txt").write_text(text, encoding="utf-8")
        assert rows("nsmc", str(tmp_path))["scored"]["document"][0] == "좋은 영화"


THREE_WAYS = {"nsmc": "harness-303", "klue_sts": "harness-536", "kobest_copa": "polyglot"}


def by_harness(
    model: Any, full: str, data: Path, shots: int, limit: int
) -> tuple[list[list[float]], dict[str, float]]:
    """Log-likelihoods of each row's answers, and the metrics in percent."""
    report = lm_eval.simple_evaluate(
        model=model,
        tasks=[full],
        num_fewshot=shots,
        task_manager=manager(data, limit=limit),
        bootstrap_iters=0,
    )
    samples = sorted(report["samples"][full], key=lambda sample: sample["doc_id"])
    values = [[value for value, _ in sample["filtered_resps"]] for sample in samples]
    metrics = report["results"][full]
    return values, {name: 100 * metrics[f"{name},none"] for name in ("acc", "f1")}


def by_ours(ours: KoGPTLM, task: Task, prompt: Prompt, data: Path, shots: int, limit: int) -> Run:
    protocol = Protocol(shots=(shots,), sets=1, limit=limit, scoring=("sum",))
    evaluator = Evaluator(ours.model, ours.tokenizer)
    (run,) = evaluator.run(task, prompt, protocol, read_data(task, data, protocol))
    return run


@pytest.mark.parametrize("shots", [0, 4])
@pytest.mark.parametrize("name", THREE_WAYS)
def test_three_ways_give_the_same_numbers(ours, theirs, data, name, shots):
    task = load_task(name)
    prompt = task.prompt(THREE_WAYS[name])
    run = by_ours(ours, task, prompt, data, shots, limit=24)
    full = f"kogpt_{name}_{prompt.name}"
    our_f1 = "f1" if "f1" in task.metrics else "macro_f1"
    metrics = {
        named: measure(metric, run.outcome("sum"))[0]
        for named, metric in (("acc", "accuracy"), ("f1", our_f1))
    }
    for model in (ours, theirs):
        values, found = by_harness(model, full, data, shots, limit=24)
        torch.testing.assert_close(values, run.sets[0].log_likelihoods, atol=1e-4, rtol=0)
        assert found == pytest.approx(metrics)


@pytest.fixture
def ours_alone(monkeypatch):
    """The command reads our tasks alone: to list all that the harness has takes it 12 seconds."""
    alone = partial(TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", alone)


def run_main(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    """The command, in this process to spare its start."""
    monkeypatch.setattr(sys, "argv", ["lm_eval", *args])
    main()


def test_the_command_line_is_the_harness_s_with_our_model_and_tasks(data, monkeypatch, capsys):
    asked = "--model kogpt --model_args max_length=256 --batch_size 8 --tasks kogpt_nsmc_kogpt"
    metadata = f'{{"data": "{data}", "limit": 5}}'
    run_main(monkeypatch, *asked.split(), "--num_fewshot", "2", "--metadata", metadata)
    assert "|kogpt_nsmc_kogpt|" in capsys.readouterr().out


def test_refusals_of_the_command_line_are_one_line(monkeypatch, capsys, ours_alone):
    with pytest.raises(SystemExit) as refusal:
        run_main(monkeypatch, *"--model kogpt --tasks kogpt_nsmc_kogpt".split())
    assert refusal.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("kogpt: where is the data?")
    with pytest.raises(SystemExit) as refusal:
        run_main(monkeypatch, *"--model kogpt --model_args dtype=int3 --tasks kogpt_nsmc".split())
    assert refusal.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("kogpt: dtype is 'int3', it must be")


def test_without_the_harness_one_line_says_what_to_install(tmp_path):
    missing = "raise ModuleNotFoundError(\"No module named 'lm_eval'\", name='lm_eval')"
    (tmp_path / "lm_eval.py").write_text(missing)
    done = subprocess.run(
        [sys.executable, "-m", "kogpt.evaluation.lm_eval", "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    line = "kogpt: lm-evaluation-harness is not installed: pip install 'kogpt[harness]'\n"
    assert done.stderr == line
