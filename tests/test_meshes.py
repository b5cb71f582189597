"""Every family gives on any mesh the numbers of one device, in its share of the memory."""

import json
import re

import jax
import numpy as np
import pytest
from families import TINY

import zoo
from zoo import building, cli, commands, inference
from zoo.config import check
from zoo.planning import programs as programs_of
from zoo.training import layout as layout_module
from zoo.training import loop
from zoo.training.checkpoints import Checkpoints
from zoo.training.layout import compile_step, make_mesh, make_state

STEPS = 20
# Sizes of data, fsdp, tensor and sequence.
MESHES = {
    "8 data": (8, 1, 1, 1),
    "8 fsdp": (1, 8, 1, 1),
    "4x2": (1, 4, 2, 1),
    "2x2x2": (2, 2, 2, 1),
    "sequence": (2, 1, 2, 2),
}
ONE = (1, 1, 1, 1)
# What is tried each time: the meshes for one transformer, and one for each other kind of layer.
TRIED = [
    ("cnn", "8 fsdp"),
    ("resnet", "8 data"),
    ("vit", "4x2"),
    ("lstm", "8 fsdp"),
    ("gpt", "8 fsdp"),
    ("gpt", "4x2"),
    ("gpt", "2x2x2"),
    ("gpt", "sequence"),
]
REST = [(family, mesh) for family in TINY for mesh in MESHES if (family, mesh) not in TRIED]


def config(family, *overrides):
    given = [
        *TINY[family], f"--config.train.steps={STEPS}", "--config.train.batch_size=8",
        "--config.train.eval_batch_size=256", "--config.optimizer.schedule=constant",
        "--config.optimizer.warmup_steps=0",
    ]  # fmt: skip
    return commands.override(commands.load_config(f"configs/{family}.py"), [*given, *overrides])


def parts_of(family, *overrides):
    return building.build(*building.with_data(check(config(family, *overrides))))


class Program:
    """The step of a family on a mesh, and its first state."""

    def __init__(self, parts, sizes):
        self.parts = parts
        self.layout, self.said = building.layout_of(parts, make_mesh(*sizes))
        self.state = make_state(lambda: building.init_state(parts), self.layout)
        self.step, _ = compile_step(
            parts.train_step, self.state, building.train_shapes(parts), self.layout,
            returns_state=True,
        )  # fmt: skip

    def losses(self, steps=STEPS):
        losses = []
        with building.train_batches(self.parts) as batches:
            for _ in range(steps):
                self.state, sums = self.step(self.state, self.layout.put_batch(next(batches)))
                losses.append(sums["loss"][0] / sums["loss"][1])
        return np.array(losses)


@pytest.fixture(scope="module")
def one():
    """The losses on one device, by family; each is computed once."""
    known = {}

    def losses(family):
        if family not in known:
            known[family] = Program(parts_of(family), ONE).losses()
        return known[family]

    return losses


def assert_like_one(one, family, mesh):
    program = Program(parts_of(family), MESHES[mesh])
    losses = program.losses()
    assert np.ptp(losses) > 0
    np.testing.assert_allclose(losses, one(family), rtol=1e-5)
    for leaf in jax.tree.leaves(program.state.params):
        assert len(leaf.sharding.device_set) == 8


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        pytest.param(family, mesh, marks=pytest.mark.xdist_group(f"mesh {family}"))
        for family, mesh in TRIED
    ],
)
def test_the_losses_are_those_of_one_device(one, family, mesh):
    assert_like_one(one, family, mesh)


@pytest.mark.long
@pytest.mark.parametrize(("family", "mesh"), REST)
def test_the_losses_are_those_of_one_device_on_every_mesh(family, mesh, monkeypatch):
    # As outside of the tests. Without optimisation, a CPU's loop of a recurrent layer, which stands
    # in for the native function where widths are divided, has other gradients than the function.
    usual = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    options = layout_module.compiler_options()
    monkeypatch.setattr(layout_module, "compiler_options", lambda *_: options | usual)
    assert_like_one(lambda _: Program(parts_of(family), ONE).losses(), family, mesh)


# A transformer whose sizes differ, so that an array is known by its shape. Four heads are divided
# over tensor and sequence.
GPT = (
    "--config.model.features=48", "--config.model.num_heads=4", "--config.model.num_layers=1",
    "--config.model.vocab_size=80", "--config.data.context=40", "--config.model.dropout_rate=0.0",
)  # fmt: skip
FEATURES, HIDDEN, VOCAB, LENGTH, CONTEXT, ROWS = 48, 192, 80, 40, 512, 8


def gpt(mesh):
    return Program(parts_of("gpt", *GPT), mesh)


def collectives(program):
    """What devices exchange: (kind, shapes of the results, devices of the first group)."""
    found = []
    for line in program.step.as_text().splitlines():
        match = re.match(
            r"\s*(?:ROOT )?%\S+ = (.*?) "
            r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(",
            line,
        )
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found.append((match[2], [tuple(map(int, s.split(","))) if s else () for s in shapes]))
    return found


def shapes_of(program, kind):
    return {shape for one, shapes in collectives(program) if one == kind for shape in shapes}


@pytest.fixture(scope="module")
def programs():
    """The same transformer on several meshes; each is compiled once."""
    meshes = {"1": ONE, **{name: MESHES[name] for name in ("8 data", "8 fsdp", "4x2", "sequence")}}
    return {name: gpt(mesh) for name, mesh in meshes.items()}


in_one_group = pytest.mark.xdist_group("mesh gpt")


@in_one_group
def test_rows_alone_exchange_nothing_but_sums(programs):
    assert {kind for kind, _ in collectives(programs["8 data"])} == {"all-reduce"}
    assert (FEATURES, HIDDEN) in shapes_of(programs["8 data"], "all-reduce"), "of gradients"


@in_one_group
def test_parameters_are_gathered_over_fsdp_and_values_are_not(programs):
    gathered = shapes_of(programs["8 fsdp"], "all-gather")
    assert {(FEATURES, HIDDEN), (HIDDEN, FEATURES), (FEATURES, FEATURES)} <= gathered
    assert not [shape for shape in gathered if len(shape) > 2 or LENGTH in shape]


@in_one_group
def test_a_parameter_that_is_divided_over_tensor_is_never_whole(programs):
    gathered = shapes_of(programs["4x2"], "all-gather")
    assert {(FEATURES, HIDDEN // 2), (HIDDEN // 2, FEATURES), (VOCAB // 2, FEATURES)} <= gathered
    assert not gathered & {(FEATURES, HIDDEN), (HIDDEN, FEATURES), (FEATURES, FEATURES)}
    assert (VOCAB, FEATURES) not in gathered
    # Rows are divided over fsdp: two on each device. Of their values only sums are exchanged.
    assert not [shape for shape in gathered if len(shape) > 2]
    assert (ROWS // 4, LENGTH, FEATURES) in shapes_of(programs["4x2"], "all-reduce")


@in_one_group
def test_lengths_become_heads_for_attention(programs):
    program = programs["sequence"]
    values = [shape for shape in shapes_of(program, "all-gather") if ROWS in shape]
    assert not values, "of all rows"
    assert shapes_of(program, "all-to-all")
    text = program.step.as_text()
    # Scores of all positions, for one head of four.
    assert re.search(rf"\[{ROWS // 2},1,{LENGTH},{LENGTH}\]", text)
    assert not re.search(rf"\[{ROWS // 2},[24],{LENGTH},{LENGTH}\]", text)


@in_one_group
@pytest.mark.parametrize("mesh", ["8 fsdp", "4x2"])
def test_logits_in_parts_are_exchanged_once(mesh):
    """Over rows alone the table of tokens is gathered once, and not for each part."""
    in_parts = (*GPT, f"--config.task.logits_at_once={VOCAB * ROWS}")
    program = Program(parts_of("gpt", *in_parts), MESHES[mesh])
    done = programs_of.executions(programs_of.parse(program.step.as_text()), 8)
    sent = {step.times for step in done.steps if step.collectives}
    assert sent == {1} if mesh == "8 fsdp" else {1} < sent
    whole = Program(parts_of("gpt", *GPT, "--config.task.logits_at_once=0"), ONE)
    np.testing.assert_allclose(program.losses(5), whole.losses(5), rtol=1e-5)


def kept_of(state):
    return state.params, state.opt_state, state.ema_params


@in_one_group
def test_memory_falls_with_the_number_of_devices(programs):
    held = {name: p.step.memory_analysis().argument_size_in_bytes for name, p in programs.items()}
    state = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept_of(programs["1"].state))
    )
    batch = held["1"] - state
    for name in ("8 fsdp", "4x2"):
        program = programs[name]
        assert not program.said
        # Over tensor the positions and vectors are not divided, so only over four devices.
        share = sum(
            leaf.nbytes
            / (8 if name == "8 fsdp" or (leaf.ndim == 2 and CONTEXT not in leaf.shape) else 4)
            for leaf in jax.tree.leaves(kept_of(program.state))
        )
        expected = share + batch / program.layout.row_parts
        assert held[name] == pytest.approx(expected, rel=0.03), name
        counted = program.layout.bytes_per_device(program.state)
        on_first = sum(
            leaf.addressable_shards[0].data.nbytes
            for leaf in jax.tree.leaves(kept_of(program.state))
        )
        assert on_first == pytest.approx(counted, abs=64)
    assert held["8 data"] == pytest.approx(state + batch / 8, rel=0.03)
    # What the layers keep lies where their rows do.
    kept = {name: p.step.memory_analysis().temp_size_in_bytes for name, p in programs.items()}
    assert kept["8 data"] < kept["1"] / 4
    assert kept["8 fsdp"] < kept["1"] / 4


@in_one_group
def test_no_device_holds_the_whole_state_while_it_is_made(programs):
    parts, layout = programs["8 fsdp"].parts, programs["8 fsdp"].layout
    make = lambda: building.init_state(parts)  # noqa: E731
    made = jax.jit(make, out_shardings=layout.of(jax.eval_shape(make))).lower().compile()
    analysis = made.memory_analysis()
    whole = building.state_bytes(parts)
    assert analysis.output_size_in_bytes < whole / 7
    assert analysis.temp_size_in_bytes < whole / 4


@in_one_group
@pytest.mark.parametrize("mesh", [(2, 2, 1, 1), (1, 1, 2, 1), ONE])
def test_a_run_goes_on_on_another_mesh(programs, tmp_path, mesh):
    """Saved on eight devices and continued on four, two and one, it reaches the same losses."""
    parts = programs["4x2"].parts
    saved_on = programs["4x2"].layout
    layout, _ = building.layout_of(parts, make_mesh(*mesh))
    shapes = building.train_shapes(parts)
    checkpoints = Checkpoints(tmp_path)
    first = make_state(lambda: building.init_state(parts), saved_on)
    training = loop.begin_or_resume(first, parts.train_step, shapes, checkpoints, saved_on)
    batches = _batches(parts, 6)
    for batch in batches[:3]:
        training.state, _ = programs["4x2"].step(training.state, saved_on.put_batch(batch))
    checkpoints.save(3, training.arrays, {})
    checkpoints.wait()
    expected, went_on = [], training.state
    held = jax.tree.map(_numbers, went_on)
    for batch in batches[3:]:
        went_on, sums = programs["4x2"].step(went_on, saved_on.put_batch(batch))
        expected.append(sums["loss"][0] / sums["loss"][1])

    begun = make_state(lambda: building.init_state(parts), layout)
    resumed = loop.begin_or_resume(begun, parts.train_step, shapes, checkpoints, layout)
    checkpoints.close()
    for restored, sharding, there in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(layout.of(resumed.state)),
        jax.tree.leaves(held), strict=True,
    ):  # fmt: skip
        assert restored.sharding.is_equivalent_to(sharding, restored.ndim)
        np.testing.assert_array_equal(_numbers(restored), there)
    step = programs["1"].step
    if mesh != ONE:
        step, _ = compile_step(parts.train_step, begun, shapes, layout, returns_state=True)
    state, losses = resumed.state, []
    for batch in batches[3:]:
        state, sums = step(state, layout.put_batch(batch))
        losses.append(sums["loss"][0] / sums["loss"][1])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert state.step == 6


def _batches(parts, count):
    with building.train_batches(parts) as batches:
        return [next(batches) for _ in range(count)]


def _numbers(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def test_a_run_on_a_mesh_is_evaluated_exported_and_continued_on_one_device(
    tmp_path, monkeypatch, capsys
):
    short = ("--config.checkpoint.every=2", "--config.train.log_every=1")
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    on_eight = zoo.run(config("forecast", *short, *mesh, "--config.train.steps=2"), tmp_path)
    assert on_eight["environment"]["mesh"] == "data 2 x fsdp 2 x tensor 2"
    assert "not divided: no parameter is divided over mesh.tensor=2" in capsys.readouterr().out
    # As on a machine with one device.
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        again = inference.evaluate(tmp_path, building.read_config(tmp_path), split="test")
        loss = on_eight["metrics"]["test"]["loss"]
        assert again["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
        assert any("evaluated on one device" in note for note in again["notes"])
        cli.main(["export", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"])
        assert (tmp_path / "out" / "model.safetensors").stat().st_size > 0
    one = ("--config.mesh.data=1", "--config.train.steps=4")
    assert zoo.run(config("forecast", *short, *one), tmp_path)["steps"] == 4
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if r["split"] == "train"] == [1, 2, 3, 4]


def test_an_old_config_without_the_axes_is_read():
    text = building.configs.to_json(check(config("forecast")))
    old = json.loads(text)
    old["mesh"] = {"data": 2}
    assert building.configs.from_json(json.dumps(old)).mesh.to_dict() == {
        "data": 2, "fsdp": 1, "tensor": 1, "sequence": 1,
    }  # fmt: skip
