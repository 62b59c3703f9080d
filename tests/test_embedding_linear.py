"""embedding_linear against the reference: values, gradients, layouts and the two ways to compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    ACTIVATIONS,
    DTYPES,
    EMBEDDING_LINEAR_SHAPES,
    INTEGER_DTYPES,
    check,
    device,
    embedding_linear_sample,
    evaluate,
    integers,
    normal,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from charlm import ops
from charlm.ops import reference

# Several times more rows than tokens, so that the table is projected; more tokens than rows, so that rows are gathered
# and multiplied.
PROJECTED: dict[str, Any] = {"rows": 123, "vocab_size": 27}
GATHERED: dict[str, Any] = {"rows": 5, "vocab_size": 400}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", EMBEDDING_LINEAR_SHAPES)
def test_every_shape_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype, instruction_set: str) -> None:
    check(embedding_linear_sample(*shape, dtype=dtype))


@pytest.mark.parametrize("sizes", [PROJECTED, GATHERED])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(
    activation: str, bias: bool, dtype: torch.dtype, sizes: dict[str, Any], instruction_set: str
) -> None:
    check(embedding_linear_sample(**sizes, hidden_dim=35, dtype=dtype, bias=bias, activation=activation))


@pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 3), (2, 0, 3), (2, 1, 5, 3)])
def test_any_leading_dimensions(leading: tuple[int, ...]) -> None:
    check(embedding_linear_sample(leading))


@pytest.mark.parametrize("integer", INTEGER_DTYPES)
@pytest.mark.parametrize("sizes", [PROJECTED, {**GATHERED, "vocab_size": 127}])
def test_every_integer_dtype(integer: torch.dtype, sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes)
    expected = evaluate(sample)
    actual = evaluate(sample.with_arguments(ids=sample.arguments["ids"].to(integer)))
    for name, value in expected.items():
        assert same_bits(actual[name], value), name


@pytest.mark.parametrize("integer", [torch.int64, torch.uint8])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda ids: ids.t().contiguous().t(), id="transposed"),
        pytest.param(lambda ids: ids.repeat(1, 2)[:, 1:4], id="column slice"),
        pytest.param(lambda ids: ids[::3], id="row step"),
        pytest.param(lambda ids: ids[:1].expand(9, -1), id="expanded rows"),
        pytest.param(lambda ids: ids[:, :1].expand(-1, 3), id="expanded columns"),
        pytest.param(lambda ids: ids.flatten().unfold(0, 3, 1), id="windows"),
        pytest.param(lambda ids: ids.flatten().unfold(0, 3, 2)[1:], id="windows with a step and an offset"),
        pytest.param(lambda ids: ids[:60].reshape(4, 5, 3, 3).transpose(0, 2), id="four dimensions"),
    ],
)
def test_ids_with_any_strides(view: Callable[[Tensor], Tensor], integer: torch.dtype) -> None:
    sample = embedding_linear_sample(61)
    check(sample.with_arguments(ids=view(sample.arguments["ids"].to(integer))))


@pytest.mark.parametrize("sizes", [PROJECTED, GATHERED])
def test_parameters_with_any_strides(sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes)
    embedding, weight, bias = (sample.arguments[name] for name in ("embedding", "weight", "bias"))
    check(
        sample.with_arguments(
            embedding=embedding.t().contiguous().t(),
            weight=weight.repeat(2, 2)[::2, : weight.shape[1]],
            bias=bias[:1].expand(bias.shape[0]),
        )
    )
    check(sample.with_arguments(embedding=embedding[:1].expand_as(embedding), weight=weight[:, :1].expand_as(weight)))


@pytest.mark.parametrize("sizes", [PROJECTED, GATHERED, {"rows": 100, "vocab_size": 400}])
def test_one_token_repeated_everywhere(sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes)
    repeated = sample.with_arguments(ids=torch.full_like(sample.arguments["ids"], 7))
    check(repeated)
    gradient = evaluate(repeated)["gradient of embedding"]
    assert gradient[7].abs().min() > 0.0
    assert torch.count_nonzero(gradient) == gradient.shape[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_vocabulary_and_many_rows(dtype: torch.dtype, instruction_set: str) -> None:
    """Their embeddings are gathered, for backward 256 rows at a time: the gradient of weight is a sum over these."""
    check(embedding_linear_sample(600, 3, 12000, 10, 33, dtype=dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_values(activation: str) -> None:
    sample = embedding_linear_sample(61, activation=activation)
    check(sample.with_arguments(bias=1e4 * sample.arguments["bias"]))
    check(sample.to(torch.float32).with_arguments(bias=1e4 * sample.arguments["bias"].float()))


@pytest.mark.parametrize("sizes", [PROJECTED, GATHERED])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_reaches_the_contexts_that_hold_its_token_and_no_others(activation: str, sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(**sizes, activation=activation)
    embedding = sample.arguments["embedding"].clone()
    embedding[5, 1] = torch.nan
    holds_it = sample.arguments["ids"].clone()
    holds_it[2] = torch.tensor([1, 5, 3], device=device)
    holds_it[holds_it == 5] = 6
    holds_it[2, 1] = 5
    poisoned = sample.with_arguments(ids=holds_it, embedding=embedding)
    assert evaluate(poisoned)["result"].isnan().any(dim=1).nonzero().flatten().tolist() == [2]
    check(poisoned)

    clean = sample.with_arguments(ids=holds_it.where(holds_it != 5, 6), embedding=embedding)
    assert all(value.isfinite().all() for value in evaluate(clean).values())
    check(clean)


@pytest.mark.parametrize("vocab_size", [64, 5000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_to_the_nearest(dtype: torch.dtype, vocab_size: int) -> None:
    """Sums of two numbers not far apart are exact in float32, and often halfway between two of half precision."""
    fractions, exponents = 1.0 + integers(128, (vocab_size, 1)) / 128.0, integers(13, (vocab_size, 1), seed=1) - 6
    embedding = torch.ldexp(fractions, exponents).to(dtype)
    embedding[::2] *= -1.0
    ids = integers(vocab_size, (4096, 2), seed=2)
    result = ops.embedding_linear(ids, embedding, torch.ones(1, 2, dtype=dtype, device=device), activation="none")
    assert torch.equal(result, embedding.float()[ids].sum(1).to(dtype))


@pytest.mark.parametrize("sizes", [{"rows": 24, "vocab_size": 4}, {"rows": 3, "vocab_size": 9}])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str, bias: bool, sizes: dict[str, Any]) -> None:
    sample = embedding_linear_sample(
        **sizes, context_length=2, embedding_dim=2, hidden_dim=3, bias=bias, activation=activation
    )
    leaves = sample.leaves()

    def op(*values: Tensor) -> Tensor:
        return sample.call(ops.embedding_linear, dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(op, tuple(leaves.values()))


@settings(max_examples=80)
@given(data=st.data())
def test_any_shape_dtype_and_layout(data: st.DataObject) -> None:
    rows, hidden_dim = data.draw(st.integers(0, 40), "rows"), data.draw(st.integers(1, 40), "hidden_dim")
    context_length, vocab_size = data.draw(st.integers(1, 8), "context_length"), data.draw(st.integers(1, 70), "V")
    sample = embedding_linear_sample(
        rows,
        context_length,
        vocab_size,
        data.draw(st.integers(1, 12), "embedding_dim"),
        hidden_dim,
        dtype=data.draw(st.sampled_from(DTYPES), "dtype"),
        bias=data.draw(st.booleans(), "bias"),
        activation=data.draw(st.sampled_from(ACTIVATIONS), "activation"),
        seed=data.draw(st.integers(0, 1000), "seed"),
    )
    ids = sample.arguments["ids"].to(data.draw(st.sampled_from(INTEGER_DTYPES), "ids"))
    layout = data.draw(st.sampled_from(["contiguous", "transposed", "windows", "stepped"]), "layout")
    if layout == "transposed":
        ids = ids.t().contiguous().t()
    elif layout == "windows":
        tokens = torch.cat([ids.flatten(), ids.new_zeros(context_length)])
        ids = tokens.unfold(0, context_length, 1)
    elif layout == "stepped":
        ids = ids[::2]
    check(sample.with_arguments(ids=ids))


def test_value_by_hand() -> None:
    embedding = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    weight = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], device=device)
    bias = torch.tensor([0.5], device=device)
    contexts = torch.tensor([[0, 1], [1, 0]], device=device)
    result = ops.embedding_linear(contexts, embedding, weight, bias, activation="none")
    assert result.tolist() == [[4321.5], [2143.5]]


def test_result_owns_its_memory() -> None:
    embedding, weight, ids = normal(4, 3), normal(5, 3), torch.tensor([[1]], device=device)
    result = ops.embedding_linear(ids, embedding, weight, activation="none")
    expected = reference.embedding_linear(ids, embedding, weight, activation="none")
    embedding.zero_()
    weight.zero_()
    torch.testing.assert_close(result, expected)


# Nested tensors, as PyTorch's embedding and linear layer take them.


@pytest.mark.cpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_of_unequal_lengths(dtype: torch.dtype, activation: str) -> None:
    """Jagged ids (B, j, T), one of the sequences empty: value and gradients of the eager layer."""
    sequences = [integers(7, (length, 3), seed=length) for length in (4, 0, 2)]
    sample = embedding_linear_sample(1, 3, 7, 2, 5, dtype=dtype, activation=activation)
    results = []
    for namespace in (ops, reference):
        leaves = sample.leaves()
        ids = torch.nested.nested_tensor(sequences, layout=torch.jagged)
        output = sample.call(namespace.embedding_linear, {**leaves, "ids": ids})
        assert output.is_nested
        assert output.layout == torch.jagged
        assert [len(part) for part in output.unbind()] == [4, 0, 2]
        both = output + output  # the same ragged dimension
        gradients = torch.autograd.grad(both.values().float().square().sum(), list(leaves.values()))
        results.append([output.values().detach(), *gradients])
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(*results, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.cpu
def test_nested_ids_of_more_dimensions_and_with_gaps() -> None:
    sample = embedding_linear_sample(1, 3, 7, 2, 5)
    deep = torch.nested.nested_tensor([integers(7, (2, 4, 3)), integers(7, (1, 4, 3), seed=1)], layout=torch.jagged)
    found, expected = (sample.call(f, {"ids": deep}) for f in (ops.embedding_linear, reference.embedding_linear))
    assert found.shape[2:] == (4, 5)
    torch.testing.assert_close(found.values(), expected.values())
    padded = integers(7, (3, 5, 3), seed=2)
    starts, lengths = torch.tensor([0, 1, 2]), torch.tensor([2, 4, 1])
    gaps = torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)
    output = sample.call(ops.embedding_linear, {"ids": gaps})
    for part, row, start, length in zip(output.unbind(), padded, starts, lengths, strict=True):
        torch.testing.assert_close(part, sample.call(ops.embedding_linear, {"ids": row[start : start + length]}))


@pytest.mark.cpu
def test_nested_ids_that_do_not_fit() -> None:
    sample = embedding_linear_sample(1, 3, 7, 2, 5)
    bad = torch.nested.nested_tensor([torch.tensor([[1, 2, 7]])], layout=torch.jagged)
    with pytest.raises(IndexError, match=r"ids\[0, 2\] = 7 is out of range for 7 embeddings"):
        sample.call(ops.embedding_linear, {"ids": bad})
    ragged = torch.nested.nested_tensor([torch.tensor([1, 2, 3]), torch.tensor([1])], layout=torch.jagged)
    with pytest.raises(RuntimeError):  # PyTorch's, of a context whose length is ragged
        sample.call(ops.embedding_linear, {"ids": ragged})


@pytest.mark.cpu
def test_nested_ids_under_the_compiler() -> None:
    sample = embedding_linear_sample(1, 3, 7, 2, 5)
    sequences = [integers(7, (length, 3), seed=length) for length in (4, 2)]
    ids = torch.nested.nested_tensor(sequences, layout=torch.jagged)
    leaves = sample.leaves()

    def values(embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.embedding_linear(ids, embedding, weight, bias).values()

    expected = values(*leaves.values())
    torch.compiler.reset()
    compiled: Any = torch.compile(values, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves.values()), expected)
    gradients = torch.autograd.grad(compiled(*leaves.values()).sum(), list(leaves.values()))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), list(leaves.values())))
