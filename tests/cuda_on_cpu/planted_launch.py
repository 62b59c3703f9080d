"""Faults in where kernels are launched: on which GPU, and on which stream."""

from __future__ import annotations

from itertools import count

import simulator
from cases import (
    check,
    cross_entropy_sample,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
)
from planted import Fault, Planted

from charlm import ops

MISTAKES = [
    Fault("launch.cuh", "config.stream = stream;", "config.stream = FAULT ? nullptr : stream;", "another stream"),
    Fault("device.cu", "return cudaSetDevice(index); }", "return cudaSetDevice(FAULT ? 0 : index); }", "another GPU"),
    Fault(
        "device.cu",
        "error = load_kernel(index);",
        "error = FAULT ? Error{cudaSuccess} : load_kernel(index);",
        "^CUDA error: no kernel image is available",
    ),
]
# What is known of a GPU stays known.
_numbers = count()


def run_everything() -> None:
    """Every op, on the other GPU and on a stream of its own; and on a GPU without code."""
    for sample in (
        cross_entropy_sample(5, 27),
        linear_cross_entropy_sample(5),
        linear_log_probs_sample(5),
        log_probs_sample(5, 27),
        embedding_linear_sample(40),
        mlp_cross_entropy_sample(40),
    ):
        with simulator.tensors_on(simulator.GPUS[1]), simulator.stream(1):
            check(sample)
        old = simulator.Gpu("5.2", 96, f"13.{next(_numbers)}")
        with simulator.tensors_on(old) as index:
            try:
                sample.call(getattr(ops, sample.op), {})
            except RuntimeError as error:
                if not str(error).startswith(f"charlm has no kernels for cuda:{index}"):
                    raise


PLANTED = Planted(MISTAKES, run_everything)
