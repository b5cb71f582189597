"""``metrics.jsonl`` after kills at the worst moments."""

import json

from zoo.reports.records import RecordFile, cut_records, read_records, write_atomically


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
    assert read_records(path) == [{"split": "train", "step": 1}]


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
    cut_records(path, step=6, evaluated_step=3)
    assert read_records(path) == records[:4]


def test_cutting_nothing_makes_an_empty_file(tmp_path):
    cut_records(tmp_path / "metrics.jsonl", step=0, evaluated_step=0)
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_atomic_writing_replaces_the_whole_file(tmp_path):
    path = tmp_path / "report.json"
    for value in (1, 2):
        write_atomically(path, json.dumps(value))
    assert path.read_text() == "2"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
