r"""Makes ``zoo/data/embedded/spoken_digits.npz`` from the Free Spoken Digit Dataset.

    python scripts/make_spoken_digits.py --source=../shared/data/speech/spoken_digits_8khz.npz \
        --out=zoo/data/embedded/spoken_digits.npz

Keeps all 300 test takes (0 to 4) and 24 training takes (5 to 28) of each digit of five of the six
speakers; of ``theo``, who is held out, the test takes only. Samples become 8 bits by the mu-law
(ITU-T G.711's formula, without its rounding to segments).
"""

import argparse
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.speech import HELD_OUT, TEST_TAKES, encode_mu_law

LAST_TAKE = 28


def make_subset(source: Path) -> dict[str, Any]:
    """Returns the arrays of the file.

    Args:
        source: the npz file with ``samples, offsets, digit, speaker, take``.
    """
    with np.load(source, allow_pickle=False) as arrays:
        held = dict(arrays)
    test = held["take"] < TEST_TAKES
    training = (held["take"] <= LAST_TAKE) & (held["speaker"] != HELD_OUT)
    chosen = np.flatnonzero(test | training)
    parts: Sequence[Any] = [
        held["samples"][held["offsets"][i] : held["offsets"][i + 1]] for i in chosen
    ]
    return {
        "mu_law": encode_mu_law(np.concatenate(parts).astype(np.float32) / 32768),
        "offsets": np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32),
        "digit": held["digit"][chosen].astype(np.uint8),
        "speaker": held["speaker"][chosen],
        "take": held["take"][chosen].astype(np.uint8),
    }


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, required=True, help="the whole set, as npz")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    options = parser.parse_args()
    # numpy compresses with deflate only, and reads what zipfile reads: a sixth smaller so.
    with zipfile.ZipFile(options.out, "w", zipfile.ZIP_BZIP2) as archive:
        for name, array in make_subset(options.source).items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            # Without the time of writing: the same arrays give the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_BZIP2)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
