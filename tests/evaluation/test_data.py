"""The real files as they are read, and files that are not what they should be."""

import csv
import hashlib
import io
import json
import unicodedata
from functools import cache

import pytest

from kogpt.errors import InputRefusedError
from kogpt.evaluation import Protocol, load_task, read_data
from kogpt.evaluation.data import find_first, read_rows
from tests.evaluation.tiny import SCORED, TASK, write_table, write_task
from tests.shared import shared

KOREAN_STS = "shots are of KorSTS: KLUE's train split is not there"


@cache
def real(name, part="scored"):
    """All rows of a file of a task, or of the first that is there; skips where none is."""
    task = load_task(name)
    folder = shared("data")
    shared("data", task.scored.file)
    file = task.scored if part == "scored" else find_first(task.shots, folder)
    return read_rows(file, folder, len(task.labels))


# Rows of each label: NSMC and KLUE-STS as their publishers count them, the rest in total as the
# data's README does.
COUNTS = [
    ("nsmc", "scored", 50_000, (24_827, 25_173)),
    ("nsmc", "shots", 150_000, (75_000, 75_000)),
    ("klue_sts", "scored", 519, (299, 220)),
    ("klue_sts", "shots", 5_749, None),
    ("ynat", "scored", 9_107, (738, 1701, 3356, 1367, 739, 565, 641)),
    ("ynat", "shots", 45_678, (7852, 6028, 2061, 6022, 8034, 7688, 7993)),
    ("kobest_boolq", "scored", 1_404, (359 + 340, 357 + 348)),
    ("kobest_boolq", "shots", 3_665, (1834, 1831)),
    ("kobest_copa", "scored", 1_000, (517, 483)),
    ("kobest_copa", "shots", 3_076, (1671, 1405)),
    ("kobest_hellaswag", "scored", 500, (124, 137, 121, 118)),
    ("kobest_hellaswag", "shots", 2_029, (533, 511, 487, 498)),
    ("kobest_sentineg", "scored", 397, (197, 200)),
    ("kobest_sentineg", "shots", 3_649, (1811, 1838)),
    ("kobest_wic", "scored", 1_260, (359 + 286, 331 + 284)),
    ("kobest_wic", "shots", 3_318, (1562 + 76, 1603 + 77)),
]

ODD = "{} is not the official file: it has {} rows of each label, that one {}"
YNAT = "7,852/6,028/2,061/6,022/8,034/7,688/7,993", "5,235/6,118/5,133/5,751/8,320/7,742/7,379"
NOTES = {
    ("nsmc", "shots"): (ODD.format("ratings_train.txt", "75,000/75,000", "75,173/74,827"),),
    ("ynat", "scored"): (
        "ynat-v1.1_dev.json is not the official file: its rows have no 'url', and their labels may"
        " be others",
    ),
    ("ynat", "shots"): (ODD.format("ynat-v1.1_train.json", *YNAT),),
    ("klue_sts", "shots"): (KOREAN_STS,),
}


@pytest.mark.parametrize(("name", "part", "total", "counts"), COUNTS)
def test_a_real_file_has_its_rows_and_labels(name, part, total, counts):
    rows = real(name, part)
    assert len(rows.rows) == total == sum(rows.counts)
    assert rows.counts == counts or counts is None
    assert [row.index for row in rows.rows] == list(range(total))
    assert rows.sha256 == hashlib.sha256(rows.path.read_bytes()).hexdigest()
    texts = [text for row in rows.rows for text in row.text]
    assert rows.notes == NOTES.get((name, part), ())
    assert not any("\r" in text or "\n" in text or "\ufeff" in text for text in texts)


def test_reviews_of_nsmc_are_whole_whatever_they_hold():
    rows = real("nsmc").rows
    documents = [row.fields["document"] for row in rows]
    assert [index for index, text in enumerate(documents) if not text] == [5746, 7899, 27097]
    assert max(map(len, documents)) == 140
    lines = shared("data", "nsmc", "ratings_test.txt").read_bytes().decode().split("\n")
    quoted = [index for index, line in enumerate(lines[1:]) if '"' in line]
    assert len(quoted) == 233
    assert all(lines[1 + index].split("\t")[1] == documents[index] for index in quoted)


def test_similar_pairs_of_klue_are_those_of_its_binary_label():
    content = json.loads(shared("data", "klue_sts", "klue-sts-v1.1_dev.json").read_bytes())
    rows = real("klue_sts").rows
    assert [row.label for row in rows] == [row["labels"]["binary-label"] for row in content]
    assert [row.degree for row in rows] == [row["labels"]["real-label"] for row in content]


def test_shots_of_klue_sts_come_from_korsts_where_klue_has_none():
    rows = real("klue_sts", "shots")
    assert rows.path.name == "sts-train.tsv" and rows.notes == (KOREAN_STS,)
    assert rows.rows[0].fields == {
        "sentence1": "비행기가 이륙하고 있다.",
        "sentence2": "비행기가 이륙하고 있다.",
    }
    assert (rows.rows[0].label, rows.rows[0].degree) == (1, 5.0)
    assert all(row.label == (row.degree >= 3) for row in rows.rows)


def test_klues_own_train_split_is_taken_where_it_is_there(tmp_path):
    task = load_task("klue_sts")
    pair = {"sentence1": "가", "sentence2": "나", "labels": {"real-label": 2.999}}
    for file in ("klue-sts-v1.1_dev.json", "klue-sts-v1.1_train.json"):
        path = tmp_path / "klue_sts" / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([pair]), encoding="utf-8")
    korean = [("score", "sentence1", "sentence2"), ("3.000", "가", "나")]
    write_table(tmp_path / "korsts" / "sts-train.tsv", korean)
    data = read_data(task, tmp_path, Protocol(shots=(1,)))
    assert data.shots.path.name == "klue-sts-v1.1_train.json" and data.shots.notes == ()
    assert [(row.label, row.degree) for row in data.shots.rows] == [(0, 2.999)]
    (tmp_path / "klue_sts" / "klue-sts-v1.1_train.json").unlink()
    assert read_data(task, tmp_path, Protocol(shots=(1,))).shots.notes == (KOREAN_STS,)
    assert read_data(task, tmp_path, Protocol(shots=(0,))).shots is None


def test_spaces_that_end_a_text_of_kobest_are_kept():
    rows = real("kobest_copa").rows
    ending = [text for row in rows for text in row.text if text != text.strip()]
    assert "차에서 쓴 맛이 난다. " in ending
    wic = real("kobest_wic").rows
    assert any(row.fields["sentence2"] == "탈출하게 된 [동기]를 물었다. " for row in wic)
    assert all("[" in row.fields["sentence1"] for row in wic)


def test_sentineg_is_read_with_the_label_of_the_negated_text():
    first, *_ = real("kobest_sentineg").rows
    path = shared("data", "kobest", "SentiNeg", "test.tsv")
    header, line, *_ = path.read_text(encoding="utf-8").splitlines()
    cells = dict(zip(header.split("\t"), line.split("\t"), strict=True))
    assert cells["Label"] != cells["Label_origin"] and cells["Text"] != cells["Text_origin"]
    assert (first.label, first.fields["sentence"]) == (int(cells["Label"]), cells["Text"])


def test_hangul_in_pieces_is_read_as_whole_syllables(tmp_path):
    """Texts as the tokenizer composes them, and labels however file and task spell them."""
    text = TASK.replace("0 = 0, 1 = 1", '"나쁨" = 0, "좋음" = 1')
    composed = [(text, ("나쁨", "좋음")[label]) for text, label in SCORED]
    for first in ("NFC", "NFD"):
        for second in ("NFC", "NFD"):
            task = load_task(str(write_task(tmp_path, unicodedata.normalize(first, text))))
            rows = [tuple(unicodedata.normalize(second, cell) for cell in row) for row in composed]
            write_table(tmp_path / "reviews" / "scored.tsv", [("document", "label"), *rows])
            found = [(row.fields["document"], row.label) for row in read(task, tmp_path).rows]
            assert found == SCORED


def test_a_file_of_json_lines_is_read_like_one_list(tmp_path):
    task = load_task(str(write_task(tmp_path, TASK.replace("scored.tsv", "scored.jsonl"))))
    path = tmp_path / "reviews" / "scored.jsonl"
    lines = [json.dumps({"document": text, "label": label}) for text, label in SCORED]
    path.write_text("\ufeff" + "\r\n\n".join(lines), encoding="utf-8")
    found = [(row.fields["document"], row.label) for row in read(task, tmp_path).rows]
    assert found == SCORED
    path.write_text(lines[0] + "\n" + lines[1][:-1])
    with pytest.raises(InputRefusedError, match=f"{path}: line 2: not JSON"):
        read(task, tmp_path)


@pytest.fixture
def task(tmp_path):
    return load_task(str(write_task(tmp_path)))


def read(task, folder):
    return read_rows(task.scored, folder, len(task.labels))


@pytest.mark.parametrize("where", ["reviews/scored.tsv", "scored.tsv"])
def test_a_file_is_found_under_its_path_and_under_its_name(where, task, tmp_path):
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / where
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "reviews" / "scored.tsv").rename(path)
    rows = read(task, tmp_path / "other")
    assert rows.path == path and rows.counts == (2, 3)
    assert [(row.fields["document"], row.label) for row in rows.rows] == SCORED


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_ends_of_lines_and_byte_order_marks_are_no_text(end, mark, last, task, tmp_path):
    lines = ["document\tlabel", '  "가" 나\' \t1 ', "\u3000다\x0b\u2028라\t 0"]
    text = mark + end.join(lines) + end * last
    (tmp_path / "reviews" / "scored.tsv").write_bytes(text.encode())
    rows = read(task, tmp_path).rows
    assert [row.fields["document"] for row in rows] == ['  "가" 나\' ', "\u3000다\x0b\u2028라"]
    assert [row.label for row in rows] == [1, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"id\tdocument\n", "no column 'label'; there are id, document"),
        (
            b"id,document,label\n1,a,1\n",
            "no column 'document'; tabs part columns here: id,document,label",
        ),
        (b"document\tlabel\na\t1\nb\n", "line 3 has 1 columns, the header 2; tabs part them"),
        (b"document\tlabel\na\t1\nb\t1\t0\n", "line 3 has 3 columns, the header 2"),
        (b"document\tlabel\na\t1\n\nb\t1\n", "line 3 has 1 columns, the header 2"),
        (b"document\tlabel\na\t1\nb\t2\n", "line 3: label is '2'; known are 0, 1"),
        (b"document\tlabel\na\t1\nb\t\n", "line 3: label is ''; known are 0, 1"),
        (b"document\tlabel\na\t1\nb\t1.0\n", "line 3: label is '1.0'; known are 0, 1"),
        ("document\tlabel\na\t1\n최고\t1\n".encode("cp949"), "line 3 is not UTF-8"),
        ("document\tlabel\na\t1\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b"document\tlabel\na\t1\n\xed\xa0\x80\t1\n", "line 3 is not UTF-8"),
    ],
)
def test_a_table_that_is_not_what_it_should_be_is_refused_by_its_line(
    content, words, task, tmp_path
):
    path = tmp_path / "reviews" / "scored.tsv"
    path.write_bytes(content)
    with pytest.raises(InputRefusedError) as refusal:
        read(task, tmp_path)
    assert str(refusal.value).startswith(f"{path}: {words}")
    assert "\n" not in str(refusal.value)


def test_a_table_of_no_rows_is_refused(task, tmp_path):
    path = tmp_path / "reviews" / "scored.tsv"
    path.write_text("document\tlabel\n")
    with pytest.raises(InputRefusedError, match=f"{path}: there are no rows"):
        read_data(task, tmp_path, Protocol())


def test_a_folder_without_the_files_is_refused_by_the_file_that_lacks(task, tmp_path):
    for folder in (tmp_path / "absent", tmp_path / "reviews.toml"):
        with pytest.raises(InputRefusedError, match=f"{folder}/reviews/scored.tsv: no such file"):
            read_data(task, folder, Protocol())
    (tmp_path / "reviews" / "shots.tsv").unlink()
    assert read_data(task, tmp_path, Protocol()).shots is None
    with pytest.raises(InputRefusedError, match="reviews/shots.tsv: no such file"):
        read_data(task, tmp_path, Protocol(shots=(0, 1)))


JSON_TASK = (
    TASK.replace("scored.tsv", "scored.json")
    .replace('document = "document"', 'document = "text.said"\ndegree = { column = "stars.mean" }')
    .replace("values = { 0 = 0, 1 = 1 }", "at_least = 3")
    .replace('column = "label"', 'column = "stars.mean"')
)
GOOD = {"text": {"said": "최고"}, "stars": {"mean": 3}}


def test_true_and_false_are_written_as_in_the_file(tmp_path):
    text = JSON_TASK.replace("at_least = 3", "values = { true = 1, false = 0 }")
    text = text.replace('degree = { column = "stars.mean" }', "")
    path = write_task(tmp_path, text)
    rows = [{"text": {"said": "최고"}, "stars": {"mean": mean}} for mean in (True, False)]
    (tmp_path / "reviews" / "scored.json").write_text(json.dumps(rows), encoding="utf-8")
    assert [row.label for row in read(load_task(str(path)), tmp_path).rows] == [1, 0]


def test_names_are_what_is_read_however_their_hangul_is_spelt(tmp_path):
    """In tables and objects, and where a key that holds a dot is no path."""
    text = TASK.replace('document = "document"', 'document = "본문.글"')
    tasks = [
        load_task(str(write_task(tmp_path, text.replace("scored.tsv", f"scored.{kind}"))))
        for kind in ("tsv", "json")
    ]
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "본문.글")
        (tmp_path / "reviews" / "scored.tsv").write_text(f"{name}\tlabel\n좋다\t1\n")
        rows = json.dumps([{name: "좋다", "label": 1}])
        (tmp_path / "reviews" / "scored.json").write_text(rows)
        for task in tasks:
            assert read(task, tmp_path).rows[0].fields["document"] == "좋다"


def test_texts_that_look_quoted_are_noted(task, tmp_path):
    path = tmp_path / "reviews" / "scored.tsv"
    for cell, noted in (('"그는 ""안녕"" 했다"', True), ('"그는 안녕 했다"', False)):
        path.write_text(f"document\tlabel\n{cell}\t1\n좋다\t0\n")
        found = read(task, tmp_path)
        assert found.rows[0].fields["document"] == cell
        words = "1 rows of scored.tsv look quoted, as by a program that writes CSV; their quotation"
        assert any(note.startswith(words) for note in found.notes) is noted


def write_quoted(name, content, folder):
    """A task whose scored file, of that name, is quoted."""
    lines = f'file = "reviews/{name}"' + ("" if name.endswith(".csv") else "\nquoted = true")
    path = write_task(folder, TASK.replace('file = "reviews/scored.tsv"', lines))
    (folder / "reviews" / name).write_text(content, encoding="utf-8", newline="")
    return load_task(str(path))


@pytest.mark.parametrize(("name", "comma"), [("scored.csv", ","), ("scored.tsv", "\t")])
def test_quoted_cells_are_what_was_written(name, comma, tmp_path):
    cells = [f'그는 "안녕"{comma} 했다', "두\n줄", '"', "", "보통"]
    table = io.StringIO()
    csv.writer(table, delimiter=comma).writerows([["document", "label"], *([c, 1] for c in cells)])
    found = read(write_quoted(name, "\ufeff" + table.getvalue(), tmp_path), tmp_path)
    assert [row.fields["document"] for row in found.rows] == cells
    assert found.notes == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('document,label\n"가,1\n', "line 2: unexpected end of data"),
        ('document,label\n"가"나,1\n', "line 2: ',' expected after '\"'"),
        ('document,label\n"가\n나",1\n다\n', "line 4 has 1 columns, the header 2"),
        ('document,label\n"가\n나",1\n다,3\n', "row 1: label is '3'; known are 0, 1"),
        ("document\tlabel\n가\t1\n", "no column 'document'; commas part columns here: document"),
    ],
)
def test_a_quoted_table_that_is_damaged_is_refused_by_its_line(content, words, tmp_path):
    task = write_quoted("scored.csv", content, tmp_path)
    with pytest.raises(InputRefusedError) as refusal:
        read(task, tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / 'reviews' / 'scored.csv'}: {words}")


def test_the_quoted_sentences_of_hellaswag_lose_their_quotes():
    """As by the publisher's own loader, https://huggingface.co/datasets/skt/kobest_v1."""
    endings = [text for row in real("kobest_hellaswag").rows for text in row.text]
    assert (
        '플레이어가 점수판에서 5칸을 연속으로 덮었다면 모두가 알 수 있게 "빙고"라고 외쳐야 한다.'
        in endings
    )
    assert not any('""' in text for text in endings)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_keys_of_objects_are_paths(mark, tmp_path):
    task = load_task(str(write_task(tmp_path, JSON_TASK)))
    rows = [GOOD, {"text": {"said": "a\nb\r\n"}, "stars": {"mean": 2.5}}]
    path = tmp_path / "reviews" / "scored.json"
    path.write_text(mark + json.dumps(rows), encoding="utf-8")
    found = read(task, tmp_path)
    assert [row.fields["document"] for row in found.rows] == ["최고", "a\nb\r\n"]
    assert [(row.label, row.degree) for row in found.rows] == [(1, 3.0), (0, 2.5)]
    assert found.counts == (1, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"not JSON \(Expecting value: line 1 column 1"),
        ("[", r"not JSON \(Expecting value: line 1 column 2"),
        (json.dumps([GOOD, GOOD], indent=1)[:-8], r"not JSON \(Expecting .*: line 1[0-9] column"),
        (json.dumps(GOOD), "must be a list of objects"),
        ("3", "must be a list of objects"),
        (json.dumps([GOOD, 3]), "row 1: no key 'text.said'"),
        (json.dumps([GOOD, {**GOOD, "text": {}}]), "row 1: no key 'text.said'"),
        (json.dumps([GOOD, {**GOOD, "text": "최고"}]), "row 1: no key 'text.said'"),
        (json.dumps([GOOD, {**GOOD, "text": {"said": None}}]), "row 1: text.said is null, no text"),
        (json.dumps([{**GOOD, "text": {"said": ["a"]}}]), "row 0: text.said is \\[.a.\\], no text"),
        (json.dumps([GOOD, {**GOOD, "text": {"said": "\ud800"}}]), "row 1: .*surrogate"),
        (json.dumps([GOOD, {"text": GOOD["text"]}]), "row 1: no key 'stars.mean'; there are text"),
        (json.dumps([{**GOOD, "stars": {"mean": "x"}}]), "row 0: stars.mean is 'x', no number"),
        (json.dumps([{**GOOD, "stars": {"mean": None}}]), "row 0: stars.mean is null, no text"),
        (json.dumps([{**GOOD, "stars": {"mean": float("nan")}}]), "row 0: stars.mean is 'nan', no"),
        (json.dumps([{**GOOD, "stars": {"mean": 1e999}}]), "row 0: stars.mean is 'inf', no number"),
        ("[" * 100_000, r"not JSON \(nested too deeply\)"),
        ('[{"text": 1, "text": 2}]', r"not JSON \('text' appears twice\)"),
    ],
)
def test_json_that_is_not_what_it_should_be_is_refused_by_its_row(content, words, tmp_path):
    task = load_task(str(write_task(tmp_path, JSON_TASK)))
    path = tmp_path / "reviews" / "scored.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputRefusedError, match=f"^{path}: {words}") as refusal:
        read(task, tmp_path)
    assert "\n" not in str(refusal.value)


def test_json_that_is_no_utf_8_is_refused(tmp_path):
    task = load_task(str(write_task(tmp_path, JSON_TASK)))
    path = tmp_path / "reviews" / "scored.json"
    path.write_bytes(json.dumps([GOOD], ensure_ascii=False).encode("cp949"))
    with pytest.raises(
        InputRefusedError, match=rf"^{path}: not JSON \('utf-8' codec can't decode byte"
    ):
        read(task, tmp_path)


def test_a_degree_that_is_no_number_is_refused_by_its_column(tmp_path):
    text = TASK.replace("[fields]\n", '[fields]\ndegree = "label"\n')
    task = load_task(str(write_task(tmp_path, text)))
    assert [row.degree for row in read(task, tmp_path).rows] == [1.0, 0.0, 1.0, 1.0, 0.0]
    text = text.replace("values = { 0 = 0", "values = { high = 1, 0 = 0")
    task = load_task(str(write_task(tmp_path, text)))
    path = write_table(tmp_path / "reviews" / "scored.tsv", [("document", "label"), ("a", "high")])
    with pytest.raises(InputRefusedError, match=f"^{path}: line 2: label is 'high', no number"):
        read(task, tmp_path)


def test_rows_of_equal_texts_are_the_same_whatever_stands_beside_the_texts(tmp_path):
    task = load_task("kobest_copa")
    header = ("ID", "sentence", "question", "1", "2", "Answer")
    rows = [header, (1, "가", "원인", "나", "다", 1), (2, "가", "결과", "나", "다", 2)]
    write_table(tmp_path / task.scored.file, [*rows, (3, "가", "원인", "나", "라", 1)])
    one, two, three = read(task, tmp_path).rows
    assert one.text == two.text == ("가", "나", "다") != three.text
    assert sorted(one.content) == ["alternative_1", "alternative_2", "premise"]


@pytest.mark.parametrize("rule", ["values = { 0 = 1, 1 = 0 }", "at_least = 1"])
def test_a_degree_is_a_number_as_it_stands(tmp_path, rule):
    field = f'degree = {{ column = "label", {rule} }}'
    path = write_task(tmp_path, TASK.replace("[fields]\n", f"[fields]\n{field}\n"))
    with pytest.raises(InputRefusedError, match="fields.degree: is a number as it stands"):
        load_task(str(path))
