"""Calls of the ops on DTensors: samples, and where their arguments are placed.

Shards are uneven: 7 rows, 5 or 9 classes and 9 hidden units among 2 ranks.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from cases import (
    ALL_LOG_PROBS_OPTIONS,
    ALL_LOSS_OPTIONS,
    REDUCTIONS,
    TARGETS,
    Sample,
    cross_entropy_sample,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    mlp_cross_entropy_sample,
)
from torch.distributed.tensor import Partial, Placement, Replicate, Shard

WHOLE, PART = Replicate(), Partial()
ROWS, SECOND, THIRD = Shard(0), Shard(1), Shard(2)

# A sample, and where its arguments are placed, in each dimension of the mesh: Replicate for those that are not named.
Case = tuple[Sample, dict[str, Any]]


def loss_cases() -> dict[str, Case]:
    """Every reduction and kind of target, with and without all options, in every placement that an op tells apart."""
    cases: dict[str, Case] = {}
    for reduction in REDUCTIONS:
        for targets in TARGETS:
            for options in ({}, ALL_LOSS_OPTIONS) if reduction == "mean" else (ALL_LOSS_OPTIONS,):
                arguments: Any = {"targets": targets, "reduction": reduction, **options}
                name = f"{reduction}, {targets}, {'all options' if options else 'plain'}: "
                logits = cross_entropy_sample(7, 5, **arguments)
                cases |= {
                    name + "logits whole": (logits, {}),
                    name + "logits by rows": (
                        logits,
                        {"input": ROWS, "target": ROWS, "weight": ROWS, "token_weights": ROWS},
                    ),
                    name + "logits by rows, target whole": (logits, {"input": ROWS}),
                    name + "logits whole, target by rows": (logits, {"target": ROWS}),
                    name + "logits partial": (logits, {"input": PART}),
                    name + "logits by classes": (logits, {"input": SECOND}),
                }
                image = cross_entropy_sample(4, 5, 3, **arguments)
                cases |= {
                    name + "image by pixels": (image, {"input": THIRD}),
                    name + "image by classes": (image, {"input": SECOND}),
                }
                layer = linear_cross_entropy_sample((7, 2), 5, 9, **arguments)
                by_class: dict[str, Placement] = {"linear_weight": ROWS, "linear_bias": ROWS}
                cases |= {
                    name + "layer whole": (layer, {}),
                    name + "layer by rows": (layer, {"input": ROWS, "target": ROWS}),
                    name + "layer by positions": (
                        layer,
                        {"input": SECOND, "target": SECOND, "token_weights": SECOND},
                    ),
                    name + "layer by classes": (layer, by_class),
                    name + "layer by classes, input by positions": (layer, {"input": SECOND, "linear_weight": ROWS}),
                    name + "layer, input partial": (layer, {"input": PART, "linear_weight": SECOND}),
                    name + "layer, input by features": (layer, {"input": THIRD, "linear_bias": ROWS}),
                }
    return cases


def log_probs_cases() -> dict[str, Case]:
    """One id or several a row, with and without options, in every placement that the ops tell apart, and edges."""
    cases: dict[str, Case] = {}
    for ids_per_row in (None, 0, 3):
        for options in ({}, ALL_LOG_PROBS_OPTIONS) if ids_per_row != 0 else ({},):
            arguments: Any = {"ids_per_row": ids_per_row, "ignored": True, **options}
            name = f"{ids_per_row} ids, {'all options' if options else 'plain'}: "
            logits, layer = log_probs_sample(7, 5, **arguments), linear_log_probs_sample((7, 2), 5, 9, **arguments)
            by_class: dict[str, Placement] = {"linear_weight": ROWS, "linear_bias": ROWS}
            cases |= {
                name + "logits whole": (logits, {}),
                name + "logits by rows": (logits, {"input": ROWS, "ids": ROWS}),
                name + "logits by rows, ids whole": (logits, {"input": ROWS}),
                name + "logits whole, ids by rows": (logits, {"ids": ROWS}),
                name + "logits partial": (logits, {"input": PART}),
                name + "logits by classes": (logits, {"input": SECOND}),
                name + "layer whole": (layer, {}),
                name + "layer by rows": (layer, {"input": ROWS, "ids": ROWS}),
                name + "layer by positions": (layer, {"input": SECOND, "ids": SECOND}),
                name + "layer by classes": (layer, by_class),
                name + "layer by classes, input by positions": (layer, {"input": SECOND, "linear_weight": ROWS}),
                name + "layer, input partial": (layer, {"input": PART, "linear_weight": SECOND}),
                name + "layer, input by features": (layer, {"input": THIRD, "linear_bias": ROWS}),
            }
    several, ignored = log_probs_sample(7, 5, ids_per_row=3), log_probs_sample(7, 5)
    ignored = ignored.with_arguments(ids=torch.full((7,), -100))
    classes, rows = {"linear_weight": ROWS}, {"input": ROWS}
    return cases | {
        "ids by their number in a row": (several, {"ids": SECOND}),
        "ids by their number, logits by rows": (several, {"input": ROWS, "ids": SECOND}),
        "one row of logits": (log_probs_sample(5), {"input": ROWS}),
        "one row of logits, several ids": (log_probs_sample(5, ids_per_row=3), {"input": ROWS}),
        "one row by rows": (log_probs_sample(1, 5), rows),
        "one class": (log_probs_sample(7, 1), {"input": SECOND}),
        "no classes": (log_probs_sample(7, 0).with_arguments(ids=torch.full((7,), -100)), {"input": SECOND}),
        "no rows": (log_probs_sample(0, 5), rows),
        "no rows, by classes": (log_probs_sample(0, 5), {"input": SECOND}),
        "all ignored": (ignored, rows),
        "all ignored, by classes": (ignored, {"input": SECOND}),
        "one row of a layer": (linear_log_probs_sample((), 5, 9), classes),
        "no rows of a layer": (linear_log_probs_sample(0, 5, 9), classes),
        "no rows of a layer by rows": (linear_log_probs_sample(0, 5, 9), rows),
    }


def other_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for reduction in REDUCTIONS:
        network = mlp_cross_entropy_sample(7, targets="ignored", reduction=reduction, softcap=3.0)
        without_labels = network.with_arguments(target=torch.full((7,), -100))
        one_row = linear_cross_entropy_sample((), 5, 9, reduction=reduction, label_smoothing=0.1)
        no_rows = linear_cross_entropy_sample(0, 5, 9, reduction=reduction)
        ignored = cross_entropy_sample(7, 5, reduction=reduction)
        ignored = ignored.with_arguments(target=torch.full((7,), -100))
        here = ignored.arguments["target"].clone()
        here[0] = 2
        by_class: dict[str, Placement] = {"weight1": ROWS, "bias1": ROWS, "weight2": ROWS, "bias2": ROWS}
        cases |= {
            f"{reduction}: network whole": (network, {}),
            f"{reduction}: network by rows": (network, {"ids": ROWS, "target": ROWS}),
            f"{reduction}: network by rows, all ignored": (without_labels, {"ids": ROWS}),
            f"{reduction}: network, parameters sharded": (network, {"ids": ROWS, "embedding": ROWS, "weight1": SECOND}),
            f"{reduction}: network, ids by positions": (network, {"ids": SECOND, "target": ROWS}),
            f"{reduction}: network, both layers": (network, by_class),
            f"{reduction}: network, first layer": (network, {"weight1": ROWS}),
            f"{reduction}: network, second layer": (network, {"ids": ROWS, "weight2": ROWS}),
            f"{reduction}: one row of logits": (cross_entropy_sample(5, reduction=reduction), {"input": ROWS}),
            f"{reduction}: one row": (cross_entropy_sample(1, 5, reduction=reduction), {"input": ROWS}),
            f"{reduction}: no rows": (cross_entropy_sample(0, 5, reduction=reduction), {"input": ROWS}),
            f"{reduction}: one class": (cross_entropy_sample(7, 1, reduction=reduction), {"input": SECOND}),
            f"{reduction}: one row of a layer": (one_row, {"linear_weight": ROWS}),
            f"{reduction}: no rows of a layer": (no_rows, {"linear_weight": ROWS}),
            f"{reduction}: no rows of a layer by rows": (no_rows, {"input": ROWS}),
            f"{reduction}: all ignored": (ignored, {"input": ROWS}),
            f"{reduction}: all ignored, by classes": (ignored, {"input": SECOND}),
            f"{reduction}: one rank ignores all": (ignored.with_arguments(target=here), {"input": ROWS}),
        }
    for shape in ((7,), (3, 4), ()):
        contexts = embedding_linear_sample(shape)
        positions = Shard(len(shape))
        cases |= {
            f"contexts {shape}: whole": (contexts, {}),
            f"contexts {shape}: ids by positions": (contexts, {"ids": positions}),
            f"contexts {shape}: by hidden units": (contexts, {"weight": ROWS, "bias": ROWS}),
            f"contexts {shape}: by hidden units, bias whole": (contexts, {"weight": ROWS}),
            f"contexts {shape}: weight by columns": (contexts, {"weight": SECOND}),
            f"contexts {shape}: embedding by tokens": (contexts, {"embedding": ROWS}),
            f"contexts {shape}: partial bias": (contexts, {"bias": PART}),
        }
    for activation in ("relu", "gelu", "silu", "none"):
        contexts = embedding_linear_sample(7, activation=activation)
        cases[f"{activation}: by rows"] = contexts, {"ids": ROWS}
        cases[f"{activation}: by rows and hidden units"] = contexts, {"ids": ROWS, "weight": ROWS, "embedding": SECOND}
    weighted = cross_entropy_sample(7, 5, weighted=True, targets="probabilities", label_smoothing=0.1)
    weighted = Sample(weighted.op, weighted.arguments, ("input", "target", "weight"))
    cases["gradient of the class weights"] = weighted, {"input": ROWS, "weight": ROWS}
    for reduction, targets in product(REDUCTIONS, TARGETS):
        options: Any = {"reduction": reduction, "targets": targets, "token_weighted": True}
        samples = (cross_entropy_sample(7, 5, **options), linear_cross_entropy_sample(7, 5, 9, **options))
        logits, layer = (replace(each, differentiable=(*each.differentiable, "token_weights")) for each in samples)
        name = f"{reduction}, {targets}: gradient of the token weights, "
        cases |= {
            name + "logits by rows": (logits, {"input": ROWS}),
            name + "logits and weights by rows": (logits, {"input": ROWS, "token_weights": ROWS}),
            name + "logits by classes": (logits, {"input": SECOND}),
            name + "layer by rows": (layer, {"input": ROWS, "token_weights": ROWS}),
            name + "layer by classes": (layer, {"linear_weight": ROWS}),
        }
    return cases


def mesh_cases() -> dict[str, Case]:
    """On 2 x 2 ranks."""
    cases: dict[str, Any] = {}
    for reduction in REDUCTIONS:
        options: Any = {"reduction": reduction, "targets": "ignored", **ALL_LOSS_OPTIONS}
        logits = cross_entropy_sample(7, 5, **options)
        layer = linear_cross_entropy_sample((5, 3), 5, 9, **options)
        contexts, network = embedding_linear_sample((5, 3)), mlp_cross_entropy_sample(7, reduction=reduction)
        cases |= {
            f"{reduction}: logits by rows": (logits, {"input": (ROWS, WHOLE), "target": (ROWS, WHOLE)}),
            f"{reduction}: logits by rows twice": (logits, {"input": (ROWS, ROWS)}),
            f"{reduction}: logits by rows and classes": (logits, {"input": (ROWS, SECOND), "target": (ROWS, WHOLE)}),
            f"{reduction}: logits by classes and rows": (logits, {"input": (SECOND, ROWS)}),
            f"{reduction}: logits by classes twice": (logits, {"input": (SECOND, SECOND)}),
            f"{reduction}: logits partial and by rows": (logits, {"input": (PART, ROWS)}),
            f"{reduction}: layer by rows and positions": (layer, {"input": (ROWS, SECOND)}),
            f"{reduction}: layer by rows and classes": (
                layer,
                {"input": (ROWS, SECOND), "linear_weight": (WHOLE, ROWS), "linear_bias": (WHOLE, ROWS)},
            ),
            f"{reduction}: layer with a sharded copy": (
                layer,
                {"input": (ROWS, WHOLE), "linear_weight": (SECOND, ROWS)},
            ),
            f"{reduction}: network by rows": (network, {"ids": (ROWS, WHOLE), "target": (ROWS, WHOLE)}),
            f"{reduction}: network by rows and layers": (
                network,
                {"ids": (ROWS, WHOLE), "weight1": (WHOLE, ROWS), "weight2": (WHOLE, ROWS)},
            ),
        }
    for ids_per_row in (None, 3):
        options = {"ids_per_row": ids_per_row, "ignored": True, **ALL_LOG_PROBS_OPTIONS}
        scores, head = log_probs_sample(7, 5, **options), linear_log_probs_sample((5, 3), 5, 9, **options)
        cases |= {
            f"{ids_per_row} ids: logits by rows twice": (scores, {"input": (ROWS, ROWS)}),
            f"{ids_per_row} ids: logits by rows and classes": (scores, {"input": (ROWS, SECOND)}),
            f"{ids_per_row} ids: logits by classes twice": (scores, {"input": (SECOND, SECOND)}),
            f"{ids_per_row} ids: layer by rows and positions": (head, {"input": (ROWS, SECOND)}),
            f"{ids_per_row} ids: layer by positions and classes": (
                head,
                {"input": (SECOND, WHOLE), "linear_weight": (WHOLE, ROWS), "linear_bias": (WHOLE, ROWS)},
            ),
        }
    cases["contexts by rows and hidden units"] = contexts, {"ids": (ROWS, WHOLE), "weight": (WHOLE, ROWS)}
    cases["contexts by rows and positions"] = contexts, {"ids": (ROWS, SECOND)}
    return cases


def torch_cases() -> dict[str, Case]:
    """Where PyTorch has a result to compare with: rows that divide, none of them ignored."""
    cases: dict[str, Case] = {}
    for reduction in REDUCTIONS:
        # Means with class weights are wrong in torch 2.13, where the ranks' rows have other weights together.
        logits = cross_entropy_sample(8, 5, reduction=reduction, weighted=reduction != "mean")
        uniform = cross_entropy_sample(8, 6, reduction=reduction)
        layer = linear_cross_entropy_sample((8,), 5, 10, reduction=reduction)
        probabilities = cross_entropy_sample(8, 5, reduction=reduction, targets="probabilities")
        cases |= {
            f"{reduction}: logits whole": (logits, {}),
            f"{reduction}: logits by rows": (logits, {"input": ROWS, "target": ROWS}),
            f"{reduction}: logits by rows, target whole": (logits, {"input": ROWS}),
            f"{reduction}: logits partial": (logits, {"input": PART}),
            f"{reduction}: logits by classes": (uniform, {"input": SECOND}),
            f"{reduction}: probabilities by rows": (probabilities, {"input": ROWS, "target": ROWS}),
            f"{reduction}: layer whole": (layer, {}),
            f"{reduction}: layer by rows": (layer, {"input": ROWS, "target": ROWS}),
            f"{reduction}: layer by classes": (layer, {"linear_weight": ROWS, "linear_bias": ROWS}),
        }
    contexts = embedding_linear_sample(8)
    cases |= {
        "contexts whole": (contexts, {}),
        "contexts by rows": (contexts, {"ids": ROWS}),
        "contexts by hidden units": (contexts, {"weight": ROWS, "bias": ROWS}),
    }
    return cases


def second_derivative_cases() -> dict[str, Case]:
    return {
        "logits by rows": (cross_entropy_sample(7, 5, targets="ignored", **ALL_LOSS_OPTIONS), {"input": ROWS}),
        "layer by rows": (linear_cross_entropy_sample(7, 5, 9, targets="ignored"), {"input": ROWS}),
        "log_probs by rows": (log_probs_sample(7, 5, ids_per_row=2, **ALL_LOG_PROBS_OPTIONS), {"input": ROWS}),
        "linear_log_probs by rows": (linear_log_probs_sample(7, 5, 9, ignored=True), {"input": ROWS}),
        "network by rows": (mlp_cross_entropy_sample(7), {"ids": ROWS}),
        "contexts by hidden units": (embedding_linear_sample(7), {"weight": ROWS}),
    }


def dtype_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = linear_cross_entropy_sample(70, 16, 29, dtype=dtype, targets="ignored")
        scores = log_probs_sample(70, 29, ids_per_row=3, dtype=dtype)
        head = linear_log_probs_sample(70, 16, 29, ids_per_row=3, dtype=dtype)
        cases |= {
            f"{dtype}: logits by rows": (cross_entropy_sample(70, 29, dtype=dtype), {"input": ROWS}),
            f"{dtype}: logits by classes": (cross_entropy_sample(70, 29, dtype=dtype), {"input": SECOND}),
            f"{dtype}: layer by rows": (layer, {"input": ROWS}),
            f"{dtype}: layer by classes": (layer, {"linear_weight": ROWS}),
            f"{dtype}: log_probs by rows": (scores, {"input": ROWS}),
            f"{dtype}: log_probs by classes": (scores, {"input": SECOND}),
            f"{dtype}: linear_log_probs by rows": (head, {"input": ROWS}),
            f"{dtype}: linear_log_probs by classes": (head, {"linear_weight": ROWS}),
            f"{dtype}: contexts by rows": (embedding_linear_sample(70, dtype=dtype), {"ids": ROWS}),
            f"{dtype}: network by rows": (mlp_cross_entropy_sample(70, dtype=dtype), {"ids": ROWS}),
        }
    return cases


def autocast_cases() -> dict[str, Case]:
    return {name: case for name, case in dtype_cases().items() if name.startswith("torch.float32")}
