"""Which folder a run takes, and that two runs never share one."""

import subprocess
import sys
import textwrap

import pytest

from zoo.config import base, check, differences, from_json, to_json
from zoo.workdir import Workdir, WorkdirError, claim


def config(**train):
    made = base(model="cnn", task="classification")
    made.train.update(train)
    return check(made)


def take(tmp_path, wanted, *, explicit=None, restart=False):
    said = []
    folder = claim(
        lambda saved: differences(from_json(saved), wanted, steps_per_epoch=100),
        default=tmp_path / "cnn",
        explicit=explicit,
        restart=restart,
        say=said.append,
    )
    folder.save_config(to_json(wanted))
    return folder, said


def test_the_same_run_gets_the_same_folder(tmp_path):
    for _ in range(2):
        folder, said = take(tmp_path, config())
        assert (folder.path, said) == (tmp_path / "cnn", [])
        folder.close()


def test_another_run_moves_the_default_on_and_says_why(tmp_path):
    for number, batch_size in enumerate((64, 32, 16, 32)):
        folder, said = take(tmp_path, config(batch_size=batch_size))
        folder.close()
        assert folder.path.name == ("cnn", "cnn-2", "cnn-3", "cnn-2")[number]
        if number:
            assert "train.batch_size is 64 there and" in said[0]


def test_an_explicit_folder_with_another_run_is_refused_with_the_differences(tmp_path):
    take(tmp_path, config(batch_size=32))[0].close()
    with pytest.raises(WorkdirError, match=r"train\.batch_size is 32 there and 64 here"):
        take(tmp_path, config(), explicit=tmp_path / "cnn")


@pytest.mark.parametrize("content", ["", '{"seed": 0}', "{", '{"model": {"name": "gone"}}'])
def test_a_folder_with_other_files_is_refused(tmp_path, content):
    (tmp_path / "thesis.tex").write_text("years of work")
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(WorkdirError, match="config.json"):
        take(tmp_path, config(), explicit=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_restart_moves_the_old_run_aside(tmp_path):
    folder, _ = take(tmp_path, config())
    (folder.path / "metrics.jsonl").write_text("precious\n")
    folder.close()
    for number in (1, 2):
        folder, said = take(tmp_path, config(), restart=True)
        folder.close()
        assert said == [f"moved {tmp_path / 'cnn'} to {tmp_path / f'cnn.old-{number}'}"]
    assert (tmp_path / "cnn.old-1" / "metrics.jsonl").read_text() == "precious\n"
    assert not (tmp_path / "cnn" / "metrics.jsonl").exists()


HOLD = """
    import sys, time
    from pathlib import Path
    from zoo.workdir import Workdir
    folder = Workdir(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_dead_one_recognised(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkdirError, match=f"in use by process {holder.pid} on "):
            Workdir(tmp_path)
        with pytest.raises(WorkdirError, match="in use"):
            take(tmp_path, config(), explicit=tmp_path, restart=True)
        holder.kill()
    folder = Workdir(tmp_path)
    assert folder.stale_holder.startswith(f"process {holder.pid} on ")
    folder.close()
    assert Workdir(tmp_path).stale_holder is None
