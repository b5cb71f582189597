import csv

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


def rows_of(tmp_path, name, content, columns, **options):
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_columns(file, columns, [f"{column}_column" for column in columns], **options)


def test_a_cell_may_hold_what_python_takes_for_a_line_end(tmp_path):
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    for name, content in (
        ("a.csv", f"text,label\n{odd},x\n"),
        ("a.tsv", f"text\tlabel\n{odd}\tx\n"),
        ("a.jsonl", f'{{"text": "{odd}", "label": "x"}}\n'.replace("\x0b", "\\u000b")
         .replace("\x0c", "\\f").replace("\x1c", "\\u001c")),
    ):  # fmt: skip
        assert [row for _, row in rows_of(tmp_path, name, content, ("text", "label"))] == [
            {"text": odd, "label": "x"}
        ], name


@pytest.mark.parametrize("suffix", ["csv", "tsv", "CSV"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_pythons_writer_wrote_is_read_again(tmp_path, suffix, encoding, end):
    rows = [
        ['say "hi"', "1"], ['"all"', "2"], ["two\nlines", "3"], ["a,b\tc", "4"], ["", "5"],
        ["x" * 200_000, "6"], ["naïve 😀", "7"], [" spaces ", "8"], ["'", "9"],
    ]  # fmt: skip
    file = tmp_path / f"a.{suffix}"
    with file.open("w", encoding=encoding, newline="") as opened:
        writer = csv.writer(opened, lineterminator=end, delimiter="\t" if suffix == "tsv" else ",")
        writer.writerows([["text", "label"], *rows])
    before = csv.field_size_limit()
    found = [[row["text"], row["label"]] for _, row in read_columns(file, ("text", "label"))]
    assert found == rows
    assert csv.field_size_limit() == before


def test_a_name_above_two_columns_is_refused_only_if_it_is_read(tmp_path):
    table = "text,label,text,,\na,x,id0,,\n"
    assert rows_of(tmp_path, "a.csv", table, ("label",)) == [(2, {"label": "x"})]
    with pytest.raises(DataError, match=r"2 columns are called 'text' \(data.text_column\)"):
        rows_of(tmp_path, "a.csv", table, ("text", "label"))
    with pytest.raises(DataError, match="line 1: 2 columns are called 'text'"):
        rows_of(tmp_path, "a.jsonl", '{"text": "a", "text": "b"}\n', ("text",))


def test_a_name_is_the_same_however_its_accents_are_written(tmp_path):
    assert rows_of(tmp_path, "a.csv", "Gro\u0308\xdfe,b\n1,2\n", ("Gr\xf6\xdfe",)) == [
        (2, {"Gr\xf6\xdfe": "1"})
    ]


def test_values_of_json_are_read_as_json_writes_them(tmp_path):
    written = ['"a"', "1", "-0", "1.0", "1e3", "12345678901234567890123", "true", "false", "null"]
    content = "".join(f'{{"label": {value}}}\n' for value in written)
    found = rows_of(tmp_path, "a.jsonl", content, ("label",), values=("label",))
    assert [row["label"] for _, row in found] == ["a", *written[1:-1], ""]
    for value, words in (
        ("3", "holds the number 3, not a text: put it in quotes"),
        ("true", "holds true or false, not a text: put it in quotes"),
        ("null", "holds null, not a text"),
        ("[1]", "holds a list, not a text"),
        ('{"a": 1}', "holds an object, not a text"),
        (r'"a\ud83d"', r"line 2: .*'text' \(data.text_column\) has \\ud83d, half of a character"),
        (r'"\ude00"', "half of a character"),
    ):
        with pytest.raises(DataError, match=words):
            rows_of(tmp_path, "a.jsonl", f'\n{{"text": {value}}}\n', ("text",))
    whole = rows_of(tmp_path, "a.jsonl", r'{"text": "\ud83d\ude00"}', ("text",))
    assert whole[0][1]["text"] == "😀"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text;label\na;b\n", ["semicolons", "save the file with commas"]),
        ("a.tsv", "text,label\na,b\n", ["commas", ".csv for commas"]),
        ("a.csv", "text,b\na,1\n\n'x,y',2\n", ["line 4 has 3 columns", "comma in quotes"]),
        ("a.tsv", 'text\tb\nok\t1\n"tis so\t2\n', ["line 3 is not valid .tsv", "doubled"]),
        ("a.tsv", 'text\tb\n"a" said he\t2\n', ["line 2 is not valid .tsv"]),
        ("a.jsonl", "[" * 100_000, ["line 1 is not JSON"]),
        ("a.jsonl", '{"text":\n"a"}\n', ["line 1 is not JSON", "object of its own"]),
        ("a.jsonl", "17\n", ["line 1 holds the number 17, not an object"]),
        ("a.jsonl", '"a"\n', ["line 1 holds a text, not an object"]),
        ("a.csv", "text\0\na\n", ["NUL"]),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_the_fix(tmp_path, name, content, words):
    with pytest.raises(DataError) as refusal:
        rows_of(tmp_path, name, content, ("text",))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
