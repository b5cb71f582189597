import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from families import TINY
from hypothesis import given
from hypothesis import strategies as st

from zoo import building, cli, commands
from zoo import config as configs
from zoo.errors import UserError
from zoo.planning import cached_plan, chips, find_slice, make_plan, search, what_would_fit
from zoo.planning import plan as planning
from zoo.planning.apart import plan_apart
from zoo.planning.search import candidates, meshes, ranked, reliefs, with_fields, with_mesh

ROOT = Path(__file__).parents[2]
KEYS = {
    "chips", "mesh", "fits", "bytes_per_chip", "flops_per_step", "collective_bytes",
    "step_seconds", "mfu", "tokens_per_second", "compile_seconds",
}  # fmt: skip


def cnn(*overrides):
    """A small network, whose widths eight devices divide, and its data."""
    sizes = ["model.features=(8, 8, 8)", "model.hidden_features=32", "data.image_size=8"]
    small = [f"--config.{field}" for field in [*sizes, "train.batch_size=16"]]
    made = commands.load_config(str(ROOT / "configs/cnn.py"))
    return building.with_data(configs.check(commands.override(made, [*small, *overrides])))


@pytest.fixture(scope="module")
def planned():
    """The plans of a small network on two meshes of eight devices."""
    config, dataset = cnn("--config.train.ema_decay=0.9")
    slice_ = find_slice("cpu:8")
    return {
        "data": make_plan(config, dataset, slice_),
        "fsdp": make_plan(with_mesh(config, {"data": 1, "fsdp": 8}), dataset, slice_),
    }


def test_memory_by_kind_is_that_of_the_arrays(planned):
    config, dataset = cnn("--config.train.ema_decay=0.9")
    state = jax.eval_shape(lambda: building.init_state(building.build(config, dataset)))
    held = planned["data"].bytes_per_chip

    def size(tree):
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    assert held["parameters"] == size(state.params)
    assert held["optimizer"] == size(state.opt_state)
    assert held["state"] == size((state.params, state.opt_state, state.ema_params))
    assert held["total"] >= held["state"] + held["temporaries"]
    assert held["capacity"] > held["total"]


def test_a_divided_state_is_an_eighth(planned):
    whole, part = (planned[mesh].bytes_per_chip for mesh in ("data", "fsdp"))
    assert whole["parameters"] / 8 <= part["parameters"] < whole["parameters"] / 4


def test_gradients_are_summed_once(planned):
    sent = planned["data"].collective_bytes
    parameters = planned["data"].bytes_per_chip["parameters"]
    assert sent.keys() == {"all-reduce"}
    assert parameters <= sent["all-reduce"] < 1.1 * parameters + 1000


def test_the_plan_is_consistent(planned):
    for plan in planned.values():
        peak = plan.chips * find_slice("cpu:8").chip.flops
        assert plan.mfu == pytest.approx(plan.flops_per_step / peak / plan.step_seconds)
        assert plan.tokens_per_second == pytest.approx(16 / plan.step_seconds)
        assert plan.unit == "examples"
        assert math.prod(plan.mesh.values()) == plan.chips == 8
        assert plan.as_json().keys() == KEYS
        json.dumps(plan.as_json())


def test_operations_do_not_depend_on_the_mesh(planned):
    assert planned["data"].flops_per_step == planned["fsdp"].flops_per_step > 0


def test_results_are_cached_until_the_config_changes(tmp_path, planned):
    config, _ = cnn("--config.train.ema_decay=0.9")
    slice_, said = find_slice("cpu:8"), []
    made = []

    def make():
        made.append(planned["data"])
        return made[-1]

    for _ in range(2):
        found = cached_plan(config, slice_, make, say=said.append, folder=tmp_path)
        assert found.as_json() == planned["data"].as_json()
    assert len(made) == 1
    assert "planned before" in said[0]
    cached_plan(config, slice_, make, kind="another", folder=tmp_path)
    assert len(made) == 2
    other = with_fields(config, {"train.batch_size": 32})
    assert planning._key(other, slice_) != planning._key(config, slice_)
    assert planning._key(config, find_slice("cpu:4")) != planning._key(config, slice_)


def test_what_cannot_be_divided_is_refused():
    config, dataset = cnn()
    with pytest.raises(UserError, match="train.batch_size=12.*multiple of 8"):
        make_plan(with_fields(config, {"train.batch_size": 12}), dataset, find_slice("cpu:8"))
    with pytest.raises(UserError, match="has 8 chips and the mesh takes 4"):
        make_plan(with_mesh(config, {"data": 4}), dataset, find_slice("cpu:8"))


@given(chips_=st.sampled_from([1, 2, 6, 8, 64, 256]), rows=st.integers(1, 512))
def test_meshes_divide_chips_and_rows(chips_, rows):
    found = meshes(chips_, rows)
    assert len({tuple(mesh.items()) for mesh in found}) == len(found)
    for mesh in found:
        assert math.prod(mesh.values()) == chips_
        assert rows % (mesh["data"] * mesh["fsdp"]) == 0
    if rows % chips_ == 0:
        assert {"data": chips_, "fsdp": 1, "tensor": 1, "sequence": 1} in found


def test_reliefs_need_less_and_less():
    config, _ = cnn("--config.train.batch_size=64")
    parts = [other.train.accumulate for other in reliefs(config, 8)]
    assert parts[-3:] == [2, 4, 8]


def small_chip(slice_, memory):
    chip = chips.dataclasses.replace(slice_.chip, memory=memory)
    return chips.dataclasses.replace(slice_, chip=chip)


class Planner:
    """Stands for the compiler: memory falls with accumulation, time with the data axis."""

    def __init__(self, example, slice_, needed):
        self.example, self.slice, self.needed, self.made = example, slice_, needed, []

    def __call__(self, config):
        self.made.append(config)
        total = self.needed // config.train.accumulate
        held = {**self.example.bytes_per_chip, "total": total, "capacity": self.slice.chip.memory}
        return planning.dataclasses.replace(
            self.example,
            mesh={axis: config.mesh[axis] for axis in ("data", "fsdp", "tensor", "sequence")},
            fits=total <= self.slice.chip.memory,
            bytes_per_chip=held,
            step_seconds=1.0 / config.mesh.data + config.train.accumulate,
            settings=planning.deciding(config),
        )


def test_a_search_ranks_what_fits_by_time_and_relieves_what_does_not(planned):
    config, dataset = cnn("--config.train.batch_size=64")
    memory = 4 * planned["data"].bytes_per_chip["state"]
    slice_ = small_chip(find_slice("cpu:8"), memory)
    planner = Planner(planned["data"], slice_, needed=2 * memory)
    found = search(config, dataset, slice_, planner, tries=6, say=lambda text: None)
    assert len(planner.made) == len(found) == 6
    assert [plan.fits for plan in found] == sorted((p.fits for p in found), reverse=True)
    times = [plan.step_seconds for plan in found if plan.fits]
    assert times == sorted(times)
    assert times
    assert found[0].mesh["data"] == 8
    assert found[0].settings["train.accumulate"] == 2
    assert ranked(list(reversed(found)))[0] == found[0]


def test_where_nothing_helps_a_mesh_the_next_divides_more(planned):
    config, dataset = cnn("--config.train.batch_size=64")
    slice_ = find_slice("cpu:8")

    class Hungry(Planner):
        """Fits only where the state is divided over all chips, in as many parts as there are."""

        def __call__(self, config):
            plan = super().__call__(config)
            fits = config.mesh.fsdp == 8 and config.train.accumulate == 8
            return planning.dataclasses.replace(plan, fits=fits)

    planner = Hungry(planned["data"], slice_, needed=1)
    found = search(config, dataset, slice_, planner, tries=20, say=lambda text: None)
    assert found[0].fits
    tried = [(made.mesh.fsdp, made.train.accumulate) for made in planner.made]
    # The first mesh in all forms, the others in the smallest alone.
    assert tried[:7] == [(1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (8, 8)]


def test_axes_that_divide_nothing_are_not_tried():
    config, dataset = cnn()
    # No parameter of the small CNN is divided over ``tensor``.
    found = candidates(config, dataset, find_slice("cpu:8"))
    assert found
    assert all(mesh["tensor"] == 1 for mesh in found)


def test_a_state_that_fits_nowhere_says_how_much_it_takes():
    config, dataset = cnn()
    with pytest.raises(UserError, match="the state of the run takes at least .* GiB"):
        candidates(config, dataset, small_chip(find_slice("cpu:8"), 100))


def test_it_says_what_would_fit(planned):
    config, dataset = cnn("--config.train.batch_size=64")
    memory = 4 * planned["data"].bytes_per_chip["state"]
    slice_ = small_chip(find_slice("cpu:8"), memory)
    planner = Planner(planned["data"], slice_, needed=3 * memory)
    plan = planner(with_mesh(config, {"data": 8}))
    lines = what_would_fit(plan, with_mesh(config, {"data": 8}), dataset, slice_, planner, tries=6)
    assert "train.accumulate=4: fits" in lines[-1]
    assert all("does not fit" in line for line in lines[:-1])
    hopeless = Planner(planned["data"], slice_, needed=10**6 * memory)
    lines = what_would_fit(
        hopeless(config), with_mesh(config, {"data": 8}), dataset, slice_, hopeless, tries=2
    )
    assert len(lines) == 3
    assert "lower train.batch_size=64" in lines[-1]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("the total memory required for HLO temporaries (1.50G) exceeds", 1.5 * 2**30),
        ("Ran out of memory in memory space hbm. Used 20.00M of 15.75G hbm", 20 * 2**20),
        ("something else", 0),
    ],
)
def test_the_compilers_refusal_is_read(message, expected):
    assert planning.needed_bytes(message) == expected


def test_the_command_writes_the_plan(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "plan.json"
    arguments = [
        "plan", "--config", str(ROOT / "configs/cnn.py"), "--topology=cpu:8", f"--json={out}",
        "--budget=1e6", *TINY["cnn"], "--config.train.batch_size=16",
    ]  # fmt: skip
    cli._main(arguments)
    assert json.loads(out.read_text()).keys() == KEYS
    shown = capsys.readouterr()
    assert "chip-hours" in shown.out
    assert "compiling" in shown.err
    cli._main(arguments)
    assert "planned before" in capsys.readouterr().err


def test_the_command_refuses_what_does_not_exist():
    arguments = ["plan", "--config", str(ROOT / "configs/cnn.py")]
    with pytest.raises(UserError, match="v6e:16x16"):
        cli._main([*arguments, "--topology=v7:4x4"])
    with pytest.raises(UserError, match="--tries=0"):
        cli._main([*arguments, "--topology=cpu:8", "--tries=0"])


needs_libtpu = pytest.mark.skipif(not chips.has_compiler(), reason="libtpu is not installed")


@needs_libtpu
@pytest.mark.parametrize("kind", list(chips.CHIPS))
def test_the_compiler_knows_every_listed_slice(kind):
    for shape in chips.CHIPS[kind].shapes:
        found = find_slice(f"{kind}:{shape}")
        assert len(found.devices) == math.prod(map(int, shape.split("x")))


@needs_libtpu
def test_a_slice_that_the_compiler_refuses_lists_those_that_exist():
    with pytest.raises(UserError, match="no such slice") as refused:
        find_slice("v5e:3x3")
    assert "v5e:4x4" in str(refused.value)


@needs_libtpu
def test_a_step_is_compiled_for_a_tpu():
    config, dataset = cnn("--config.precision=bfloat16")
    slice_ = find_slice("v5e:2x4")
    plan = make_plan(with_mesh(config, {"data": 4, "fsdp": 2}), dataset, slice_)
    assert plan.fits
    assert plan.bytes_per_chip["capacity"] == int(15.75 * 2**30)
    assert plan.collective_bytes["all-reduce"] > 0
    assert 0 < plan.mfu < 1
    # The same without the machine code, from a process of its own.
    said = []
    quick = plan_apart(with_mesh(config, {"data": 4, "fsdp": 2}), slice_, say=said.append)
    assert quick.work == json.loads(json.dumps(plan.work))
    assert quick.step_seconds == plan.step_seconds
    assert quick.collective_bytes == plan.collective_bytes
    # The two accounts differ by the code and by what the compiler reserves.
    accounts = [one.bytes_per_chip["total"] for one in (plan, quick)]
    assert abs(accounts[0] - accounts[1]) < 2**21
    assert "compiling" in said[1]


@needs_libtpu
def test_a_refusal_comes_out_of_the_other_process():
    config, _ = cnn()
    with pytest.raises(UserError, match="has 8 chips and the mesh takes 4"):
        plan_apart(with_mesh(config, {"data": 4}), find_slice("v5e:2x4"))


@needs_libtpu
def test_a_run_on_a_cpu_hears_nothing_of_libtpu(tmp_path):
    command = [
        sys.executable, "train.py", "--config=configs/cnn.py", f"--workdir={tmp_path / 'run'}",
        "--config.train.steps=2", *TINY["cnn"],
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tpu" not in (done.stdout + done.stderr).lower()
