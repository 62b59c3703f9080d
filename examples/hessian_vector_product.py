"""The curvature of a loss without its Hessian: products with it, and with them its largest eigenvalue.

A Hessian-vector product is the gradient of <gradient, v> (Pearlmutter 1994), so it needs the second derivative of every
op in the model. The largest eigenvalue, by power iteration, bounds gradient descent's learning rate: 2 / eigenvalue.

    python examples/hessian_vector_product.py [--iterations 30]
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from charlm import data, ops
from charlm.ops import reference

VOCABULARY, CONTEXT, EMBEDDING, HIDDEN = 27, 3, 4, 16


def loss(namespace: object, parameters: Sequence[Tensor], contexts: Tensor, targets: Tensor) -> Tensor:
    embedding, weight1, bias1, weight2, bias2 = parameters
    hidden = namespace.embedding_linear(contexts, embedding, weight1, bias1)
    return namespace.linear_cross_entropy(hidden, weight2, targets, linear_bias=bias2)


def hessian_vector_product(
    function: Callable[[], Tensor], parameters: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(function(), parameters, create_graph=True)
    slope = sum((gradient * vector).sum() for gradient, vector in zip(gradients, vectors, strict=True))
    return torch.autograd.grad(slope, parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=30)
    iterations = parser.parse_args().iterations

    torch.manual_seed(0)
    dataset = data.load(context_length=CONTEXT)
    contexts, targets = dataset.train.batch(torch.arange(500))
    contexts, targets = contexts.long(), targets.long()
    width = CONTEXT * EMBEDDING
    shapes = ((VOCABULARY, EMBEDDING), (HIDDEN, width), (HIDDEN,), (VOCABULARY, HIDDEN), (VOCABULARY,))
    parameters = [(0.5 * torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes]

    vectors = [torch.randn_like(parameter) for parameter in parameters]
    ours, eagers = (
        hessian_vector_product(lambda of=of: loss(of, parameters, contexts, targets), parameters, vectors)
        for of in (ops, reference)
    )
    difference = max((a - b).abs().max().item() for a, b in zip(ours, eagers, strict=True))
    print(f"difference from eager  {difference:.1e}")

    for iteration in range(1, iterations + 1):
        size = torch.sqrt(sum(vector.square().sum() for vector in vectors))
        vectors = [vector / size for vector in vectors]
        products = hessian_vector_product(lambda: loss(ops, parameters, contexts, targets), parameters, vectors)
        eigenvalue = sum((v * p).sum() for v, p in zip(vectors, products, strict=True)).item()
        residual = (
            sum((p - eigenvalue * v).square().sum() for v, p in zip(vectors, products, strict=True)).sqrt().item()
        )
        vectors = products
        if iteration % 10 == 0 or iteration == iterations:
            print(f"iteration {iteration}  eigenvalue {eigenvalue:.4f}  residual {residual:.1e}")


if __name__ == "__main__":
    main()
