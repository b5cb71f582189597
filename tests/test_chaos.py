"""The short form of ``python -m tests.chaos``: a few cases of each kind of injection.

Kills and signals are in ``test_kill.py``.
"""

import dataclasses

import pytest
from chaos import inputs, page, runs, settings
from chaos.kinds import Kind, run_kind

# A run that ends within seconds.
FAMILIES = ["forecast"]


# The others are tried a dozen times.
CASES = {"configs": 4, "weights": 200}


@pytest.mark.parametrize("kind", [*settings.kinds(), *inputs.kinds()], ids=lambda kind: kind.name)
def test_what_is_odd_is_read_or_refused_by_name(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = dataclasses.replace(kind, cases=CASES.get(kind.name, 12))
    count = run_kind(few, seed=1, folder=tmp_path, seconds=600)
    assert not count.broken, count.broken
    assert count.tried == few.cases


@pytest.fixture(scope="module")
def injected(tmp_path_factory):
    return {kind.name: kind for kind in runs.kinds(tmp_path_factory.mktemp("runs"), FAMILIES)}


@pytest.mark.xdist_group("chaos")
@pytest.mark.parametrize("name", ["power", "disk", "bits"])
def test_a_run_survives(injected, name, tmp_path):
    count = run_kind(injected[name], seed=1, folder=tmp_path, seconds=0)
    assert not count.broken, count.broken


def test_what_breaks_or_does_not_end_is_counted_and_its_files_stay(tmp_path):
    def case(chance, folder):
        (folder / "file").write_text("content")
        number = int(folder.name)
        if number == 1:
            raise ValueError("broken")
        if number == 2:
            while True:
                pass
        return "survived"

    kind = Kind("made", "nothing", "all", case, cases=4, seconds=1)
    count = run_kind(kind, seed=0, folder=tmp_path, seconds=60)
    assert count.outcomes == {"survived": 2}
    assert [(number, type(error)) for number, error in count.broken] == [
        (1, ValueError), (2, TimeoutError),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["1", "2"]
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write(path, [count], seed=0)
    written = path.read_text()
    assert "| nothing | all | 4 | 2 | 2 | 2 survived |" in written
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
