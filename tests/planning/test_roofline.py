import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import UserError
from zoo.planning import chips, roofline
from zoo.planning.chips import CHIPS, Slice
from zoo.planning.programs import Collective, Executed, Executions


@dataclasses.dataclass(frozen=True)
class Device:
    coords: tuple[int, ...]


def torus(kind, *shape):
    places = [()]
    for size in shape:
        places = [(*place, i) for place in places for i in range(size)]
    return Slice("", CHIPS[kind], shape, [Device(place) for place in places])


WHOLE = roofline.Shares(compute=1, memory=1, links=1, kernels=1)
V5E = torus("v5e", 4, 4)
ROW, COLUMN = tuple(range(4)), tuple(range(0, 16, 4))


def seconds(*steps, on=V5E):
    return roofline.estimate(roofline.work_of(Executions(steps, 0), on), on.chip, WHOLE)


def test_the_longer_of_operations_and_traffic_counts():
    chip = CHIPS["v5e"]
    product = Executed("product", 3, flops=chip.flops)
    traffic = Executed("traffic", 2, bytes=int(chip.memory_bandwidth))
    both = Executed("both", 1, flops=chip.flops, bytes=int(chip.memory_bandwidth / 2))
    assert seconds(product).seconds == pytest.approx(3)
    assert seconds(traffic).seconds == pytest.approx(2)
    assert seconds(both).seconds == pytest.approx(1)
    assert seconds(product, traffic, both).seconds == pytest.approx(6)


def test_copies_hide_behind_products_until_the_memory_is_full():
    chip = CHIPS["v5e"]
    product = Executed("product", 1, flops=chip.flops)
    for amount, expected in ((0.5, 1), (2, 2)):
        copy = Executed("copy", 1, bytes=int(amount * chip.memory_bandwidth), is_copy=True)
        assert seconds(product, copy).seconds == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "share"),
    [("all-reduce", 2 * 3 / 4), ("all-gather", 3 / 4), ("reduce-scatter", 3 / 4)],
)
def test_rings_by_their_closed_form(kind, share):
    size = int(CHIPS["v5e"].link_bandwidth)
    sent = Executed("sum", 1, collectives=(Collective(kind, size, ROW, hidden=False),))
    # A line of four chips uses one link.
    assert seconds(sent).seconds == pytest.approx(share)


def test_what_is_hidden_takes_no_time_unless_it_is_longer():
    chip = CHIPS["v5e"]
    product = Executed("product", 1, flops=chip.flops)
    for amount, expected in ((1, 1.0), (4, 3.0)):
        size = int(amount * chip.link_bandwidth)
        sent = (Collective("all-gather", size, ROW, hidden=True),)
        found = seconds(product, Executed("gather", 1, collectives=sent))
        assert found.seconds == pytest.approx(expected)
        assert found.waiting == pytest.approx(expected - 1)


def test_groups_use_the_axes_along_which_they_lie():
    link = CHIPS["v5e"].link_bandwidth
    assert V5E.bandwidth(ROW) == V5E.bandwidth(COLUMN) == link
    assert V5E.bandwidth(range(16)) == 2 * link
    # Sixteen chips of a v5e are a ring, with two links each.
    assert torus("v5e", 16, 16).bandwidth(range(16)) == 2 * link
    assert torus("v4", 4, 4, 4).bandwidth(range(64)) == 6 * CHIPS["v4"].link_bandwidth


@given(
    flops=st.floats(0, 1e15), moved=st.integers(0, 10**12), sent=st.integers(0, 10**12),
    hidden=st.booleans(),
)  # fmt: skip
def test_a_step_takes_no_less_than_any_of_its_parts_and_no_more_than_all(
    flops, moved, sent, hidden
):
    collective = Collective("all-reduce", sent, ROW, hidden)
    step = Executed("step", 2, flops, moved, collectives=(collective,))
    found = seconds(step)
    together = found.compute + found.memory + found.links
    assert max(found.compute, found.memory) <= found.seconds * (1 + 1e-9)
    assert found.links <= found.seconds * (1 + 1e-9)
    assert found.seconds <= together * (1 + 1e-9)


def test_virtual_devices_are_a_slice():
    found = chips.find_slice("cpu:8")
    assert len(found.devices) == 8
    assert found.chip.memory > 0


@pytest.mark.parametrize("name", ["v9:4x4", "v5e", "v5e:4", "v5p:4x4", "v5:ex4", ""])
def test_an_unknown_topology_lists_those_that_exist(name):
    with pytest.raises(UserError, match="v5e:16x16") as refused:
        chips.find_slice(name)
    assert "v5p:4x4x4" in str(refused.value)
    assert name in str(refused.value)


def test_more_virtual_devices_than_there_are_is_an_error():
    with pytest.raises(UserError, match="xla_force_host_platform_device_count=64"):
        chips.find_slice("cpu:64")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_a_slice_has_more_arithmetic_than_traffic(chip):
    # Every chip needs hundreds of operations a byte; a slip of a unit would not.
    assert 150 < chip.flops / chip.memory_bandwidth < 700
    assert 8 * 2**30 < chip.memory < 128 * 2**30


@given(
    steps=st.lists(
        st.tuples(
            st.integers(1, 5), st.sampled_from([0.0, 1e12, 3e14]), st.integers(0, 10**12),
            st.booleans(), st.booleans(),
        ),
        min_size=1, max_size=8,
    ),
    shares=st.tuples(*[st.floats(0.1, 1)] * 3),
)  # fmt: skip
def test_adding_up_loses_nothing_that_the_shares_decide(steps, shares):
    """Against the sum over single instructions."""
    assumed, chip = roofline.Shares(*shares), CHIPS["v5e"]
    flops, bandwidth = chip.flops * assumed.compute, chip.memory_bandwidth * assumed.memory
    done, busy, memory, hidden, open_ = [], 0.0, 0.0, 0.0, 0.0
    for times, count, size, is_copy, is_hidden in steps:
        sent = Collective("all-gather", size, ROW, is_hidden)
        done.append(Executed("", times, 0.0 if is_copy else count, size, is_copy, (sent,)))
        if not is_copy:
            busy += times * max(count / flops, size / bandwidth)
        memory += times * size / bandwidth
        took = times * size * 3 / 4 / (chip.link_bandwidth * assumed.links)
        hidden, open_ = (hidden + took, open_) if is_hidden else (hidden, open_ + took)
    working = max(busy, memory)
    expected = working + open_ + max(0.0, hidden - working)
    work = roofline.work_of(Executions(tuple(done), 0), V5E)
    assert roofline.estimate(work, chip, assumed).seconds == pytest.approx(expected)
