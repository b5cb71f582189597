"""Transforms, bit for bit as torchvision has them on PIL images."""

import numpy as np
import peers
import pytest
from PIL import Image

from zoo.data import transforms
from zoo.errors import UserError


def image(seed, mode):
    generator = np.random.default_rng(seed)
    side = int(generator.integers(9, 70))
    shape = (side, side + seed % 5) if mode == "L" else (side, side + seed % 5, 3)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))


def reference(pil, functional, size, angle, changes):
    """The seed's transforms in the seed's order, with given numbers."""
    pil = functional.rgb_to_grayscale(functional.resize(pil, [size, size]), num_output_channels=3)
    if angle is not None:
        pil = functional.rotate(pil, angle)
        for name, factor in changes:
            pil = getattr(functional, f"adjust_{name}")(pil, factor)
    tensor = functional.normalize(functional.to_tensor(pil), [0.1307] * 3, [0.3081] * 3)
    return tensor.numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_pipeline_has_torchvisions_bits(mode):
    functional = peers.torchvision().transforms.functional
    for seed in range(60):
        drawn = Draws(seed)
        pil = image(seed, mode)
        array = np.asarray(pil)
        example = {"image": array[..., None] if mode == "L" else array, "label": 3}
        made = transforms.SeedTransform(train=True)(example, drawn)
        changes = [(("brightness", "contrast")[i], drawn.factors[i]) for i in drawn.order]
        expected = reference(pil, functional, 48, drawn.angle, changes)
        np.testing.assert_array_equal(made["image"], expected)
        assert made["image"].dtype == np.float32
        assert made["label"] == 3


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_evaluation_has_torchvisions_bits_and_no_chance(mode):
    functional = peers.torchvision().transforms.functional
    for seed in range(20):
        pil = image(seed, mode)
        array = np.asarray(pil)
        example = {"image": array[..., None] if mode == "L" else array, "label": 3}
        made = transforms.make_transform("seed", train=False, image_size=32)(example, None)
        np.testing.assert_array_equal(made["image"], reference(pil, functional, 32, None, []))


class Draws:
    """A generator that remembers what it drew."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)
        self.uniforms = []

    def uniform(self, low, high):
        self.uniforms.append(self.generator.uniform(low, high))
        return self.uniforms[-1]

    def permutation(self, n):
        self.order = self.generator.permutation(n)
        return self.order

    @property
    def angle(self):
        return self.uniforms[0]

    @property
    def factors(self):
        return self.uniforms[1:]


def test_numbers_are_drawn_from_the_seeds_ranges_in_both_orders():
    angles, factors, orders = [], [], set()
    transform = transforms.SeedTransform(train=True)
    example = {"image": np.zeros((28, 28, 1), np.uint8), "label": 0}
    for seed in range(300):
        drawn = Draws(seed)
        transform(example, drawn)
        angles.append(drawn.angle)
        factors.extend(drawn.factors)
        orders.add(tuple(drawn.order))
    assert orders == {(0, 1), (1, 0)}
    for values, low, high in ((angles, -10, 10), (factors, 0.8, 1.2)):
        # The extremes of 300 uniform draws lie within 5 % of the ends, but for chance 1e-6.
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high


@pytest.mark.parametrize("factor", [0.0, 0.35, 1.0, 1.7])
@pytest.mark.parametrize("angle", [-90.0, -33.3, 0.0, 180.0])
def test_single_steps_have_torchvisions_bits_beyond_the_seeds_ranges(factor, angle):
    functional = peers.torchvision().transforms.functional
    pil = image(4, "RGB")
    pairs = [
        (transforms.resize(pil, 17), functional.resize(pil, [17, 17])),
        (transforms.grayscale(pil), functional.rgb_to_grayscale(pil, num_output_channels=3)),
        (transforms.rotate(pil, angle), functional.rotate(pil, angle)),
        (transforms.adjust_brightness(pil, factor), functional.adjust_brightness(pil, factor)),
        (transforms.adjust_contrast(pil, factor), functional.adjust_contrast(pil, factor)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_name_makes_a_transform():
    assert transforms.transform_names() == ["cifar", "imagenet", "seed"]
    for name in transforms.transform_names():
        assert callable(transforms.make_transform(name, train=True))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sed", {}, ["data.transform='sed'", "Did you mean 'seed'"]),
        ("seed", {"std": 0.0}, ["std=0.0", "above 0"]),
        ("seed", {"brightness": 1.5}, ["brightness=1.5", "between 0 and 1"]),
        ("seed", {"rotation_degrees": -1.0}, ["rotation_degrees=-1.0"]),
        ("seed", {"image_size": 0}, ["image_size=0"]),
    ],
)
def test_bad_options_are_named(name, options, words):
    with pytest.raises(UserError) as refusal:
        transforms.make_transform(name, train=True, **options)
    assert all(word in str(refusal.value) for word in words)


def test_cifar_cuts_mirrors_and_normalises_as_torchvision_does():
    torchvision = peers.torchvision()
    functional = torchvision.transforms.functional
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    transform = transforms.make_transform("cifar", train=True)
    numbers = np.random.default_rng(5)
    found = transform({"image": pixels, "label": 3}, np.random.default_rng(5))
    top, left = numbers.integers(0, 9, 2)
    image = functional.crop(functional.pad(Image.fromarray(pixels), 4), top, left, 32, 32)
    if numbers.random() < 0.5:
        image = functional.hflip(image)
    expected = functional.normalize(
        functional.to_tensor(image), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    )
    np.testing.assert_array_equal(found["image"], expected.permute(1, 2, 0).numpy())
    assert found["label"] == 3


def test_a_transform_refuses_what_is_another_ones():
    with pytest.raises(UserError, match="no option 'brightness'"):
        transforms.make_transform("cifar", train=True, brightness=0.1)


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (30, 300), (41, 41)])
def test_imagenet_cuts_and_resizes_as_torchvision_does(size):
    functional = peers.torchvision().transforms.functional
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pil = Image.fromarray(pixels)
    example = {"image": pixels, "label": 1}

    def normalised(image):
        tensor = functional.normalize(
            functional.to_tensor(image), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        )
        return tensor.permute(1, 2, 0).numpy()

    found = transforms.make_transform("imagenet", train=False, image_size=28)(example, None)
    expected = functional.center_crop(functional.resize(pil, 32), 28)
    np.testing.assert_array_equal(found["image"], normalised(expected))

    train = transforms.make_transform("imagenet", train=True, image_size=28)
    found = train(example, np.random.default_rng(7))
    numbers = np.random.default_rng(7)
    left, top, right, bottom = transforms.random_part(*size, numbers)
    expected = functional.resized_crop(pil, top, left, bottom - top, right - left, [28, 28])
    if numbers.random() < 0.5:
        expected = functional.hflip(expected)
    np.testing.assert_array_equal(found["image"], normalised(expected))


def test_random_parts_have_the_areas_and_shapes_of_torchvisions():
    numbers = np.random.default_rng(0)
    parts = np.array([transforms.random_part(400, 400, numbers) for _ in range(2000)])
    width, height = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
    assert (parts >= 0).all()
    assert (parts <= 400).all()
    area, ratio = width * height / 400**2, width / height
    assert 0.07 < area.min() < area.max() <= 1
    assert 0.74 < ratio.min() < ratio.max() < 1.35
    # Even in area where every shape fits.
    small = area[area < 0.7]
    assert abs(np.median(small) - (0.08 + 0.7) / 2) < 0.03
