"""What all tests share."""

import os

from hypothesis import settings

# Before JAX starts: eight virtual devices, so that sharding is tested on any machine.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# The same examples every time, and no limit on time: other work on the machine fails no test.
settings.register_profile("zoo", derandomize=True, deadline=None)
settings.load_profile("zoo")
