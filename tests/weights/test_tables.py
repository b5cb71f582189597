import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.errors import UserError
from zoo.families import find
from zoo.families.cnn import cnn_table
from zoo.models import CNN
from zoo.pretrained import tables_of
from zoo.weights.tables import from_reference, to_reference
from zoo.weights.transforms import CONV_OIHW, LINEAR_TRANSPOSED, flatten_chw

MODEL = CNN(num_classes=5, features=(4, 6, 8), hidden_features=16)
TABLE = cnn_table(image_size=12)


def params_of_model():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))["params"]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_there_and_back_is_the_same_bit_for_bit():
    params = params_of_model()
    arrays = to_reference(params, TABLE)
    shapes = jax.eval_shape(lambda: params)
    assert_same_bits(from_reference(arrays, TABLE, shapes), params)
    again = to_reference(from_reference(arrays, TABLE, params), TABLE)
    assert_same_bits(again, arrays)


def test_names_and_shapes_are_the_seeds():
    shapes = {name: array.shape for name, array in to_reference(params_of_model(), TABLE).items()}
    assert shapes == {
        "conv1.weight": (4, 3, 3, 3),
        "conv1.bias": (4,),
        "conv2.weight": (6, 4, 3, 3),
        "conv2.bias": (6,),
        "conv3.weight": (8, 6, 3, 3),
        "conv3.bias": (8,),
        "fc1.weight": (16, 8 * 3 * 3),
        "fc1.bias": (16,),
        "fc2.weight": (5, 16),
        "fc2.bias": (5,),
    }


def test_flattened_images_meet_the_same_weights():
    torch = peers.torch()
    generator = np.random.default_rng(0)
    image, weight = generator.normal(size=(2, 5, 3, 4)), generator.normal(size=(7, 5 * 3 * 4))
    expected = torch.flatten(torch.tensor(image), 1) @ torch.tensor(weight).T
    transform = flatten_chw(3, 4)
    kernel = transform.to_ours(weight)
    output = image.transpose(0, 2, 3, 1).reshape(2, -1) @ kernel
    np.testing.assert_allclose(output, expected, rtol=1e-12)
    np.testing.assert_array_equal(transform.to_reference(kernel), weight)


@pytest.mark.parametrize(
    ("transform", "shape", "element", "ours"),
    [
        (CONV_OIHW, (2, 3, 4, 5), (1, 2, 0, 4), (0, 4, 2, 1)),
        (LINEAR_TRANSPOSED, (2, 3), (1, 2), (2, 1)),
    ],
)
def test_every_element_goes_where_the_layout_says(transform, shape, element, ours):
    reference = np.arange(np.prod(shape)).reshape(shape)
    assert transform.to_ours(reference)[ours] == reference[element]
    np.testing.assert_array_equal(transform.to_reference(transform.to_ours(reference)), reference)


@pytest.mark.parametrize("side", [8, 24, 32, 50, 96])
def test_the_table_of_a_cnn_is_that_of_the_images_it_has_seen(side):
    torch = peers.torch()
    peers.torchvision()
    from benchmarks.torch_peers.cnn_seed import SeedNet

    model, generator = CNN(num_classes=10), np.random.default_rng(side)
    image = generator.normal(size=(2, side, side, 3)).astype(np.float32)
    # Drawn here: to compile the initialisation takes far longer than the rest.
    params = jax.tree.map(
        lambda leaf: (0.1 * generator.normal(size=leaf.shape)).astype(leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), image)["params"],
    )
    table = tables_of(find("cnn"), model, params)["pytorch"]
    theirs = SeedNet(10, 0.0, image_size=side)
    weights = to_reference(params, table)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    with torch.no_grad():
        expected = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    found = model.apply({"params": params}, image)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_missing_extra_and_misshapen_weights_are_named_together():
    arrays = to_reference(params_of_model(), TABLE)
    del arrays["conv2.bias"]
    arrays["conv9.weight"] = np.zeros(3)
    arrays["fc2.weight"] = np.zeros((6, 16))
    arrays["fc1.weight"] = np.zeros((16, 8 * 2 * 2))
    with pytest.raises(UserError) as refusal:
        from_reference(arrays, TABLE, params_of_model())
    words = ("conv2.bias", "conv9.weight", "fc2.weight", "(6, 16)", "fc1.weight", "(16, 32)")
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert "conv1" not in str(refusal.value)


def test_parameters_that_the_table_lacks_are_named():
    params = params_of_model()
    del params["fc1"]["bias"]
    params["fc3"] = {"kernel": jnp.zeros((2, 2))}
    with pytest.raises(UserError, match=r"fc1/bias is missing\n.*fc3/kernel is not in the table"):
        to_reference(params, TABLE)
