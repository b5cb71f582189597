"""What records say about speed, and profiles."""

import jax
import jax.numpy as jnp
import pytest

from zoo.fields import ConfigError
from zoo.training.settings import Settings
from zoo.training.watching import Profile, Speed, peak_flops


def record(speed):
    return speed.record(
        steps=10, examples=640, weight=6400.0, seconds=2.0, data_wait=0.5, device_wait=1.0
    )


def test_one_device_says_what_it_said():
    assert record(Speed()) == {
        "examples_per_second": 320.0, "data_wait_seconds": 0.5, "data_wait_share": 0.25,
    }  # fmt: skip


def test_speed_per_device_and_share_of_the_peak():
    # 10 steps of 4e12 operations in 2 s are 20 TFLOP/s, on 4 devices of 10 TFLOP/s half the peak.
    flops = {"flops_per_step": 4e12, "flops_with_remat": 5e12}
    fields = record(Speed(devices=4, tokens=True, peak=10e12, **flops))
    assert fields["examples_per_second_per_device"] == 80.0
    assert fields["tokens_per_second_per_device"] == 800.0
    assert fields["mfu"] == pytest.approx(0.5)
    assert fields["hfu"] == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v6 lite", 918e12), ("cpu", None),
        ("NVIDIA H100 80GB HBM3", 989e12),
    ],
)  # fmt: skip
def test_peaks_of_devices_as_jax_names_them(kind, peak):
    assert peak_flops(kind) == peak


def test_a_profile_has_the_steps_that_were_asked_for(tmp_path):
    step = jax.jit(lambda x: x @ x)
    x = jnp.ones((64, 64))
    with Profile(tmp_path, "2:4") as profile:
        for number in range(1, 6):
            profile.before(number, x)
            with jax.profiler.TraceAnnotation(f"step {number} of the test"):
                x = step(x)
    (written,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    found = jax.profiler.ProfileData.from_file(str(written))
    names = {event.name for plane in found.planes for line in plane.lines for event in line.events}
    assert {name for name in names if "of the test" in name} == {
        "step 2 of the test", "step 3 of the test",
    }  # fmt: skip


def test_no_profile_writes_nothing(tmp_path):
    with Profile(tmp_path) as profile:
        profile.before(1, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", ["5", "5:5", "0:3", "3:1", "a:b", "1:2:3"])
def test_steps_that_are_no_slice_are_refused(steps):
    with pytest.raises(ConfigError, match="profile_steps"):
        Settings(profile_steps=steps).check()
