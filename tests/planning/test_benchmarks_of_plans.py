"""The pure parts of ``benchmarks.plans``, ``slices``, ``scaling`` and ``footprint``."""

import dataclasses
import json

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import footprint, plans, scaling, slices, tables
from zoo.planning import roofline
from zoo.planning.chips import CHIPS
from zoo.planning.roofline import Shares, Work


def read(module):
    """What a benchmark has kept in docs."""
    return json.loads(module.RESULTS.read_text(encoding="utf-8"))


def kind_of_work(compute, memory, links, kernels=0.0):
    """A work that takes so many seconds on a v5e by each share alone, one after another."""
    chip = CHIPS["v5e"]
    return Work(
        products=((compute * chip.flops, 0.0),), moved=memory * chip.memory_bandwidth, copied=0.0,
        kernels=kernels * chip.flops, hidden=0.0, open=links,
    )  # fmt: skip


def measured_with(shares):
    """Results of the steps that calibrate, as if chips reached these shares."""
    parts = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8)]
    names = [name for name, one in plans.STEPS.items() if one.calibrates]
    return {
        name: {
            "work": dataclasses.asdict(kind_of_work(*each)),
            "measured": sum(p / s for p, s in zip(each, dataclasses.astuple(shares), strict=True)),
        }
        for name, each in zip(names, parts, strict=True)
    }


@pytest.mark.parametrize("shares", [Shares(0.6, 0.7, 0.9, 0.4), Shares(0.8, 0.8, 0.8, 0.5)])
def test_a_calibration_finds_the_shares_that_made_the_times(shares, monkeypatch):
    one_kind = {
        name: dataclasses.replace(step, topology="v5e:16x16") for name, step in plans.STEPS.items()
    }
    monkeypatch.setattr(plans, "STEPS", one_kind)
    found = plans.calibrated(measured_with(shares))
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(shares), abs=0.051)


def test_at_most_half_of_the_published_steps_calibrate():
    assert 2 * sum(step.calibrates for step in plans.STEPS.values()) <= len(plans.STEPS)


def test_the_shares_are_those_that_the_kept_results_give():
    assert plans.calibrated(read(plans)) == Shares()


def test_published_shares_of_the_peak_become_seconds():
    step = plans.STEPS["32b-256"]
    # maxtext's README: 132 TFLOP/s a chip.
    tokens = 4 * 2048
    flops = tokens * (6 * step.shape.parameters + 12 * 32 * 2048 * 64 * 128)
    assert step.measured(256, 197e12) == pytest.approx(flops / 131.8e12, rel=1e-3)


@pytest.mark.parametrize(
    ("module", "name", "made"),
    [
        (plans, "plans", lambda: plans.as_markdown(read(plans))),
        (slices, "slices", lambda: slices.as_markdown(read(slices)["plans"])),
        (slices, "divided", lambda: slices.divided(read(slices)["states"])),
        (scaling, "scaling", lambda: scaling.as_markdown(scaling.points(read(scaling)))),
        (footprint, "footprint", lambda: footprint.as_markdown(read(footprint))),
    ],
    ids=["plans", "slices", "divided", "scaling", "footprint"],
)
def test_the_tables_in_docs_are_those_of_the_kept_results(module, name, made):
    assert tables.read_between(module.DOCUMENT, name) == made()


def test_a_plan_that_does_not_fit_has_no_times():
    held = {"state": 2**30, "total": 2**35, "capacity": 2**34}
    one = {
        "topology": "v5e:2x4", "chips": 8, "fits": False, "bytes_per_chip": held, "work": None,
        "settings": {"train.batch_size": 8, "train.accumulate": 2}, "flops_per_step": 1,
        "compile_seconds": 0.0,
    }  # fmt: skip
    row = slices.as_markdown({"gpt 1b": {"v5e:2x4": one}}).splitlines()[-1]
    assert row == "| gpt 1b | v5e:2x4 | 8 | 2 | none | 1 GiB | 32 GiB | 16 GiB | no | - | - | - |"


WORK = Work(((8e14, 1e9), (1e12, 4e9)), 1e11, 1e9, 2e13, 0.3, 0.01)
MODEL = scaling.Model(parameters=1e9)


def test_the_formulas_leave_their_own_start_as_it_is():
    same = scaling.scaled(WORK, MODEL, start=(8, 8), chips=8, rows=8)
    for field in dataclasses.fields(Work):
        found, kept = getattr(same, field.name), getattr(WORK, field.name)
        assert jax.tree.leaves(found) == pytest.approx(jax.tree.leaves(kept))


@given(chips=st.sampled_from([8, 16, 64, 512, 4096]))
def test_weak_scaling_computes_the_same_on_every_chip(chips):
    found = scaling.scaled(WORK, MODEL, start=(8, 8), chips=chips, rows=chips)
    assert found.products == WORK.products
    # Of the optimizer's traffic each chip has its part.
    less = 28 * MODEL.parameters * (1 / 8 - 1 / chips)
    assert WORK.moved - found.moved == pytest.approx(less)
    # A slice with rings has more links than one of 2 x 2 x 2, and hardly more to send.
    assert found.hidden <= WORK.hidden * 1.001


def test_strong_scaling_divides_the_products_and_not_what_is_gathered():
    by_chips = {
        chips: scaling.scaled(WORK, MODEL, start=(8, 8), chips=chips, rows=256)
        for chips in (64, 128, 256, 1024)
    }
    for chips, found in by_chips.items():
        assert sum(flops for flops, _ in found.products) * chips == pytest.approx(
            sum(flops for flops, _ in WORK.products) * 8 * 32
        )
    # All three slices have rings along every axis.
    assert by_chips[64].hidden == pytest.approx(by_chips[256].hidden, rel=0.02)
    # Four chips share a row: 3/2 of what a block sums goes over two links, and nothing hides it.
    summed = 6 * MODEL.layers * MODEL.length * MODEL.features * 2
    alone = by_chips[1024].open - WORK.open * by_chips[1024].hidden / WORK.hidden
    assert alone == pytest.approx(1.5 * summed / (2 * 90e9))


@given(
    compute=st.floats(0.01, 10), memory=st.floats(0.01, 10), links=st.floats(0, 10)
)  # fmt: skip
def test_shares_of_a_step_add_up(compute, memory, links):
    estimate = roofline.estimate(kind_of_work(compute, memory, links), CHIPS["v5e"])
    found = scaling.shares(estimate)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= -1e-9
