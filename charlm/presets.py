"""The named configurations of training."""

from __future__ import annotations

from charlm.configuration import TrainingConfig

PRESETS: dict[str, TrainingConfig] = {
    # The lecture's model, trained in seconds: the exact gradient of the whole training split in every step.
    "fast": TrainingConfig(
        steps=200,
        batch_size="full",
        optimizer="adamw",
        learning_rate=0.05,
        betas=(0.9, 0.95),
        schedule="linear",
        warmup_steps=20,
        weight_decay=1e-2,
    ),
    # Longer contexts and a wider layer, held back by weight decay.
    "best": TrainingConfig(
        context_length=6,
        embedding_dim=32,
        hidden_dim=400,
        steps=4000,
        batch_size=2048,
        optimizer="adamw",
        learning_rate=0.004,
        betas=(0.9, 0.98),
        schedule="linear",
        warmup_steps=100,
        weight_decay=0.2,
    ),
    # Karpathy, "Neural Networks: Zero to Hero", makemore parts 2 and 3: 11,897 parameters on names.
    # The rate drops to a tenth halfway, at step 100,000.
    "makemore": TrainingConfig(schedule="step"),
    # EurekaLabsAI/mlp, README and mlp_pytorch.py: one stream of tokens that crosses names.
    "eureka": TrainingConfig(
        embedding_dim=48,
        hidden_dim=512,
        mode="stream",
        steps=50_000,
        batch_size=128,
        optimizer="adamw",
        learning_rate=7e-4,
        weight_decay=1e-4,
        schedule="cosine",
    ),
    # A convex problem with 27 distinct contexts: whole-split steps come within 0.0001 of the counts.
    "bigram": TrainingConfig(
        model="bigram", steps=400, batch_size="full", optimizer="adamw", learning_rate=0.5, schedule="linear"
    ),
    "count-bigram": TrainingConfig(model="count-bigram", steps=0),
}
