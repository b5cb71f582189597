"""Weights take the model's type, whatever type they have in a file."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.families import find
from zoo.models import CNN
from zoo.pretrained import read_variables, tables_of
from zoo.weights.tables import from_reference, to_reference
from zoo.weights.types import as_type, described


@pytest.mark.parametrize("bits", [np.float16, ml_dtypes.bfloat16])
def test_every_value_of_half_precision_is_converted_exactly(bits):
    every = np.arange(2**16, dtype=np.uint16).view(bits)
    with np.errstate(invalid="ignore"):  # signalling nan
        finite = every[np.isfinite(every.astype(np.float64))]
    assert finite.size > 60_000
    converted = as_type("a", finite, np.float32)
    assert converted.dtype == np.float32
    # float64 by numpy: exact for both types.
    np.testing.assert_array_equal(converted.astype(np.float64), finite.astype(np.float64))
    assert converted.astype(bits).tobytes() == finite.tobytes()


def test_float64_is_rounded_to_the_nearest_float32():
    values = np.array([1 / 3, 1e-46, -(2.0**-149), 3.4028235e38, 0.1])
    expected = [np.float32(value) for value in values]
    np.testing.assert_array_equal(as_type("a", values, np.float32), expected)
    assert as_type("a", values.astype(np.float32), np.float64).dtype == np.float64


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(2, np.int8), "conv1.weight is int8: weights are float16, bfloat16, float32 or"),
        (np.zeros(2, np.uint8), "conv1.weight is uint8"),
        (np.zeros(2, np.int64), "conv1.weight is int64"),
        (np.zeros(2, np.bool_), "conv1.weight is bool"),
        (np.zeros(2, np.complex64), "conv1.weight is complex64"),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), "conv1.weight is float8_e4m3fn"),
        (np.zeros(2, ml_dtypes.float8_e5m2), "conv1.weight is float8_e5m2"),
        (np.array([["a"]]), "conv1.weight is <U1"),
        (
            np.array([[0, 1], [np.nan, 2]], np.float32),
            r"1 of 4 values that are .* at \[1, 0\]: nan",
        ),
        (np.array([0, np.inf, -np.inf], np.float16), r"2 of 3 values that are .* at \[1\]: inf"),
        (np.array(-np.inf, ml_dtypes.bfloat16), r"1 of 1 values that are .* at \[\]: -inf"),
        (np.array([0, -3.5e38]), r"conv1.weight has values up to 3.5e\+38, beyond the range of f"),
        (np.array([3.4028235677973366e38]), "beyond the range of float32"),
    ],
)
def test_what_no_weight_can_be_is_refused_by_name(array, words):
    with pytest.raises(UserError, match=words):
        as_type("conv1.weight", array, np.float32)


def test_the_types_are_told():
    assert described({"float32": 10}, np.float32) == "10 float32"
    assert described({"float16": 10}, np.float32) == "10 float16, converted to float32"
    assert described({"float32": 2, "bfloat16": 8}, np.float32) == (
        "8 bfloat16 and 2 float32, converted to float32"
    )
    assert (
        described({"float64": 1}, np.float32) == "1 float64, converted to float32, float64 rounded"
    )


MODEL = CNN(num_classes=2, features=(2, 2, 2), hidden_features=3)
LIKE = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
TABLES = tables_of(find("cnn"), MODEL, LIKE["params"])


def arrays(dtype):
    """Weights for ``MODEL``, all with values that have few digits."""
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: generator.integers(-8, 9, x.shape).astype(dtype), LIKE["params"]
    )
    return to_reference(params, TABLES["pytorch"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_a_model_of_float32_stays_one(dtype):
    given = arrays(dtype)
    found, said = read_variables(given, TABLES, LIKE, "w.safetensors")
    expected, _ = read_variables(arrays(np.float32), TABLES, LIKE, "w.safetensors")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.tobytes()) == (np.float32, b.tobytes())
    name = np.dtype(dtype).name
    assert f"10 arrays loaded from w.safetensors: 10 {name}, converted to float32" in said


def test_a_model_of_another_type_keeps_that():
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), LIKE["params"])
    for leaf in jax.tree.leaves(from_reference(arrays(np.float32), TABLES["pytorch"], half)):
        assert leaf.dtype == jnp.bfloat16


def test_arrays_of_wrong_types_are_named_together():
    given = arrays(np.float32)
    given["conv2.bias"] = given["conv2.bias"].astype(np.int8)
    given["fc1.weight"][1, 2] = np.nan
    with pytest.raises(UserError) as refusal:
        read_variables(given, TABLES, LIKE, "w.safetensors")
    text = str(refusal.value)
    assert text.startswith("w.safetensors: the weights do not fit the model")
    assert "conv2.bias is int8" in text
    assert "fc1.weight has 1 of 24 values that are not finite, the first at [1, 2]: nan" in text
    assert "conv1" not in text
