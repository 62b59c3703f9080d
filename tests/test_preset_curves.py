"""Every preset that trains: the fused backend has the loss curve of eager PyTorch, on the embedded names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from charlm import PRESETS, TrainingConfig

# Steps in float32 and in float64. AdamW at the rate of `fast` blows rounding up: after 200 steps in float32, eager is
# 4e-3 from its own curve in float64, and the engine 1e-3. `best` takes eager 20 ms a step.
STEPS = {"makemore": (1000, 100), "eureka": (300, 100), "bigram": (400, 400), "fast": (100, 30), "best": (30, 10)}


def curve(config: TrainingConfig, backend: str, steps: int, dtype: torch.dtype) -> Tensor:
    dataset = config.load_data()
    model = config.create_model(len(dataset.vocabulary)).to(dtype)
    return replace(config, backend=backend).create_trainer(model, dataset).run(steps)


def test_no_preset_is_left_out() -> None:
    assert {name for name, config in PRESETS.items() if config.steps > 0} == set(STEPS)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", STEPS)
def test_presets_train_as_in_eager(name: str, dtype: torch.dtype, tolerance: float, threads: None) -> None:
    torch.set_num_threads(1)  # several would wait for each other where tests run in parallel
    steps = STEPS[name][dtype == torch.float64]
    eager, fused = (curve(PRESETS[name], backend, steps, dtype) for backend in ("eager", "fused"))
    torch.testing.assert_close(fused, eager, rtol=0.0, atol=tolerance)
