"""Makes the shipped sentences, messages and series from the shared data.

    python scripts/make_texts.py --source=../shared/data --out=zoo/data/embedded

``tatoeba_english_german.tsv.gz``: the pairs, with the line ends of Unix. ``sms_spam.tsv.gz`` and
``co2_weekly.csv.gz``: unchanged but for the compression.
"""

import argparse
import gzip
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Compresses without the time of writing: the same content gives the same bytes."""
    path.write_bytes(gzip.compress(content, 9, mtime=0))
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, required=True, help="the folder of shared data")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    options = parser.parse_args()
    text = options.source / "text"
    pairs = gzip.decompress((text / "tatoeba_eng_deu.tsv.gz").read_bytes()).replace(b"\r\n", b"\n")
    write(options.out / "tatoeba_english_german.tsv.gz", pairs)
    messages = gzip.decompress((text / "sms_spam.tsv.gz").read_bytes())
    write(options.out / "sms_spam.tsv.gz", messages)
    series = options.source / "series" / "co2_mauna_loa_weekly.csv"
    write(options.out / "co2_weekly.csv.gz", series.read_bytes())


if __name__ == "__main__":
    main()
