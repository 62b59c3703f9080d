"""`python -m benchmarks.with_jax bench ...`: the command charlm with one more backend to race against, "jax".

That is the training loop which JAX users write, `lax.scan` over steps under `jit`. It takes `pip install jax`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from charlm.batches import BatchSampler
from charlm.benchmark import OPPONENTS
from charlm.cli import main
from charlm.configuration import TrainingConfig
from charlm.data import Dataset
from charlm.models import MLP


def create_run(config: TrainingConfig, dataset: Dataset, threads: int) -> Callable[[int], Tensor]:
    """`run(steps)`: as `charlm.Trainer.run` on the same initial weights and batches, at a constant learning rate.

    All steps of a call are one call of a compiled function, which XLA compiles once per number of steps.

    Args:
        config: of a plain MLP, with "sgd" without momentum, or "adamw".
        dataset: what it is trained on; with the batch size "full", every example in every step.
        threads: that XLA may use; of the first call in a process, where it starts them.

    Raises:
        ValueError: JAX is not installed, or the configuration is none of these.
    """
    if config.model != "mlp" or config.direct or config.softcap is not None or config.momentum:
        raise ValueError("the loop in JAX trains an MLP without direct connections, softcap and momentum")
    # Not imported yet: XLA is to start with as many threads as it may have.
    if find_spec("jax") is None:
        raise ValueError("the backend 'jax' needs JAX: pip install jax")
    jax = _start_jax(threads)
    jnp = jax.numpy
    contexts, targets = (
        jnp.asarray(values.int().numpy()) for values in (dataset.train.contexts, dataset.train.targets)
    )

    def loss_of(parameters: dict[str, Any], contexts: Any, targets: Any) -> Any:
        inputs = parameters["embedding"][contexts].reshape(len(contexts), -1)
        hidden = jnp.tanh(inputs @ parameters["weight1"] + parameters["bias1"])
        log_p = jax.nn.log_softmax(hidden @ parameters["weight2"] + parameters["bias2"])
        return -jnp.take_along_axis(log_p, targets[:, None], axis=1).mean()

    update = _adamw(jax, config) if config.optimizer == "adamw" else _sgd(jax, config)

    def step(state: Any, indices: Any) -> tuple[Any, Any]:
        batch = (contexts, targets) if indices is None else (contexts[indices], targets[indices])
        loss, gradient = jax.value_and_grad(loss_of)(state[0], *batch)
        return update(state, gradient), loss

    @jax.jit
    def train(state: Any, indices: Any) -> tuple[Any, Any]:
        return jax.lax.scan(step, state, indices)

    @jax.jit
    def train_on_all(state: Any) -> tuple[Any, Any]:
        state, loss = step(state, None)
        return state, loss[None]

    state = _initial_state(jnp, config, dataset)
    batches = None
    if isinstance(config.batch_size, int):
        batches = BatchSampler(len(dataset.train), config.batch_size, config.seed)
    done = 0

    def run(steps: int) -> Tensor:
        nonlocal state, done
        losses = []
        end = done + steps
        while done < end:
            if batches is None:
                state, loss = train_on_all(state)
            else:
                state, loss = train(state, jnp.asarray(batches.read(done, end - done).int().numpy()))
            losses.append(torch.from_numpy(jax.device_get(loss).copy()))  # waits for the result
            done += len(losses[-1])
        return torch.cat(losses)

    return run


def _start_jax(threads: int) -> Any:
    """JAX on the CPU. XLA starts as many threads as it may run on cores, and they stay there."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:threads])
    try:
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.devices()
        return jax
    finally:
        os.sched_setaffinity(0, cores)


def _initial_state(jnp: Any, config: TrainingConfig, dataset: Dataset) -> tuple[Any, ...]:
    """Parameters, with weights as (inputs, outputs), and for AdamW its moments and the number of steps."""
    model = config.create_model(len(dataset.vocabulary))
    assert isinstance(model, MLP)
    parameters = {
        name: jnp.array(parameter.detach().numpy().T if name.startswith("weight") else parameter.detach().numpy())
        for name, parameter in model.named_parameters()
    }
    if config.optimizer == "sgd":
        return (parameters,)
    zeros = {name: jnp.zeros_like(parameter) for name, parameter in parameters.items()}
    return parameters, zeros, zeros, jnp.zeros(())


def _sgd(jax: Any, config: TrainingConfig) -> Callable[[Any, Any], Any]:
    """As `torch.optim.SGD`."""

    def update(state: Any, gradient: Any) -> Any:
        (parameters,) = state
        return (
            jax.tree.map(lambda p, g: p - config.learning_rate * (g + config.weight_decay * p), parameters, gradient),
        )

    return update


def _adamw(jax: Any, config: TrainingConfig) -> Callable[[Any, Any], Any]:
    """As `torch.optim.AdamW`."""
    (beta1, beta2), rate = config.betas, config.learning_rate

    def update(state: Any, gradient: Any) -> Any:
        parameters, first, second, count = state
        count = count + 1
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, gradient)
        second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, second, gradient)

        def new(p: Any, m: Any, v: Any) -> Any:
            denominator = jax.numpy.sqrt(v / (1 - beta2**count)) + config.eps
            return p * (1 - rate * config.weight_decay) - rate * m / (1 - beta1**count) / denominator

        return jax.tree.map(new, parameters, first, second), first, second, count

    return update


OPPONENTS["jax"] = create_run

if __name__ == "__main__":
    sys.exit(main(program="python -m benchmarks.with_jax"))
