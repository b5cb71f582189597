import itertools
import json
import subprocess

import jax
import numpy as np
import peers
import pytest

from benchmarks import __main__ as side_by_side
from benchmarks import (
    adherence,
    growth,
    machine,
    measure,
    quality,
    speed,
    start,
    tables,
    turns,
    works,
)
from benchmarks.families import cnn, inference, loops, recurrent, resnet
from zoo.data import scenes


def never(commit):
    return False


def test_arithmetic_of_the_step_is_what_pytorch_counts():
    torch = peers.torch()
    from torch.utils.flop_counter import FlopCounterMode

    peers.torchvision()
    from benchmarks.torch_peers.cnn_seed import SeedNet

    model, images = SeedNet(num_classes=10), torch.zeros(2, 3, 48, 48)
    counter = FlopCounterMode(display=False)
    with counter:
        model(images).sum().backward()
    assert counter.get_total_flops() == pytest.approx(1e9 * cnn.gflop(2), rel=1e-12)


@pytest.mark.parametrize(
    ("work", "model"),
    [
        (resnet.ResNetStep(rows=2), resnet.small_resnet18),
        (inference.Forward("resnet50", 2), lambda: peers.torchvision().models.resnet50()),
    ],
)
def test_arithmetic_of_residual_networks_is_what_pytorch_counts(work, model):
    torch = peers.torch()
    from torch.utils.flop_counter import FlopCounterMode

    peers.torchvision()
    side = 32 if isinstance(work, resnet.ResNetStep) else 224
    # Shapes alone: nothing is computed.
    with torch.device("meta"):
        network, images = model(), torch.zeros(2, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        logits = network(images)
        if work.optimizer:
            logits.sum().backward()
    assert counter.get_total_flops() == pytest.approx(1e9 * work.gflop, rel=1e-12)


@pytest.mark.parametrize(
    ("ours", "dtype"),
    [
        ([2.3, 1.0 + 1e-6], "float64"),
        ([2.3, 1.05], "float32"),
        ([2.3001, 1.0], "float32"),
        ([2.3, float("nan")], "float32"),
        ([float("nan"), 1.0], "float64"),
    ],
)
def test_losses_that_differ_end_the_benchmark(ours, dtype):
    with pytest.raises(SystemExit, match="do not compute the same"):
        side_by_side.check_losses(ours, [2.3, 1.0], dtype)


def test_losses_may_differ_by_rounding():
    side_by_side.check_losses([2.3 + 1e-12, 1.0 + 1e-12], [2.3, 1.0], "float64")
    side_by_side.check_losses([2.3 + 1e-7, 1.005], [2.3, 1.0], "float32")


@pytest.mark.parametrize(("ours", "peer"), [(2.3 + 1e-5, 2.3 + 1e-5), (2.3, 2.3 + 1e-4)])
def test_what_is_exact_is_known_from_float64(ours, peer):
    side_by_side.check_losses([2.3, 1.0], [2.3 + 1e-5, 1.0], "float32", exact=2.3)
    with pytest.raises(SystemExit, match="do not compute the same"):
        side_by_side.check_losses([ours, 1.0], [peer, 1.0], "float32", exact=2.3)


def test_row_takes_the_median_of_the_ratios(capsys):
    row = side_by_side.make_row(
        "work", "peer", [100, 130, 90], [100, 100, 100], goal=0.75, limit_ms=25
    )
    assert (row["ours_ms"], row["peer_ms"], row["ratio"], row["rounds"]) == (100, 100, 1.0, 3)
    assert row["spread"] == pytest.approx(0.4)
    assert row["share_of_limit"] == 0.25
    assert row["disturbed"]
    assert "disturbed" in capsys.readouterr().out


def test_row_without_a_peer_has_a_time_as_its_goal(tmp_path):
    title = start.TITLES["warm"]
    row = side_by_side.make_row(title, None, [9000, 8000, 10_000], None, 7000.0, None)
    assert (row["ours_ms"], row["peer_ms"], row["ratio"]) == (9000, None, None)
    assert row["spread"] == pytest.approx(2 / 9)
    path = tmp_path / "machine.json"
    side_by_side.add_results(path, [row])
    table = speed.as_markdown(json.loads(path.read_text()), side_by_side.works_by_title(), never)
    assert f"| {title} | 9000 ms | - | - | 22 %, disturbed | ≤ 7000 ms |" in table


def test_results_keep_other_work_of_the_same_versions_only(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"
    a, b, c = (works.WORKS[name].title for name in ("cnn", "resnet", "gpt"))

    def add(*titles, peer="PyTorch, eager, fused Adam"):
        rows = [side_by_side.make_row(title, peer, [10], [20], 0.75, None) for title in titles]
        side_by_side.add_results(path, rows)
        return [(row["work"], row["peer"]) for row in json.loads(path.read_text())["rows"]]

    eager, compiled = "PyTorch, eager, fused Adam", "PyTorch, torch.compile, fused Adam"
    assert add(b, a) == [(a, eager), (b, eager)]
    # In whichever setting, PyTorch is one peer; linen is another.
    assert add(b, peer=compiled) == [(a, eager), (b, compiled)]
    assert add(a, peer="linen") == [(a, "linen"), (a, eager), (b, compiled)]
    results = json.loads(path.read_text())
    results["rows"].append(results["rows"][0] | {"work": "of a work that is no more"})
    path.write_text(json.dumps(results))
    assert len(add(b)) == 3
    monkeypatch.setattr(machine, "versions", lambda: {"jax": "another", "torch": "another"})
    assert add(c, peer="peer") == [(c, "peer")]
    table = speed.as_markdown(json.loads(path.read_text()), side_by_side.works_by_title(), never)
    assert f"| {c} | 10 ms | 20 ms (peer) | 0.50 |" in table


def test_whole_jobs_beside_pytorch_are_rows_of_their_own(tmp_path):
    path = tmp_path / "machine.json"
    names = [(job, peer) for job in side_by_side.JOBS for peer in job.peers]
    for job, peer in names:
        row = side_by_side.make_row(job.work, peer, [1], [2], job.goal, None)
        side_by_side.add_results(path, [row])
    peers_ = [row["peer"] for row in json.loads(path.read_text())["rows"]]
    assert sorted(peers_) == sorted(peer for _, peer in names)


def test_the_fastest_setting_that_runs_is_taken(capsys):
    ms = {"eager": 30.0, "channels_last": 20.0}

    def measured(side, *options):
        (setting,) = (o.removeprefix("--setting=") for o in options if "--setting=" in o)
        if setting == "compile":
            raise SystemExit("no compiler")
        return {"ms": ms[setting]}

    work = works.WORKS["cnn"]
    found = turns.fastest(measured, work.settings)
    assert found == "channels_last"
    assert turns.peer_name(work, found) == "PyTorch, channels last, fused Adam"
    said = capsys.readouterr().out
    assert "torch.compile, is left out: no compiler" in said
    assert "eager 30 ms, channels last 20 ms" in said
    with pytest.raises(SystemExit, match="none of its settings"):
        turns.fastest(measured, ["compile", "compile"])
    # One alone is not timed.
    assert turns.fastest(None, ["eager"]) == "eager"


def test_calls_are_as_many_as_asked_for_or_as_fit():
    made = []

    def call(index):
        made.append(index)
        return 0.0

    assert len(measure.milliseconds(call, seconds=0.0)) == 3
    assert made == [0, 1, 2, 3, 4, 5]  # the first three warm up
    assert len(measure.milliseconds(call, seconds=60.0, calls=7)) == 7


def test_quality_replaces_a_seed_and_averages_over_seeds(tmp_path):
    path = tmp_path / "docs" / "results.json"

    def add(seed, accuracy):
        result = {
            "config": "cnn",
            "seed": seed,
            "metrics": {"mnist_subset": {"accuracy": accuracy}},
            "steps": 395,
            "seconds": 100,
            "machine": machine.describe(),
        }
        return quality.add_result(path, result)

    add(1, 0.5)
    add(0, 0.97)
    results = add(1, 0.98)
    assert [one["seed"] for one in results] == [0, 1]
    table = quality.as_markdown(results, never)
    assert "| accuracy | 0.9750 | 0.9700, 0.9800 | 395 | 100 s |" in table
    assert "`mnist`" not in table  # not evaluated there, so not claimed


def test_a_table_replaces_only_what_stands_between_its_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb <!-- y:begin -->\n")
    tables.write_between(path, "x", tables.markdown(("h",), [("new",)]))
    assert path.read_text() == (
        "a\n<!-- x:begin -->\n| h |\n| --- |\n| new |\n<!-- x:end -->\nb <!-- y:begin -->\n"
    )
    with pytest.raises(ValueError, match="y:end"):
        tables.write_between(path, "y", "")


def test_a_time_of_the_whole_command_counts_before_those_of_training_alone():
    def result(seed, **more):
        return {
            "config": "cnn",
            "seed": seed,
            "metrics": {"mnist_subset": {"accuracy": 0.98}},
            "steps": 395,
            "seconds": 500,
            "machine": {"processor": "P", "cores": 2},
            "date": "2026-01-01",
            "commit": "old",
        } | more

    def is_older(commit):
        return commit == "old"

    disturbed = [result(0, other_work=True), result(1)]
    assert "| 395 | 500 s*† | 2026-01-01, old | 2026-01-01, old | P, 2 cores |" in (
        quality.as_markdown(disturbed, is_older)
    )
    assert "| 98.0% accuracy | 8 min*† |" in quality.summary(disturbed, is_older)
    command = {"seconds": 100, "date": "2026-02-02", "commit": "new"}
    timed = [result(0, other_work=True, command=command), result(1)]
    assert "| 395 | 100 s | 2026-02-02, new | 2026-01-01, old |" in (
        quality.as_markdown(timed, is_older)
    )
    assert "| 98.0% accuracy | 2 min |" in quality.summary(timed, is_older)


def test_a_row_says_when_and_at_which_commit_it_was_measured_and_if_its_code_is_newer(tmp_path):
    path = tmp_path / "machine.json"
    title = works.WORKS["cnn"].title
    row = side_by_side.make_row(title, "PyTorch, eager, fused Adam", [10], [20], 0.75, None)
    assert (row["date"], row["commit"]) == (machine.today(), machine.commit())
    side_by_side.add_results(path, [row | {"date": "2026-01-02", "commit": "abc1234"}])
    results, names = json.loads(path.read_text()), side_by_side.works_by_title()
    new = speed.as_markdown(results, names, never)
    assert new.endswith("| 2026-01-02, abc1234 | `cnn` |")
    old = speed.as_markdown(results, names, lambda commit: commit == "abc1234")
    assert old.endswith("| 2026-01-02, abc1234† | `cnn` |")
    chosen = speed.summary([results], names, lambda commit: commit == "abc1234")
    assert f"| {title} | 10 ms | 20 ms | 0.50 | 2026-01-02† |" in chosen
    assert chosen.count("| - | - | - | - |") == len(speed.CHOSEN) - 1


def test_code_is_newer_than_a_row_if_a_commit_after_it_touched_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    def commit(file):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / file).open("a") as opened:
            opened.write("x\n")
        git("add", "-A")
        git("commit", "-q", "-m", file)
        return machine.commit()

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() is None  # no repository
    git("init", "-q")
    first = commit("zoo/layers/linear.py")
    assert not machine.is_older(first)
    commit("README.md")
    assert not machine.is_older(first)
    second = commit("zoo/training/step.py")
    assert machine.is_older(first)
    assert not machine.is_older(second)
    (tmp_path / "zoo/layers/linear.py").write_text("changed")
    assert machine.commit() == f"{second}+"
    assert not machine.is_older(machine.commit())
    # Nothing is claimed of what git does not know.
    assert not machine.is_older(None)
    assert not machine.is_older("0123456")


def test_every_row_that_is_kept_has_its_date_and_commit_and_can_be_measured_anew():
    names = side_by_side.works_by_title()
    assert set(speed.CHOSEN) <= set(names.values())
    files = sorted({*side_by_side.RESULTS.glob("*.json")} - {*side_by_side.RESULTS.glob("growth*")})
    assert files
    for file in files:
        for row in json.loads(file.read_text())["rows"]:
            assert row["date"]
            assert row["commit"]
            assert row["work"] in names


def test_the_tables_in_the_documents_are_those_of_the_results():
    """All but the marks, which depend on the history of the code."""

    def unmarked(path, name):
        return tables.read_between(path, name).replace(tables.OLDER, "")

    results = json.loads(quality.RESULTS.read_text())
    assert unmarked(quality.DOCS, "results") == quality.as_markdown(results, never)
    assert unmarked(quality.README, "configs") == quality.summary(results, never)
    names = side_by_side.works_by_title()
    of_machines = [
        json.loads(file.read_text())
        for file in side_by_side.RESULTS.glob("*.json")
        if not file.name.startswith("growth")
    ]
    full = unmarked(speed.DOCS, "benchmarks")
    assert all(speed.as_markdown(results, names, never) in full for results in of_machines)
    short = unmarked(speed.README, "speed")
    assert short in [
        speed.summary(order, names, never) for order in itertools.permutations(of_machines)
    ]


def test_the_judges_know_real_scenes_and_notice_wrong_ones():
    source = scenes.Scenes("held_out")
    rows = [source[index] for index in range(120)]
    wanted = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    images = scenes.to_pixels(wanted["image"])
    right = adherence.judge(images, wanted)
    assert right["all"] >= 0.93
    for name, count in (("digit", 10), ("color", 6), ("place", 5)):
        other = wanted | {name: (wanted[name] + 1) % count}
        wrong = adherence.judge(images, other)
        assert wrong[name] <= 0.1
        assert wrong["all"] <= wrong[name]


def test_works_have_names_of_their_own_and_every_side():
    titles = [work.title for work in works.WORKS.values()]
    assert len(set(titles)) == len(titles)
    for work in works.WORKS.values():
        others = {side for side in side_by_side.SIDES if side != "ours" and hasattr(work, side)}
        assert callable(work.ours)
        assert others
        assert set(work.goals) <= others
        assert not work.checked or "torch" in others


def test_every_config_has_its_data_measured_and_all_but_diffusion_their_loop():
    files = {path.stem for path in (machine.ROOT / "configs").glob("*.py")}
    data = {work.config for work in works.WORKS.values() if isinstance(work, loops.Data)}
    trained = {work.config for work in works.WORKS.values() if isinstance(work, loops.Loop)}
    assert data == files
    assert trained == files - {"diffusion"} | {"lstm:gru", "lstm:rnn"}


def check_both_sides(work, folder, *, calls, setting="eager"):
    work.prepare(folder)
    with jax.enable_x64(True):
        ours = work.ours(folder, "float64", timed=False)
        found = [ours(index) for index in range(calls)]
        theirs = work.torch(folder, "float64", timed=False, setting=setting)
    np.testing.assert_allclose(found, [theirs(index) for index in range(calls)], rtol=1e-9)


def test_a_quick_work_gives_the_same_numbers_on_both_sides(tmp_path):
    peers.torch()
    check_both_sides(recurrent.RecurrentStep("gru", 16), tmp_path, calls=3)


def test_residual_networks_train_alike_on_both_sides(tmp_path):
    peers.torch()
    small = resnet.ResNetStep(rows=4, side=16, batches=2)
    check_both_sides(small, tmp_path, calls=2, setting="channels_last")


@pytest.mark.parametrize("config", ["forecast", "gpt", "lstm:gru"])
def test_a_config_trains_alike_on_both_sides(tmp_path, config, monkeypatch):
    peers.torch()
    # Two batches: the second loss follows the first update.
    monkeypatch.setattr(loops, "BATCHES", 2)
    check_both_sides(loops.Loop(config), tmp_path, calls=2)


def test_logits_are_the_same_on_both_sides(tmp_path):
    peers.torch()
    work = inference.Forward("cnn", 2)
    check_both_sides(work, tmp_path, calls=1, setting="channels_last")
    assert np.isfinite(work.linen(tmp_path, "float32", timed=True)(0))


def test_growth_replaces_a_series_and_draws_what_is_there(tmp_path):
    def points(name, factor):
        return [
            {
                "series": name, "value": value, "side": side, "name": "PyTorch, eager",
                "time": factor * value, "memory": 3.0, "gflop": 1.0 * value,
            }
            for value in growth.SERIES[name].values for side in growth.SIDES
        ]  # fmt: skip

    path = tmp_path / "growth.json"
    growth.add_points(path, points("gpt-depth", 1.0))
    growth.add_points(path, points("cnn-batch", 1.0))
    found = growth.add_points(path, points("gpt-depth", 2.0))
    assert [point["series"] for point in found] == 12 * ["cnn-batch"] + 8 * ["gpt-depth"]
    table = growth.as_markdown(json.loads(path.read_text()))
    assert "| GPT, depth | 8 | 16 ms | 16 ms | 1.00 | 3 MiB | 3 MiB | eager |" in table
    assert "| CNN, batch size | 8 | 256 | 32 times | 32 times | 32 times |" in table
    for what in growth.PICTURES:
        growth.plot(found, what, tmp_path / f"{what}.png")
        assert (tmp_path / f"{what}.png").stat().st_size > 10_000


def test_points_of_growth_have_their_sizes():
    point = growth.POINTS["cnn-side-96"]
    assert (point.side, point.rows, point.batches) == (96, 64, growth.BATCHES)
    assert growth.POINTS["gpt-length-1024"].time == 1024
    assert not set(growth.POINTS) & set(works.WORKS)
