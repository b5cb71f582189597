#!/usr/bin/env bash
# Sets up everything that the checks need and runs them all, from a clean clone or again.
#
#   ./test.sh                    everything: bare imports, linter, types, import contract, tests
#   ./test.sh -m long            the long tests in place of the others
#   ./test.sh tests/layers -x    arguments go to pytest
#   ./test.sh -n 2 --cov         with coverage, which makes it a quarter slower
#   PYTHON=python3.12 ./test.sh  with another Python, 3.11 or later
#   ./test.sh --lock             take the newest allowed versions, write requirements.lock, check
#
# The environment is .venv-test; it is made anew when what it is made from has changed.
set -euo pipefail
cd "$(dirname "$0")"

python="${PYTHON:-python3}"
venv=.venv-test
lock=requirements.lock
constraints=(--constraint "$lock")
relock=false
if [[ "${1:-}" == --lock ]]; then
    constraints=()
    relock=true
    shift
fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: '$python' is not Python 3.11 or later:" \
        "name one, such as PYTHON=python3.11 ./test.sh" >&2
    exit 2
fi

say() {
    printf '\n== %s\n' "$*"
}

run() {
    say "$*"
    "$venv/bin/python" -m "$@"
}

install() {
    "$venv/bin/python" -m pip install --quiet --quiet "${constraints[@]}" "$@"
}

# "+cpu" names a build of torch, not another version.
frozen() {
    "$venv/bin/python" -m pip freeze --exclude-editable | sed 's/+cpu$//'
}

import_every_module() {
    "$venv/bin/python" - <<'PYTHON'
import importlib
import pkgutil

import zoo

names = [module.name for module in pkgutil.walk_packages(zoo.__path__, "zoo.")]
for name in names:
    importlib.import_module(name)
print(f"{len(names)} modules import with the base dependencies only")
PYTHON
}

write_lock() {
    {
        echo "# The versions that were tested together, written by ./test.sh --lock."
        echo "# To use them: pip install -e . --constraint requirements.lock"
        cat "$venv/base.txt"
        echo
        echo "# For tests and benchmarks only:"
        frozen | grep --invert-match --line-regexp --fixed-strings --file="$venv/base.txt"
    } > "$venv/lock"
    mv "$venv/lock" "$lock"
}

stamp() {
    { "$python" --version; pwd; cat pyproject.toml "$lock" test.sh; } | sha256sum
}

if $relock || [[ "$(cat "$venv/stamp" 2> /dev/null)" != "$(stamp)" ]]; then
    say "$venv, with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    # The base dependencies alone first: a hidden need for more shows here.
    install --editable .
    import_every_module
    frozen > "$venv/base.txt"
    install --editable '.[test,benchmarks]'
    # Without their dependencies: they would bring another build of torch.
    install --no-deps torchvision==0.28.0 timm==1.0.31
    if $relock; then
        write_lock
    fi
    stamp > "$venv/stamp"
fi

# For the test of the report page, which is skipped without it, but not in CI.
if ! command -v chromium > /dev/null && [[ "$(id -u)" == 0 ]] && command -v apt-get > /dev/null; then
    say "apt-get install chromium"
    { apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium; } \
        > /dev/null || echo "could not be installed"
fi

run ruff check
run ruff format --check
run mypy
say "lint-imports"
# Its cache outlives a module that was added, and then finds arrows that are not there.
"$venv/bin/lint-imports" --no-logo --no-cache
if [[ $# -eq 0 ]]; then
    run pytest --numprocesses=2 --dist=loadgroup
else
    run pytest "$@"
fi
