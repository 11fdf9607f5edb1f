"""The tasks and presets that come along, against what was published; and files that are none."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from kogpt.cli import main
from kogpt.errors import InputRefusedError
from kogpt.evaluation import (
    METRICS,
    RULES,
    Protocol,
    load_preset,
    load_task,
    preset_names,
    task_names,
)
from kogpt.evaluation.data import read_rows
from kogpt.evaluation.prompting import ask, example
from kogpt.evaluation.task import DataFile, Field, Prompt
from tests.evaluation.tiny import TASK, write_table, write_task

PUBLISHED = """[[published]]
source = "nobody"
values = {{ A = 1 }}
metric = {}
{}

[scored]"""

RESULTS = Path(__file__).parents[2] / "docs" / "results.md"

TASKS = {
    "klue_sts": ["different", "similar"],
    "kobest_boolq": ["no", "yes"],
    "kobest_copa": ["first", "second"],
    "kobest_hellaswag": ["first", "second", "third", "fourth"],
    "kobest_sentineg": ["negative", "positive"],
    "kobest_wic": ["different", "same"],
    "korsts": ["different", "similar"],
    "nsmc": ["negative", "positive"],
    "ynat": ["IT and science", "economy", "society", "life and culture", "world", "sports"]
    + ["politics"],
}

# A row of each scored file in its publisher's layout, and of which label it is.
STS = {
    "guid": "klue-sts-v1_dev_00000",
    "sentence1": "방이 ( 아주 ) 넓다 .",
    "sentence2": "방이 크다.",
    "labels": {"label": 3.0, "real-label": 3.0, "binary-label": 1},
}
HEADLINE = {"guid": "ynat-v1_dev_00000", "title": "5억원 융자 , 이사비는 안된다", "label": "경제"}
WIC = ("ID", "Target", "SENTENCE1", "Dictionary 1", "Link 1", "SENTENCE2", "Dictionary 2", "Link2")
ROWS = {
    "klue_sts": (json.dumps([STS]), 1),
    "kobest_boolq": (
        [
            ("ID", "Text", "Question", "Answer"),
            (1, "로마는 이탈리아의 수도이다.", "로마는 수도인가?", "TRUE"),
        ],
        1,
    ),
    "kobest_copa": (
        [
            ("ID", "sentence", "question", "1", "2", "Answer"),
            (1, "하루가 끝났다.", "결과", "집에 갔다.", "아침을 먹었다.", 1),
            (2, "컵이 깨졌다.", "원인", "물을 마셨다.", "컵을 떨어뜨렸다.", 2),
        ],
        0,
    ),
    "kobest_hellaswag": (
        [
            ("context", "choice1", "choice2", "choice3", "choice4", "label"),
            ("비가 온다.", "우산을 편다.", "모자를 판다.", "눈을 뜬다.", "문을 연다.", 3),
        ],
        3,
    ),
    "kobest_sentineg": (
        [
            ("ID", "Label_origin", "Text_origin", "Label", "Text", "Category_neg"),
            (1, 0, "맛이 없어요", 1, "맛이 없지 않아요", 2),
        ],
        1,
    ),
    "kobest_wic": (
        [
            (*WIC, "ANSWER"),
            (1, "배", "[배]를 탔다.", 1, "a", "[배]가 달다.", 2, "b", "False"),
        ],
        0,
    ),
    "korsts": (
        [
            ("genre", "score", "sentence1", "sentence2"),
            ("main-captions", "3.000", "방이 ( 아주 ) 넓다 .", "방이 크다."),
        ],
        1,
    ),
    "nsmc": ([("id", "document", "label"), (1, '( 10점 ) "명작" 이다 .', 0)], 0),
    "ynat": (json.dumps([HEADLINE], ensure_ascii=False), 1),
}

SAME = "질문: 문장 1과 문장 2는 서로 유사한 의미를 가지나요?\n"
SECTIONS = [" 과학", " 경제", " 사회", " 생활", " 세계", " 스포츠", " 정치"]

# What was published of each prompt, filled in by hand: what is read before the answer, the answers,
# and the row as an example.
PUBLISHED_PROMPTS = [
    (
        *("nsmc", "harness-303"),
        '다음 문장은 긍정일까요 부정일까요?\n(10점)"명작"이다.\n정답:',
        [" 부정", " 긍정"],
        '다음 문장은 긍정일까요 부정일까요?\n(10점)"명작"이다.\n정답: 부정',
    ),
    (
        *("nsmc", "harness-338"),
        '(10점)"명작"이다.',
        [" (부정)", " (긍정)"],
        '(10점)"명작"이다. (부정)',
    ),
    (
        *("nsmc", "hyperclova"),
        '( 10점 ) "명작" 이다 .',
        [" (부정)", " (긍정)"],
        '( 10점 ) "명작" 이다 . (부정)',
    ),
    (
        *("klue_sts", "harness-536"),
        SAME + "문장 1: 방이 (아주) 넓다.\n문장 2: 방이 크다.\n정답:",
        [" 아니오", " 예"],
        SAME + "문장 1: 방이 (아주) 넓다.\n문장 2: 방이 크다.\n정답: 예",
    ),
    (  # no space after a sentence's number, and two before an example's answer
        *("klue_sts", "harness-303"),
        SAME + "문장 1:방이 (아주) 넓다.\n문장 2:방이 크다.\n정답:",
        [" 아니", " 예"],
        SAME + "문장 1:방이 (아주) 넓다.\n문장 2:방이 크다.\n정답:  예",
    ),
    (  # candidates swapped against examples
        *("klue_sts", "beomi"),
        SAME + "문장 1: 방이 (아주) 넓다.\n문장 2: 방이 크다.\n정답:",
        [" 같음", " 다름"],
        SAME + "문장 1: 방이 (아주) 넓다.\n문장 2: 방이 크다.\n정답: 같음",
    ),
    (
        *("ynat", "harness-536"),
        "질문: 다음의 제목을 가지는 뉴스는 어느 분야의 뉴스인가요?\n"
        "제목: 5억원 융자 , 이사비는 안된다\n분야:",
        SECTIONS,
        "질문: 다음의 제목을 가지는 뉴스는 어느 분야의 뉴스인가요?\n"
        "제목: 5억원 융자 , 이사비는 안된다\n분야: 경제",
    ),
    (  # brackets in examples alone
        *("ynat", "harness-397"),
        "5억원 융자 , 이사비는 안된다",
        SECTIONS,
        "5억원 융자 , 이사비는 안된다 (경제)",
    ),
    (  # two spaces before the answer
        *("kobest_boolq", "polyglot"),
        "로마는 이탈리아의 수도이다. 질문: 로마는 수도인가? 답변: ",
        [" 아니오", " 예"],
        "로마는 이탈리아의 수도이다. 질문: 로마는 수도인가? 답변:  예",
    ),
    (
        *("kobest_copa", "polyglot"),
        "하루가 끝났다. 그래서",
        [" 집에 갔다.", " 아침을 먹었다."],
        "하루가 끝났다. 그래서 집에 갔다.",
    ),
    (  # two spaces before the connector
        *("kobest_copa", "harness-main"),
        "하루가 끝났다.  그래서",
        [" 집에 갔다.", " 아침을 먹었다."],
        "하루가 끝났다.  그래서 집에 갔다.",
    ),
    (
        *("kobest_wic", "polyglot"),
        "문장1: [배]를 탔다. 문장2: [배]가 달다. 두 문장에서 배가 같은 뜻으로 쓰였나?",
        [" 아니오", " 예"],
        "문장1: [배]를 탔다. 문장2: [배]가 달다. 두 문장에서 배가 같은 뜻으로 쓰였나? 아니오",
    ),
    (
        *("kobest_hellaswag", "polyglot"),
        "문장: 비가 온다.",
        [" 우산을 편다.", " 모자를 판다.", " 눈을 뜬다.", " 문을 연다."],
        "문장: 비가 온다. 문을 연다.",
    ),
    (
        *("kobest_sentineg", "polyglot"),
        "문장: 맛이 없지 않아요 긍부정:",
        [" 부정", " 긍정"],
        "문장: 맛이 없지 않아요 긍부정: 긍정",
    ),
]

# Models of kakaobrain/kogpt's table, and macro-F1 of KoGPT on the card of polyglot-ko-1.3b.
HYPERCLOVA = ["HyperCLOVA 1.3B", "HyperCLOVA 6.9B", "HyperCLOVA 13.0B", "HyperCLOVA 39.0B"]
MODELS = [*HYPERCLOVA, "HyperCLOVA 82.0B", "KoGPT 6.0B"]
README = {
    "nsmc": ("accuracy", [83.9, 83.8, 87.9, 88.0, 88.2, 87.8]),
    "ynat": ("macro_f1", [58.7, 67.5, 67.9, 71.4, 72.7, 78.0]),
    "klue_sts": ("f1", [60.9, 59.3, 60.0, 61.6, 65.1, 64.3]),
}
SHOTS = [1, 5, 10, 50, 100]
POLYGLOT = {
    "kobest_boolq": [0.5014, 0.5561, 0.4838, 0.4888, 0.4755],
    "kobest_copa": [0.7446, 0.7287, 0.7277, 0.7479, 0.7468],
    "kobest_wic": [0.4187, 0.3802, 0.3989, 0.4233, 0.4225],
    "kobest_hellaswag": [0.4524, 0.4560, 0.4616, 0.4754, 0.4580],
    "kobest_sentineg": [0.7419, 0.7152, 0.7422, 0.6757, 0.7081],
}


def rows_of(name, folder):
    """The task and its made-up rows, read from a file."""
    task, (content, _) = load_task(name), ROWS[name]
    path = folder / task.scored.file
    if isinstance(content, str):
        path.parent.mkdir()
        path.write_text(content, encoding="utf-8")
    else:
        write_table(path, content)
    return task, read_rows(task.scored, folder, len(task.labels)).rows


def test_all_tasks_come_along():
    assert task_names() == sorted(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_reads_a_row_of_its_publishers_layout(name, tmp_path):
    task, rows = rows_of(name, tmp_path)
    assert (task.name, list(task.labels)) == (name, TASKS[name])
    assert rows[0].label == ROWS[name][1] and rows[0].index == 0
    assert set(task.metrics) <= set(METRICS)


@pytest.mark.parametrize(
    ("name", "prompt", "context", "answers", "shot"),
    PUBLISHED_PROMPTS,
    ids=[f"{name}-{prompt}" for name, prompt, *_ in PUBLISHED_PROMPTS],
)
def test_a_published_prompt_is_what_was_published(name, prompt, context, answers, shot, tmp_path):
    task, rows = rows_of(name, tmp_path)
    question = ask(task.prompts[prompt], rows[0])
    assert (question.context, list(question.answers)) == (context, answers)
    assert example(task.prompts[prompt], rows[0]) == shot


def test_a_cause_and_a_result_have_connectors_of_their_own(tmp_path):
    task, (_, cause) = rows_of("kobest_copa", tmp_path)
    asked = {name: ask(prompt, cause).context for name, prompt in task.prompts.items()}
    assert asked == {
        "kogpt": "컵이 깨졌다. 그 이유는",
        "polyglot": "컵이 깨졌다. 왜냐하면",
        "harness-main": "컵이 깨졌다.  왜냐하면",
    }


def test_every_prompt_but_this_projects_own_is_checked_here():
    ours = {(name, "kogpt") for name in TASKS}
    found = {(name, prompt) for name in TASKS for prompt in load_task(name).prompts}
    assert found == ours | {(name, prompt) for name, prompt, *_ in PUBLISHED_PROMPTS}
    assert all(next(iter(load_task(name).prompts)) == "kogpt" for name in TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_the_default_prompt_shows_in_examples_what_it_scores(name, tmp_path):
    task, rows = rows_of(name, tmp_path)
    question = ask(task.prompt(None), rows[0])
    assert example(task.prompt(None), rows[0]) == question.context + question.answers[ROWS[name][1]]
    # An answer begins with its space, so that it begins with a token.
    assert all(re.match(r" \S", answer) for answer in question.answers)
    assert question.context == question.context.strip()


def test_only_prompts_whose_numbers_were_made_so_change_a_rows_text():
    changing = {
        (name, prompt.name)
        for name in TASKS
        for prompt in load_task(name).prompts.values()
        if prompt.detokenize
    }
    assert changing == {
        *(("nsmc", "harness-303"), ("nsmc", "harness-338")),
        *(("klue_sts", "harness-303"), ("klue_sts", "harness-536"), ("klue_sts", "beomi")),
    }


@pytest.mark.parametrize("name", TASKS)
def test_each_prompt_shows_all_free_texts_and_so_heads_read_them(name):
    task = load_task(name)
    for file in (task.scored, *task.shots, *([task.validation] if task.validation else [])):
        texts = {key for key, field in file.fields.items() if field.is_content} - {"degree"}
        assert texts <= task.names
        assert all(texts <= prompt.names for prompt in task.prompts.values())


def test_published_rows_are_those_of_the_upstream_table():
    for name, (metric, values) in README.items():
        first = load_task(name).published[0]
        assert (first.metric, first.shots) == (metric, None)
        assert dict(first.values) == dict(zip(MODELS, values, strict=True))
    assert [len(load_task(name).published) for name in README] == [3, 1, 1]


def test_published_rows_of_nsmc_include_the_only_reproduction():
    _, twenty, forty = load_task("nsmc").published
    assert (twenty.shots, forty.shots) == (20, 40)
    assert dict(twenty.values) == {"KoGPT 6.0B": 82.1, "ko-gpt-trinity 1.2B": 70.76}
    assert dict(forty.values) == {"KoGPT 6.0B": 83.25}
    assert "harness-303" in twenty.source and "harness-303" in forty.source


@pytest.mark.parametrize("name", POLYGLOT)
def test_published_rows_of_kobest_are_those_of_the_polyglot_card(name):
    published = load_task(name).published
    assert [(one.shots, one.metric) for one in published] == [(n, "macro_f1") for n in SHOTS]
    values = [dict(one.values) for one in published]
    assert values == [{"KoGPT 6.0B": pytest.approx(100 * value)} for value in POLYGLOT[name]]


def test_a_prompts_hash_changes_with_whatever_a_model_reads_and_nothing_else(tmp_path):
    def sha(old="", new=""):
        return load_task(str(write_task(tmp_path, TASK.replace(old, new)))).prompts["long"].sha256

    changes = [("평가:", "평가 :"), (" (나쁨)", " (별로)"), ('"  나쁨', '" 나쁨')]
    hashes = {sha(), *(sha(*change) for change in changes)}
    hashes.add(sha('["  나쁨", "  좋음"]', '["  나쁨", "  좋음"]\ndetokenize = true'))
    assert len(hashes) == 5
    assert sha('"nobody"', '"somebody"') == sha() != sha("평가:", "평가")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("about = ", 'abuot = "x"\nabout = ', "abuot: no such key"),
        ("[scored]\n", "[scored]\ncolour = 1\n", "scored.colour: no such key"),
        ("[[shots]]\n", "[[shots]]\nnotes = 1\n", "shots.notes: no such key"),
        ("[prompts.short]\n", "[prompts.short]\ntarget = 1\n", "prompts.short.target: no such key"),
        ("[prompts.short]\n", '[prompts.short]\nname = "x"\n', "prompts.short.name: no such key"),
        ('{ column = "label",', '{ colum = "label",', "fields.label.colum: no such key"),
        ('title = "Reviews"\n', 'name = "x"\n', "name: no such key"),
        ('title = "Reviews"\n', "", "lacks 'title'"),
        ('labels = ["bad", "good"]\n', "", "lacks 'labels'"),
        ("[scored]", "[scord]", "lacks 'scored'"),
        ("[[shots]]", "[[examples]]", "lacks 'shots'"),
        ('file = "reviews/scored.tsv"\n', "", "scored: lacks 'file'"),
        ('label = { column = "label", values = { 0 = 0, 1 = 1 } }\n', "", "fields: lacks 'label'"),
        ('column = "label", ', "", "fields.label: lacks 'column'"),
        ('targets = [" 최악", " 최고"]\n', "", "prompts.short: lacks 'targets'"),
        ('context = "{document} 한마디로"\n', "", "prompts.short: lacks 'context'"),
        ('[" 최악", " 최고"]', '[" 최악"]', "prompts.short.targets: 1 for 2 labels"),
        ('["  나쁨", "  좋음"]', '["a", "b", "c"]', "prompts.long.shot_targets: 3 for 2 labels"),
        ("{document} 한", "{documant} 한", "prompts.short: no field 'documant'"),
        ("{document} 한", "{} 한", "prompts.short: no field ''"),
        ("{document} 한", "{label} 한", "prompts.short: no field 'label'"),
        ("{document} 한", "{document.__class__} 한", "{document.__class__} is no name"),
        ("{document} 한", "{document[0]} 한", "{document[0]} is no name"),
        (
            "{document} 한",
            "{document:>9} 한",
            "prompts.short: {document:>9} is no plain",
        ),
        ("{document} 한", "{document!r} 한", "prompts.short: {document!r} is no plain"),
        (" 최고", " {documen}", "prompts.short: no field 'documen'"),
        ("  좋음", "  {degree}", "prompts.long: no field 'degree'"),
        ("{document} 한", "{document 한", "prompts.short: expected '}'"),
        ("{document} 한", "document} 한", "prompts.short: Single '}'"),
        ("{document} 한", "{document} { 한", "prompts.short: expected '}'"),
        ('["accuracy"]', '["acuracy"]', "no metric 'acuracy'; there are accuracy, macro_f1"),
        ('["accuracy"]', '["spearman"]', "metric 'spearman' needs a field 'degree'"),
        ('["bad", "good"]', '["bad", "good", "fair"]', "prompts.short.targets: 2 for 3 labels"),
        ('[" 최악", " 최고"]', '[" 최악", " "]', "prompts.short.targets: one is blank"),
        ('[" 최악", " 최고"]', '[" 최고", " 최고"]', "prompts.short.targets: two are the same"),
        (
            '[" 최악", " 최고"]',
            '[" {document}", " {document}"]',
            "prompts.short.targets: two are the same",
        ),
        ("[scored]", PUBLISHED.format('"f1"', ""), "published.metric: 'f1' is none of the task's"),
        (
            "[scored]",
            PUBLISHED.format('"accuracy"', "shots = -3"),
            "published.shots is -3, it must",
        ),
        (
            "[scored]",
            PUBLISHED.format('"accuracy"', 'mark = "x"'),
            "published.mark is 'x', it must",
        ),
        ("title = ", "title ", "Expected '=' after a key"),
        ('"Reviews"', '"Reviews', "Illegal character"),
    ],
)
def test_a_malformed_task_is_refused_in_one_line_that_names_file_and_key(old, new, words, tmp_path):
    assert TASK.count(old)
    path = write_task(tmp_path, TASK.replace(old, new, 1))
    with pytest.raises(InputRefusedError) as refusal:
        load_task(str(path))
    assert str(refusal.value).startswith(f"{path}: ") and words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('"Reviews"', "7", "title"),
        ('["bad", "good"]', '"ab"', "labels"),
        ('["bad", "good"]', "2", "labels"),
        ('["bad", "good"]', '["bad", 2]', "labels"),
        ('["accuracy"]', '"f1"', "metrics"),
        ('[scored]\nfile = "reviews/scored.tsv"\n', "scored = 1\n", "scored"),
        ("[[shots]]", "[shots]", "shots"),
        ('[fields]\ndocument = "document"\n', "[fields]\ndocument = 3\n", "fields"),
        ("{ 0 = 0, 1 = 1 }", "[0, 1]", "fields.label.values"),
        ("{ 0 = 0, 1 = 1 }", "{ 0 = 0.0, 1 = 1.0 }", "fields.label.values"),
        ("values = { 0 = 0, 1 = 1 }", 'at_least = "3"', "fields.label.at_least"),
        ("[[shots]]\n", '[[shots]]\nofficial = "two"\n', "shots.official"),
        ('"{document} 한마디로"', "3", "prompts.short.context"),
        ('[" 최악", " 최고"]', '" 최"', "prompts.short.targets"),
        ('[" 최악", " 최고"]', "[0, 1]", "prompts.short.targets"),
        ("[prompts.short]\n", '[prompts.short]\ndetokenize = "no"\n', "prompts.short.detokenize"),
        ("[prompts.long]", "[[published]]\nvalues = 3\n[prompts.long]", "published.values"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_its_key(old, new, where, tmp_path):
    path = write_task(tmp_path, TASK.replace(old, new, 1))
    with pytest.raises(InputRefusedError, match=f"{path}: {re.escape(where)}: .* is no .*") as e:
        load_task(str(path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{ 0 = 0, 1 = 1 }", "{ 0 = 0, 1 = 2 }", "fields.label.values: 2 is none of 2 labels"),
        ("{ 0 = 0, 1 = 1 }", "{ 0 = -1, 1 = 1 }", "fields.label.values: -1 is none of 2 labels"),
        ("{ 0 = 0, 1 = 1 }", '{ 0 = "0", 1 = 1 }', "fields.label.values: '0' is none of 2 labels"),
        ('{ column = "label", values = { 0 = 0, 1 = 1 } }', '"label"', "fields.label: lacks"),
        ("[[shots]]\n", "[[shots]]\nofficial = [1]\n", "shots.official: 1 for 2 labels"),
        (
            '["bad", "good"]',
            '["bad", "good", "best"]',
            "prompts.short.targets: 2 for 3 labels",
        ),
        ('["accuracy"]', "[]", "metrics: there are none"),
        ('["bad", "good"]', "[]", "labels: there are none"),
    ],
)
def test_labels_that_no_answer_belongs_to_are_refused(old, new, words, tmp_path):
    with pytest.raises(InputRefusedError, match=f"reviews.toml: {re.escape(words)}"):
        load_task(str(write_task(tmp_path, TASK.replace(old, new, 1))))


def test_a_number_parts_two_labels_and_no_more(tmp_path):
    three = TASK.replace('["bad", "good"]', '["bad", "good", "best"]')
    for targets in re.findall(r"targets = \[(.*)\]", TASK):
        three = three.replace(targets, f'{targets}, " 몰라"')
    path = write_task(tmp_path, three.replace("values = { 0 = 0, 1 = 1 }", "at_least = 3"))
    with pytest.raises(InputRefusedError, match="fields.label.at_least: makes two labels, there a"):
        load_task(str(path))


def test_names_with_dots_go_in_quotes(tmp_path):
    path = write_task(tmp_path, TASK.replace("{ 0 = 0, 1 = 1 }", "{ 0.0 = 0, 1.0 = 1 }"))
    with pytest.raises(InputRefusedError, match=r"fields.label.values: .*; names with dots go in"):
        load_task(str(path))
    path.write_text(TASK.replace("{ 0 = 0, 1 = 1 }", '{ "0.0" = 0, "1.0" = 1 }'))
    assert load_task(str(path)).scored.fields["label"].values == {"0.0": 0, "1.0": 1}


def test_the_task_of_the_page_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    path = tmp_path / "reviews.toml"
    path.write_text(text, encoding="utf-8")
    task = load_task(str(path))
    (tmp_path / "test.tsv").write_text('text\tstars\n좋다, "정말"\t5\n', encoding="utf-8")
    nested = json.dumps({"review": {"text": '좋다, "정말"', "stars": 5}})
    (tmp_path / "validation.jsonl").write_text(nested, encoding="utf-8")
    for file in (task.scored, task.validation):
        (found,) = read_rows(file, tmp_path, 5).rows
        assert (found.fields["text"], found.label, found.degree) == ('좋다, "정말"', 4, 5.0)
    keys = {field.name for kind in (DataFile, Field, Prompt) for field in fields(kind)}
    told = set(re.findall(r"`\W*(\w+)", page))
    assert keys - told == {"name", "mark", "fields"} - told


def test_f1_of_the_positive_class_needs_two_classes(tmp_path):
    text = TASK.replace('"good"]', '"good", "fair"]').replace('["accuracy"]', '["accuracy", "f1"]')
    for last in (' 최고"]', ' (좋음)"]', '  좋음"]'):
        text = text.replace(last, last.replace("]", ', " 음"]'))
    with pytest.raises(InputRefusedError, match="metric 'f1' needs two labels, there are 3"):
        load_task(str(write_task(tmp_path, text)))


def test_a_file_may_begin_with_a_mark(tmp_path):
    path = write_task(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_task(str(path)).title == "Reviews"


def test_a_figure_that_was_withdrawn_is_no_published_one(tmp_path, capsys):
    more = PUBLISHED.format('"accuracy"', 'mark = "withdrawn"')
    path = write_task(tmp_path, TASK.replace("[scored]", more, 1))
    assert main(["evaluate", str(path), "--data", str(tmp_path), "--limit", "1"]) == 0
    assert "| A |  | untold |  | 1.0 |  |  | withdrawn [1] |" in capsys.readouterr().out


def test_a_task_of_no_prompts_is_refused(tmp_path):
    text = TASK[: TASK.index("[prompts.short]")]
    with pytest.raises(InputRefusedError, match="reviews.toml: lacks 'prompts'"):
        load_task(str(write_task(tmp_path, text)))
    with pytest.raises(InputRefusedError, match="reviews.toml: prompts: there are none"):
        load_task(str(write_task(tmp_path, text + "[prompts]\n")))


def test_files_that_are_no_task_are_refused_by_name(tmp_path):
    path = tmp_path / "reviews.toml"
    with pytest.raises(InputRefusedError, match="reviews.toml: No such file"):
        load_task(str(path))
    path.write_bytes(TASK.encode("cp949"))
    with pytest.raises(InputRefusedError, match="reviews.toml: .*utf-8.* byte"):
        load_task(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(InputRefusedError, match="reviews.toml: Is a directory"):
        load_task(str(path))


@pytest.mark.parametrize("name", ["nsmcc", "", "NSMC"])
@pytest.mark.parametrize(
    ("load", "words"),
    [
        (load_task, "no task '{}'; there are klue_sts, .*, ynat, or a .toml file"),
        (load_preset, "no preset '{}'; there are hyperclova, .*, polyglot"),
        (load_task("nsmc").prompt, "task nsmc has no prompt '{}'; there are kogpt, harness-303, "),
    ],
)
def test_an_unknown_name_is_a_wrong_value_and_the_known_ones_are_told(name, load, words):
    with pytest.raises(ValueError, match=words.format(name)) as error:
        load(name)
    assert not isinstance(error.value, InputRefusedError)


@pytest.mark.parametrize(
    "values",
    [
        *({"shots": value} for value in (5, None, (), (1.5,), (-1,), (1, 1), (True,))),
        *({"scoring": value} for value in ("calibrated", (), ("sum", "sum"), ("best",))),
        *({"limit": value} for value in (0, 2.5)),
        *({"seed": value} for value in (-1, "x", None)),
        *({name: None} for name in ("sets", "batch_size")),
    ],
    ids=str,
)
def test_a_protocol_refuses_what_is_out_of_range(values):
    with pytest.raises(ValueError, match=min(values)):
        Protocol(**values)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_names_prompts_that_exist_and_tells_known_from_assumed(name):
    preset = load_preset(name)
    assert preset.title and preset.known and preset.assumed and preset.tasks
    for task, values in preset.tasks.items():
        prompt = load_task(task).prompt(values["prompt"])
        protocol = Protocol(**{key: value for key, value in values.items() if key != "prompt"})
        assert prompt.name != "kogpt" and set(protocol.scoring) <= set(RULES)


def test_presets_hold_what_is_known_of_their_sources():
    assert preset_names() == ["hyperclova", *(f"lm-eval-{n}" for n in (303, 338, 397, 536))] + [
        "polyglot"
    ]
    of = {name: load_preset(name).tasks for name in preset_names()}
    assert {task: (v["shots"], v["sets"]) for task, v in of["hyperclova"].items()} == {
        "nsmc": ((70,), 12),
        "ynat": ((70,), 3),
        "klue_sts": ((40,), 3),
    }
    assert of["lm-eval-303"]["nsmc"]["shots"] == (20, 40)
    assert sorted(of["polyglot"]) == sorted(POLYGLOT)
    for name, values in of["polyglot"].items():
        assert list(values["shots"]) == SHOTS
        assert values["scoring"] == (
            ("sum", "per-character") if name == "kobest_hellaswag" else ("sum",)
        )


@pytest.mark.parametrize("name", task_names())
def test_published_figures_in_the_documentation_are_those_of_the_tasks(name):
    task = load_task(name)
    _, _, section = RESULTS.read_text(encoding="utf-8").partition(f"\n### {task.title}\n")
    rows = [line.strip("| ").split("|") for line in section.partition("\n#")[0].splitlines()]
    rows = [[cell.strip() for cell in row] for row in rows if "published [" in row[-1]]
    found = [(row[0], row[2], *filter(None, row[4:-1])) for row in rows]
    assert found == [
        (model, str(each.shots or "untold"), str(float(value)))
        for each in task.published
        for model, value in each.values.items()
    ]
