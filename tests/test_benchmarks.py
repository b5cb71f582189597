import json

import jax
import numpy as np
import peers
import pytest

from benchmarks import __main__ as side_by_side
from benchmarks import adherence, machine, quality, tables, works
from benchmarks.families import cnn, recurrent
from zoo.data import scenes


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


def test_row_takes_the_median_of_the_ratios(capsys):
    row = side_by_side.make_row(
        "work", "peer", [100, 130, 90], [100, 100, 100], goal=0.75, limit_ms=25
    )
    assert (row["ours_ms"], row["peer_ms"], row["ratio"], row["rounds"]) == (100, 100, 1.0, 3)
    assert row["spread"] == pytest.approx(0.4)
    assert row["share_of_limit"] == 0.25
    assert row["disturbed"]
    assert "disturbed" in capsys.readouterr().out


def test_results_keep_other_work_of_the_same_versions_only(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"

    def add(*works):
        rows = [side_by_side.make_row(work, "peer", [1], [2], 0.75, None) for work in works]
        side_by_side.add_results(path, rows)
        return [row["work"] for row in json.loads(path.read_text())["rows"]]

    assert add("a", "b") == ["a", "b"]
    assert add("b") == ["b", "a"]
    monkeypatch.setattr(machine, "versions", lambda: {"jax": "another", "torch": "another"})
    assert add("c") == ["c"]
    table = side_by_side.as_markdown(json.loads(path.read_text()))
    assert "| c | 1 ms | 2 ms (peer) | 0.50 |" in table


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
    table = quality.as_markdown(results)
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
        assert callable(work.ours)
        assert callable(work.torch)
        assert set(work.goals) <= set(side_by_side.SIDES)


def test_a_quick_work_gives_the_same_numbers_on_both_sides(tmp_path):
    peers.torch()
    small = recurrent.RecurrentStep("gru", 16)
    small.prepare(tmp_path)
    with jax.enable_x64(True):
        ours = small.ours(tmp_path, "float64", timed=False)
        found = [ours(index) for index in range(3)]
    theirs = small.torch(tmp_path, "float64", timed=False)
    np.testing.assert_allclose(found, [theirs(index) for index in range(3)], rtol=1e-9)
