"""Which types of numbers weights may have in a file, and how they take a model's type."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped

from zoo.errors import UserError

# numpy does not count bfloat16 among its own floats.
TYPES = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


def wrong_type(name: str, type_name: str) -> UserError:
    """Returns the error for an array whose type cannot be a weight's."""
    return UserError(
        f"{name} is {type_name}: weights are float16, bfloat16, float32 or float64. Convert a "
        "quantised or packed file with the library that wrote it"
    )


def as_type(
    name: str, array: Shaped[np.ndarray, "*shape"], dtype: Any
) -> Float[np.ndarray, "*shape"]:
    """Returns an array of weights in a model's type.

    A type with fewer digits becomes another without rounding, such as float16 and bfloat16 become
    float32; one with more digits is rounded, as float64 is.

    Args:
        name: the array's name, for errors.
        array: the array as it stands in a file.
        dtype: the type of the model's parameter.

    Raises:
        UserError: the array is of another type than ``TYPES``, or a value is not finite or beyond
            the range of ``dtype``.
    """
    if array.dtype not in TYPES:
        raise wrong_type(name, str(array.dtype))
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(map(int, np.argwhere(~finite)[0]))
        raise UserError(
            f"{name} has {np.count_nonzero(~finite)} of {array.size} values that are not finite, "
            f"the first at {list(place)}: {array[place]}"
        )
    # A value beyond the range becomes infinite, which the next line refuses by name.
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    if not np.isfinite(converted).all():
        largest = float(np.abs(array).max())
        raise UserError(
            f"{name} has values up to {largest:.3g}, beyond the range of {np.dtype(dtype)}"
        )
    return converted


def described(types: Mapping[str, int], wanted: Any) -> str:
    """Returns which types arrays had, such as ``8 float16 and 2 float32, converted to float32``.

    Args:
        types: the number of arrays of each type.
        wanted: the type that they have now.
    """
    counts = " and ".join(f"{count} {name}" for name, count in sorted(types.items()))
    name = str(np.dtype(wanted))
    if set(types) <= {name}:
        return counts
    finer = [one for one in sorted(types) if _digits(one) > _digits(name)]
    rounded = f", {' and '.join(finer)} rounded" if finer else ""
    return f"{counts}, converted to {name}{rounded}"


def _digits(name: str) -> int:
    return int(ml_dtypes.finfo(np.dtype(name)).nmant)
