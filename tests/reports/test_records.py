"""``metrics.jsonl`` after kills at the worst moments."""

import json

from zoo.files import write_atomically
from zoo.reports.records import RecordFile, cut_records, read_records


def write(path, records):
    file = RecordFile(path)
    for record in records:
        file.write(record)
    file.close()


def test_an_unfinished_last_line_is_no_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [{"split": "train", "step": 1}])
    with path.open("a") as file:
        file.write('{"split": "train", "st')
    said = []
    assert read_records(path, said.append) == [{"split": "train", "step": 1}]
    assert said == [f"{path}: the last line, which a crash has cut off, is left out"]


def test_cutting_leaves_what_the_checkpoint_knows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [
        {"split": "train", "step": 3},
        {"split": "validation", "step": 3},
        {"split": "train", "step": 6},
        {"split": "train_epoch", "step": 6},
        {"split": "validation", "step": 6},
        {"split": "train", "step": 9},
        {"split": "test", "step": 9},
    ]
    write(path, records)
    said = []
    cut_records(path, 6, 3, epochs=1, say=said.append)
    assert read_records(path, said.append) == records[:4]
    assert said == []


def test_cutting_nothing_makes_an_empty_file(tmp_path):
    said = []
    cut_records(tmp_path / "metrics.jsonl", 0, 0, epochs=0, say=said.append)
    assert said == []
    assert read_records(tmp_path / "metrics.jsonl", said.append) == []
    assert said == [f"{tmp_path / 'metrics.jsonl'} holds no records"]


def test_atomic_writing_replaces_the_whole_file(tmp_path):
    path = tmp_path / "report.json"
    for value in (1, 2):
        write_atomically(path, json.dumps(value))
    assert path.read_text() == "2"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
