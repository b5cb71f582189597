import numpy as np
import pytest

from zoo.data import DataError, scenes
from zoo.data.images import load_images
from zoo.data.scenes import load_scenes


def facts(example):
    return (
        list(scenes.COLORS)[example["color"]],
        int(example["digit"]),
        list(scenes.PLACES)[example["place"]],
        list(scenes.SIZES)[example["size"]],
    )


def test_a_scene_is_a_function_of_split_and_number():
    one, two = scenes.Scenes("train"), scenes.Scenes("train")
    for name, value in one[17].items():
        np.testing.assert_array_equal(value, two[17][name])
    assert (one[17]["image"] != one[18]["image"]).any()
    assert (one[17]["image"] != scenes.Scenes("test")[17]["image"]).any()


def test_held_out_pairs_are_never_trained_on_and_leave_none_unseen():
    shown, kept_back = scenes.Scenes("train"), scenes.Scenes("held_out")
    train = {facts(shown[i])[:2] for i in range(600)}
    held_out = {facts(kept_back[i])[:2] for i in range(80)}
    assert held_out == set(scenes.HELD_OUT)
    assert len(train) == 60 - len(scenes.HELD_OUT)
    assert not train & held_out


def test_the_judges_scenes_show_every_pair_and_are_labelled_by_digit():
    dataset = load_images(name="digit_scenes", transform="seed")
    assert dataset.vocabularies["classes"].symbols[7] == "seven"
    source, transform = dataset.open("train"), dataset.transform(True)
    pairs = set()
    for index in range(1000):
        scene = source[index]
        color, digit, *_ = facts(scene)
        pairs.add((color, digit))
        example = transform(scene, np.random.default_rng(0))
        assert set(example) == {"image", "label"}
        assert example["label"] == digit
    assert len(pairs) == 60
    with pytest.raises(DataError, match=r"data\.path='x'.*no meaning"):
        load_images(name="digit_scenes", path="x")


def test_colour_and_place_can_be_read_off_the_pixels():
    source, right = scenes.Scenes("validation"), np.zeros(2)
    for index in range(400):
        example = source[index]
        image = scenes.to_pixels(example["image"])
        color, _, place, _ = facts(example)
        right += [scenes.read_color(image) == color, scenes.read_place(image) == place]
    assert (right / 400 >= 0.99).all()


def test_a_caption_says_true_things_only():
    words, source = scenes.words(), scenes.Scenes("train")
    for index in range(300):
        example = source[index]
        color, digit, place, size = facts(example)
        said = set(words.decode([t for t in example["tokens"] if t]))
        assert scenes.DIGITS[digit] in said
        assert not said & (set(scenes.DIGITS) - {scenes.DIGITS[digit]})
        meant = {
            meaning
            for meaning, synonyms in scenes._SYNONYMS.items()
            if any(set(phrase.split()) <= said for phrase in synonyms)
        }
        assert meant <= {color, place, size}
        assert {color, place} <= meant


def test_pixels_survive_the_way_to_the_network():
    image = np.arange(256, dtype=np.uint8)
    assert scenes.to_network(image).min() == -1
    assert scenes.to_network(image).max() == 1
    np.testing.assert_array_equal(scenes.to_pixels(scenes.to_network(image)), image)


def test_words_that_training_never_showed_are_named():
    assert scenes.encode_caption("A big Red seven at the top left.", scenes.words()).any()
    with pytest.raises(DataError, match="'giraffe', 'orange'"):
        scenes.encode_caption("an orange giraffe".removeprefix("an "), scenes.words())
    with pytest.raises(DataError, match="13 words"):
        scenes.encode_caption("red " * 13, scenes.words())
    with pytest.raises(DataError, match="Did you mean 'digit_scenes'"):
        load_scenes(name="digit_scene")
