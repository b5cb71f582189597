"""RandAugment, bit for bit as torchvision has it on PIL images."""

import numpy as np
import peers
import pytest
from PIL import Image

from zoo.data.randaugment import CHANGES, MAGNITUDES, rand_augment

IMAGES = [
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side + 3, 3), np.uint8))
    for side in (17, 32)
]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_has_torchvisions_bits(name):
    peers.torchvision()
    from torchvision.transforms import InterpolationMode, RandAugment, autoaugment

    change, signed = CHANGES[name]
    for image in IMAGES:
        space = RandAugment()._augmentation_space(MAGNITUDES, (image.height, image.width))
        assert list(space) == list(CHANGES)
        magnitudes, theirs_signed = space[name]
        assert signed == theirs_signed
        for magnitude in (0, 1, 9, 22, 30):
            theirs = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
            for sign in (1, -1) if signed else (1,):
                expected = autoaugment._apply_op(
                    image, name, sign * theirs, InterpolationMode.NEAREST, None
                )
                made = change(image, sign * magnitude / (MAGNITUDES - 1))
                np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))


def test_changes_and_signs_are_drawn():
    image = IMAGES[1]
    made = {rand_augment(image, 2, 20, np.random.default_rng(seed)).tobytes() for seed in range(40)}
    assert len(made) > 25
    again = [rand_augment(image, 2, 20, np.random.default_rng(3)).tobytes() for _ in range(2)]
    assert again[0] == again[1]
    assert rand_augment(image, 0, 20, np.random.default_rng(0)).tobytes() == image.tobytes()
