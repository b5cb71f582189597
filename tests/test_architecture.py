"""What the import contract of pyproject.toml cannot say."""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Reads what is installed; hardly changes within a test session.
packages_distributions = functools.cache(importlib.metadata.packages_distributions)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Needed by a dependency that does not say so, or to fit another one: nobody imports these.
NOT_IMPORTED = {"array-record", "jaxlib"}


def declared(requirements: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(requirement) for requirement in requirements]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def imported_distributions(path: Path) -> set[str]:
    """The distributions of all imports in a file, those inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    providers = packages_distributions()
    # What is not installed here, such as TensorFlow, goes by its own name.
    return {
        canonicalize_name(providers.get(top, [top])[0])
        for top in tops - {"zoo", "configs", "train"}
    }


def shipped_files() -> list[Path]:
    return [*(ROOT / "zoo").rglob("*.py"), *(ROOT / "configs").glob("*.py"), ROOT / "train.py"]


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sorted({{n.partition('.')[0] for n in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["zoo.commands", "zoo.data", "zoo.fields", "zoo.workdir"])
def test_what_needs_no_jax_does_not_wait_for_it(module):
    loaded = modules_after(f"import {module}")
    assert "zoo" in loaded  # the listing works
    assert not loaded & {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow"}


@pytest.mark.parametrize("module", ["zoo.config", "zoo.cli"])
def test_a_typo_does_not_wait_for_what_only_a_run_needs(module):
    loaded = modules_after(f"import {module}")
    assert "zoo" in loaded
    assert not loaded & {
        *("orbax", "grain", "tensorflow_datasets", "tensorflow", "sklearn", "matplotlib"),
        *("tensorboardX", "scipy", "safetensors", "huggingface_hub", "jinja2"),
    }


def test_import_zoo_is_light():
    loaded = modules_after("import zoo")
    assert "zoo" in loaded
    assert not loaded & {
        *("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow"),
        *("sklearn", "matplotlib", "tensorboardX"),
    }


def test_the_composition_root_imports_what_it_needs_when_it_needs_it():
    loaded = modules_after("import zoo.runner")
    assert "jax" in loaded
    assert not loaded & {"sklearn", "matplotlib", "tensorflow_datasets", "tensorflow", "torch"}


def test_every_import_is_of_a_declared_base_dependency():
    base = declared(PROJECT["dependencies"]).keys()
    to_prepare = base | declared(PROJECT["optional-dependencies"]["prepare"]).keys()
    for path in shipped_files():
        allowed = to_prepare if path == ROOT / "zoo/data/prepare.py" else base
        assert imported_distributions(path) <= allowed, path


def test_every_base_dependency_is_imported():
    used = set().union(*map(imported_distributions, shipped_files()))
    assert declared(PROJECT["dependencies"]).keys() == used | NOT_IMPORTED


def test_one_module_calls_orbax():
    users = [path for path in shipped_files() if "orbax-checkpoint" in imported_distributions(path)]
    assert users == [ROOT / "zoo/training/checkpoints.py"]


def test_lock_lies_in_the_declared_ranges():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    lock = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    lock = {canonicalize_name(name): version for name, version in lock.items()}
    extras = PROJECT["optional-dependencies"]
    requirements = declared([*PROJECT["dependencies"], *extras["test"], *extras["benchmarks"]])
    for name, requirement in requirements.items():
        assert requirement.specifier.contains(lock[name]), requirement
    # The peers that test.sh installs without their dependencies.
    pinned = re.findall(r"(\w+)==([\w.]+)", (ROOT / "test.sh").read_text())
    assert dict(pinned).keys() == {"torchvision", "timm"}
    assert all(lock[name] == version for name, version in pinned)
