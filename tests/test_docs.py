"""What README and docs say can be done, done as far as that is quick."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import machine, quality
from zoo import building, cli, commands, config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = ROOT / "examples"


def lines_of_commands(begin: str) -> list[str]:
    """The indented lines of all pages, and of the configs' headers, that begin with a word."""
    pages = [*PAGES, *sorted((ROOT / "configs").glob("*.py"))]
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return sorted({line for line in lines if line.startswith(begin)})


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    # In a config's header a remark stands behind spaces.
    return [word for word in words if not re.fullmatch(r"[A-Z]+", word)]


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_pages_is_python(page):
    for block in page.read_text().split("```python\n")[1:]:
        compile(block.partition("```")[0], page.name, "exec")


def test_files_in_commands_are_there():
    lines = [*lines_of_commands("zoo "), *lines_of_commands("python train.py")]
    named = {name for line in lines for name in re.findall(r"examples/[\w./-]*\w", line)}
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def test_commands_that_train_have_fields_that_exist_and_data_that_are_read():
    lines = lines_of_commands("python train.py")
    assert len(lines) > 15
    for line in lines:
        words = words_of(line)
        if "--config" not in words or "--help" in words:
            continue
        made = commands.load_config(words[words.index("--config") + 1])
        overrides = [word for word in words if word.startswith("--config.")]
        config = commands.override(made, overrides)
        if config.data.get("path", "").startswith("examples/"):
            _, dataset = building.with_data(config)
            assert min(dataset.sizes.values()) > 0, line


def exit_code(arguments: list[str]) -> int:
    try:
        cli.main(arguments)
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize("line", lines_of_commands("zoo "))
def test_commands_of_zoo_are_understood(line, tmp_path, monkeypatch, capsys):
    """Each ends because there is no such run, not because of how it is written."""
    words = words_of(line)
    if words[1] == "prepare":
        pytest.skip("downloads")
    if words[1] == "plan":
        # It compiles for minutes; tests/planning/test_plan.py plans smaller steps.
        assert exit_code([*words[1:], "--help"]) == 0
        given = commands.load_config(str(ROOT / words[words.index("--config") + 1]))
        fields = [word for word in words if word.startswith("--config.")]
        config.check(commands.override(given, fields))
        return
    if words[1] == "launch":
        # tests/test_many.py starts it.
        assert (ROOT / words[words.index("--") + 1]).is_file()
        return
    if words[1] == "report" and any("*" in word for word in words):
        words = [word.replace("*", "cnn") for word in words]
    if words[1] == "list":
        words.append("--names")  # what is told of each model beside its name takes long
    monkeypatch.chdir(tmp_path)
    code = exit_code(words[1:])
    said = capsys.readouterr().err
    assert "usage:" not in said
    if words[1] != "list" and "--help" not in words:
        assert code == commands.USER_ERROR, said
        assert "runs/" in said


def test_examples_are_what_the_program_makes(tmp_path):
    done = subprocess.run(
        [sys.executable, "scripts/make_examples.py", f"--out={tmp_path}"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr

    def files(folder):
        return sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())

    assert files(tmp_path) == [f for f in files(EXAMPLES) if f.name != "README.md"]
    for name in files(tmp_path):
        made, shipped = tmp_path / name, EXAMPLES / name
        # How a picture or an archive is compressed depends on the libraries' versions.
        if name.suffix == ".png":
            np.testing.assert_array_equal(Image.open(made), Image.open(shipped))
        elif name.suffix == ".npz":
            with np.load(made) as new, np.load(shipped) as old:
                assert new.files == old.files
                for array in new.files:
                    np.testing.assert_array_equal(new[array], old[array])
        else:
            assert made.read_bytes() == shipped.read_bytes(), name


def test_every_file_of_the_examples_is_described_with_its_licence():
    rows = [
        line for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith("| `")
    ]
    described = {name.strip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    for file in EXAMPLES.rglob("*"):
        if file.is_file() and file.name != "README.md":
            name = file.relative_to(EXAMPLES)
            assert {name.as_posix(), *(p.as_posix() for p in name.parents)} & described, name


def test_modules_named_in_pages_exist():
    for page in PAGES:
        for name in re.findall(r"python -m (benchmarks[\w.]*)", page.read_text()):
            assert importlib.util.find_spec(name), f"{page.name}: {name}"


def test_the_example_of_the_shared_step_runs():
    """The other pages' examples need finished runs."""
    blocks = (ROOT / "docs/training.md").read_text().split("```python\n")[1:]
    assert blocks
    for block in blocks:
        exec(compile(block.partition("```")[0], "training.md", "exec"), {})


def test_a_config_says_the_time_and_the_score_that_the_table_has():
    results = json.loads(quality.RESULTS.read_text())
    for one in quality.CONFIGS:
        if not one.about and one.name not in ("lstm-gru", "lstm-rnn", "resnet-cifar10_30min"):
            continue
        found = [result for result in results if result["config"] == one.name]
        text = (ROOT / "configs" / f"{one.config}.py").read_text()
        header = " ".join(text.split('"""')[1].split())
        minutes = quality.minutes(quality.time_of(found, machine.is_older)[0])
        assert re.search(rf"\b{minutes} minutes?\b", header), f"{one.name}: {minutes}"
        values = [result["metrics"][one.own][one.metrics[0]] for result in found]
        mean = sum(values) / len(values)
        said = {f"{mean:.2f}", f"{mean:.1f}", f"{100 * mean:.1f} %", f"{100 * mean:.0f} %"}
        assert any(value in header for value in said), f"{one.name}: {said}"


def script(name):
    """A module of ``scripts/``."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_every_dependency_is_listed_with_a_reason_and_a_licence_that_binds_no_user(tmp_path):
    """``python scripts/make_dependencies.py --out=docs/dependencies.md`` writes the page anew."""
    make_dependencies = script("make_dependencies")
    page = tmp_path / "dependencies.md"
    make_dependencies.write(page)
    assert page.read_text() == (ROOT / "docs" / "dependencies.md").read_text()
    locked = make_dependencies.locked()
    assert set(make_dependencies.direct()) <= set(locked)
    for name in locked:
        assert not re.search(r"(?<!L)GPL|Affero", make_dependencies.licence(name)), name
    # Nothing is installed for nobody.
    assert "|  |" not in page.read_text()


def test_the_api_pages_are_what_the_docstrings_say(tmp_path):
    """``python scripts/make_api.py --out=docs/api`` writes them anew."""
    script("make_api").write(tmp_path)
    pages = ROOT / "docs" / "api"
    assert {file.name for file in tmp_path.glob("*")} == {file.name for file in pages.glob("*")}
    for file in tmp_path.glob("*"):
        assert file.read_text() == (pages / file.name).read_text(), file.name
    models = (tmp_path / "models.md").read_text()
    # Shapes are as in the source, and flax's own attributes are not there.
    assert 'Float[Array, "batch height width channels"]' in models
    assert "parent" not in models
    assert "jaxtyping." not in models
