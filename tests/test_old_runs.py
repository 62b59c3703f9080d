"""Runs that are shared without what training needs, or were written by an older charlm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_line import SMALL_MLP, CommandLine

import charlm
from charlm import Trainer, checkpoint
from charlm.fingerprint import Fingerprint


@pytest.mark.parametrize("linked", [False, True])
def test_a_model_is_shared_without_what_training_needs(
    run_charlm: CommandLine, names: Path, tmp_path: Path, linked: bool
) -> None:
    """Alone, or as links into a store, as the Hugging Face hub has them."""
    run_charlm.output("train", names, *SMALL_MLP, "--optimizer", "adamw", "--steps", 4, "--quiet", "--out", "run")
    expected = run_charlm.output("sample", "run", "--seed", 1), run_charlm.output("eval", "run")
    shared = Path("shared")
    shared.mkdir()
    for name in ("config.json", "model.safetensors"):
        if linked:
            (shared / name).symlink_to(tmp_path / "run" / name)
        else:
            shutil.copy(Path("run", name), shared)
    assert (run_charlm.output("sample", shared, "--seed", 1), run_charlm.output("eval", shared)) == expected
    assert run_charlm.output("plot", shared) == "shared/embedding.png\n"
    assert run_charlm.error("train", "--resume", shared) == (
        "shared cannot be trained on: it has no optimizer.safetensors, the state of the optimizer"
    )


# As written before `unrecorded`, with metadata in any order.
OLD_CONFIG = """{
  "format": 1,
  "model": {"kind": "bigram", "vocab_size": 3},
  "vocabulary": {"characters": ".ab", "boundary": "."},
  "training": {"model": "bigram", "context_length": 3, "embedding_dim": 10, "hidden_dim": 200, "direct": false,
    "softcap": null, "smoothing": 0.0, "path": "ab.txt", "mode": "lines", "split": "random", "split_seed": 42,
    "steps": 4, "batch_size": 4, "optimizer": "sgd", "learning_rate": 1, "momentum": 0.5, "betas": [0.9, 0.999],
    "eps": 1e-08, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0, "milestones": null,
    "decay_factor": 0.1, "max_grad_norm": null, "backend": "eager", "device": null, "seed": 42},
  "data": {"tokens": 31, "sha256": "SHA256"},
  "trained_in_steps": true
}
"""


def test_a_run_of_an_older_charlm_goes_on(run_charlm: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "ab.txt").write_text("ab\n" * 10)
    dataset = charlm.data.load("ab.txt", context_length=1)
    trainer = Trainer(
        charlm.NeuralBigram(3), dataset, learning_rate=1.0, momentum=0.5, batch_size=4, backend="eager", seed=42
    )
    generator = torch.Generator().manual_seed(42).get_state()
    trainer.run(2)
    old = tmp_path / "old"
    old.mkdir()
    sha256 = Fingerprint.of(dataset).sha256
    (old / "config.json").write_text(OLD_CONFIG.replace("SHA256", sha256))
    (old / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0986122}\n{"step": 2, "loss": 0.5, "dev": 0.25}\n')
    state = trainer.state_dict()
    metadata = {"step": "2", "charlm_format": "1"}
    safetensors.torch.save_file(state["model"], old / "model.safetensors", metadata=metadata)
    optimizer = {"optimizer.weight.momentum_buffer": state["optimizer"]["weight.momentum_buffer"]}
    batches = {"batches.generator": generator, "batches.start": torch.tensor(0)}
    safetensors.torch.save_file({**optimizer, **batches}, old / "optimizer.safetensors", metadata=metadata)

    losses = trainer.run(2)
    run_charlm.output("train", "--resume", "old", "--quiet")
    found = checkpoint.load("old", training=True)
    assert found.step == 4
    assert torch.equal(found.model.state_dict()["weight"], trainer.model.state_dict()["weight"])
    records = checkpoint.read_metrics("old")
    assert [record["loss"] for record in records] == [1.0986122, 0.5, *losses.tolist()]
    # Without the last key, as the first versions wrote it.
    config = json.loads((old / "config.json").read_text())
    del config["trained_in_steps"]
    (old / "config.json").write_text(json.dumps(config))
    assert checkpoint.load("old", training=True).training_state is not None
