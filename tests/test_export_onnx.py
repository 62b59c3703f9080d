"""charlm.export.to_onnx: a valid graph that another runtime computes the model's log-probabilities with."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_models import LETTERS, logits_in_double, models

from charlm import MLP, NeuralBigram
from charlm.export import to_onnx
from charlm.models import LanguageModel

every_model = pytest.mark.parametrize("name", models())


def session(exported: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])


def contexts(model: LanguageModel, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.vocab_size, (n, model.context_length), generator=generator)


@every_model
@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_log_probabilities_are_the_models(name: str, n: int) -> None:
    model, vocabulary = models()[name]
    given = contexts(model, n)
    expected = logits_in_double(model, given).log_softmax(1).numpy()
    (found,) = session(to_onnx(model, vocabulary)).run(["log_probs"], {"contexts": given.numpy()})
    in_double = "counts" in name or "counted" in name or name == "mlp, float64"
    assert found.dtype == (np.float64 if in_double else np.float32)
    assert found.shape == (n, len(vocabulary))
    # Logits are of the size of 10, so that float32 is off by some 1e-6.
    tolerance = 1e-12 if in_double else 1e-5
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@every_model
def test_the_graph_says_what_it_is(name: str) -> None:
    model, vocabulary = models()[name]
    exported = to_onnx(model, vocabulary)
    onnx.checker.check_model(exported, full_check=True)
    assert [(opset.domain, opset.version) for opset in exported.opset_import] == [("", 17)]
    assert (exported.producer_name, exported.graph.name) == ("charlm", model.kind)
    running = session(exported)
    (given,), (result,) = running.get_inputs(), running.get_outputs()
    assert (given.name, given.type, given.shape) == ("contexts", "tensor(int64)", ["N", model.context_length])
    assert (result.name, result.shape) == ("log_probs", ["N", len(vocabulary)])
    metadata = running.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["symbols"]) == list(vocabulary.characters)
    assert metadata["tokens_are"] == "characters"
    assert int(metadata["boundary"]) == vocabulary.boundary
    assert int(metadata["context_length"]) == model.context_length


@pytest.mark.parametrize("name", ["mlp", "mlp, direct", "mlp, float64", "mlp, bfloat16", "bigram"])
def test_weights_are_exact(name: str) -> None:
    model, vocabulary = models()[name]
    graph = to_onnx(model, vocabulary).graph
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(constants[key], tensor.to(torch.promote_types(tensor.dtype, torch.float32)))


def test_tokens_out_of_range_are_an_error_of_the_runtime() -> None:
    with pytest.raises(Exception, match="out of data bounds"):
        session(to_onnx(*models()["mlp"])).run(None, {"contexts": np.full((1, 3), 9)})


def test_a_model_on_the_wrong_vocabulary_or_without_finite_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^vocabulary must have the model's 4 tokens, got 9$"):
        to_onnx(NeuralBigram(4), LETTERS)
    model = MLP(9, 3, 2, 4)
    with torch.no_grad():
        model.bias2[3] = math.nan
    with pytest.raises(ValueError, match=r"^the model's bias2 is not finite: was it trained to a finite loss\?$"):
        to_onnx(model, LETTERS)


def test_without_onnx_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"^ONNX needs the package onnx\. Run: pip install onnx$"):
        to_onnx(*models()["mlp"])
