"""`python -m benchmarks.gpu.report results/<gpu>.json`: the page and the figures of results, beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.gpu import figures, page


def main(name: str) -> None:
    path = Path(name)
    results = json.loads(path.read_text())
    # The page first: it does not need what draws.
    path.with_suffix(".md").write_text(page.render(results))
    figures.draw(results, path.parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
