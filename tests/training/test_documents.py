"""Documents out of files."""

import lzma

import pytest

from kogpt.errors import InputRefusedError
from kogpt.training.documents import is_held_out, read_documents

ROWS = 'id\trating\tdocument\n1\t10\t"최고\n2\t1\t 별로 \r\n3\t5\t\n'


def read(path, column="document"):
    return list(read_documents([path], column))


@pytest.mark.parametrize("compress", [False, True])
def test_a_column_is_read_unquoted_with_empty_rows_kept(tmp_path, compress):
    path = tmp_path / ("a.tsv.xz" if compress else "a.tsv")
    data = ROWS.encode()
    path.write_bytes(lzma.compress(data) if compress else data)
    assert read(path) == ['"최고', " 별로 ", ""]
    assert read(path, "rating") == ["10", "1", "5"]


def test_a_text_file_holds_one_document_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff하나\n\n둘\u2028셋\x85넷".encode())  # a byte order mark, odd separators
    assert read(path) == ["하나", "", "둘\u2028셋\x85넷"]


def test_a_text_file_whose_first_line_names_the_column_is_a_table(tmp_path):
    path = tmp_path / "ratings.txt"
    path.write_bytes(ROWS.encode())
    assert read(path) == ['"최고', " 별로 ", ""]
    path.write_text("document\n하나\n", encoding="utf-8")  # a word alone is a document
    assert read(path) == ["document", "하나"]


def test_a_text_file_without_the_column_that_is_named_is_refused(tmp_path):
    path = tmp_path / "ratings.txt"
    for text in (ROWS, "하나\n둘\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputRefusedError, match="ratings.txt: no column 'review'"):
            list(read_documents([path], "review"))


def test_every_hundredth_row_is_held_out_counting_on_over_files(tmp_path):
    for name, count in (("a.txt", 150), ("b.txt", 60)):
        (tmp_path / name).write_text("\n".join(f"{name} {i}" for i in range(count)))
    documents = read_documents([tmp_path / "a.txt", tmp_path / "b.txt"], "document")
    held_out = [text for index, text in enumerate(documents) if is_held_out(index)]
    assert held_out == ["a.txt 0", "a.txt 100", "b.txt 50"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tsv", b"id\ttext\n1\tx\n", "a.tsv: no column 'document'; there are id, text"),
        ("a.tsv", b"", "a.tsv: is empty"),
        ("a.tsv", b"id\tdocument\n1\tx\n2\n", "a.tsv: line 3 has 1 columns, the header 2"),
        ("a.txt", "좋다\n".encode() + "나쁘다\n".encode("cp949"), "a.txt: line 2 is not UTF-8"),
        ("a.txt.xz", b"not xz at all", "a.txt.xz: damaged after line 0"),
        ("a.txt.xz", lzma.compress(b"word\n" * 999)[:-40], "a.txt.xz: damaged after line"),
        ("a.json", b"{}", "a.json: must be .txt or .tsv"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name_and_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputRefusedError, match=message):
        read(tmp_path / name)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputRefusedError, match="none.txt: No such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(InputRefusedError, match="folder.txt: Is a directory"):
        read(tmp_path / "folder.txt")
    with pytest.raises(InputRefusedError, match=f"{tmp_path}: name its files"):
        read(tmp_path)
