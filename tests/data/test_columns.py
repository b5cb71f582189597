import pytest

from zoo.data import DataError
from zoo.data.columns import read_columns


def test_all_kinds_of_file_give_the_same_rows(tmp_path):
    files = {
        "a.csv": 'n,text,label\r\n1,"one, ""two""",x\r\n2,b,y\r\n',
        "a.tsv": 'n\ttext\tlabel\n1\tone, "two"\tx\n2\tb\ty\n',
        "a.jsonl": '{"text": "one, \\"two\\"", "label": "x"}\n\n{"label": "y", "text": "b"}\n',
    }
    expected = [{"text": 'one, "two"', "label": "x"}, {"text": "b", "label": "y"}]
    for name, content in files.items():
        (tmp_path / name).write_text(content, newline="")
        rows = read_columns(tmp_path / name, ("text", "label"))
        assert [row for _, row in rows] == expected
    assert [number for number, _ in rows] == [1, 3]


def test_a_cell_may_have_line_breaks_and_lines_are_still_counted(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text\n"a\nb"\nc\n')
    assert read_columns(file, ("text",)) == [(2, {"text": "a\nb"}), (4, {"text": "c"})]
    file.write_text('text,n\n"a\nb",1\nc\n')
    with pytest.raises(DataError, match="line 4 has 1 columns, the header has 2"):
        read_columns(file, ("text",))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"a,b", ["must end in .csv, .tsv or .jsonl"]),
        ("a.csv", b"", ["is empty"]),
        ("a.csv", b"text\n", ["is empty"]),
        ("a.csv", b'text\n"open\n', ["line 2", "is not valid .csv"]),
        ("a.csv", b"txt\nb\n", ["line 2", "'text'", "Did you mean 'txt'"]),
        ("a.tsv", b"text\tb\na\n", ["line 2", "1 columns"]),
        ("a.tsv", b"text\nna\xefve\n", ["byte 7 is 0xef"]),
        ("a.jsonl", b'{"text": 3}\n', ["line 1", "'text'"]),
        ("a.jsonl", b"[1]\n", ["line 1", "'text'"]),
        ("a.jsonl", b"{oops\n", ["line 1", "not JSON"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refusal:
        read_columns(tmp_path / name, ("text",))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_a_missing_column_names_its_field_and_that_a_header_may_be_missing(tmp_path):
    (tmp_path / "a.tsv").write_text("word\tthe sound\nother\tsound\n")
    with pytest.raises(DataError) as refusal:
        read_columns(tmp_path / "a.tsv", ("source", "target"), ("source_column", "target_column"))
    text = str(refusal.value)
    assert "no text in the column 'source' (data.source_column)" in text
    assert "Known: the sound, word." in text
    assert "The first line is read as the header: if it is data, write one above it." in text
