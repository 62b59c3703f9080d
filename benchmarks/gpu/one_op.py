"""`python -m benchmarks.gpu.one_op`: that charlm computes on the GPU at all, and how long that takes from the start."""

from __future__ import annotations

import json
import time


def main() -> None:
    started = time.monotonic()
    import torch

    from benchmarks.gpu import measure
    from charlm import ops

    imported = time.monotonic()
    logits = torch.zeros(4, 27, device=measure.DEVICE)
    loss = ops.cross_entropy(logits, torch.zeros(4, dtype=torch.int64, device=measure.DEVICE)).item()
    ended = time.monotonic()
    if abs(loss - 3.2958369) > 1e-5:
        raise SystemExit(f"cross_entropy of 27 equal logits is {loss} and not log(27)")
    print(json.dumps({"import_s": round(imported - started, 2), "first_call_s": round(ended - imported, 2)}))


if __name__ == "__main__":
    main()
