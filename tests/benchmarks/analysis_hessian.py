"""The largest eigenvalues of the Hessian by `hessian_eigenvalues`, and by other libraries, with the same residuals.

Called by `analysis.py`.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from entropy import load
from timing import Batches, seconds
from torch import Tensor, nn
from torch.nn import functional

from lightning_psp.analysis import hessian_eigenvalues, hessian_products
from lightning_psp.analysis.batches import cross_entropy
from lightning_psp.analysis.hessian_products import HessianProducts

TOLERANCE = 1e-3
MOST_STEPS = 40


@dataclass
class Search:
    """A way to find the eigenvalues, and what came of it.

    Args:
        run: gives eigenvalues in any order, vectors `[size, k]` and the number of products.
        times: wall and processor time of each run.
        found: what the last run gave.
    """

    run: Callable[[], tuple[Tensor, Tensor, int]]
    times: list[tuple[float, float]] = field(default_factory=list)
    found: tuple[Tensor, Tensor, int] | None = None


def own(model: nn.Module, batches: Batches, k: int, kept_bytes: int) -> tuple[Tensor, Tensor, int]:
    """This package, with the memory that it may keep graphs in."""
    before, hessian_products.MOST_KEPT_BYTES = hessian_products.MOST_KEPT_BYTES, kept_bytes
    try:
        spectrum = hessian_eigenvalues(model, batches, k=k, tolerance=TOLERANCE)
    finally:
        hessian_products.MOST_KEPT_BYTES = before
    vectors = torch.cat([part.flatten(1) for part in spectrum.vectors.values()], dim=1).T
    return spectrum.values, vectors, spectrum.products


def by_curvlinops(model: nn.Module, batches: Batches, k: int, basis: int | None) -> tuple[Tensor, Tensor, int]:
    """The operator of curvlinops with SciPy's Lanczos, and the basis that SciPy chooses or another one."""
    import numpy as np
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    weights = list(model.parameters())
    operator = HessianLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        weights,
        batches,
        check_deterministic=False,
        num_data=sum(len(y) for _, y in batches),
    ).to_scipy(dtype=np.float32)
    products = []

    def multiply(vector: Any) -> Any:
        products.append(1)
        return operator @ vector

    start = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(0)).numpy()
    counted = LinearOperator(operator.shape, matvec=multiply, dtype=np.float32)
    values, vectors = eigsh(counted, k, which="LA", tol=TOLERANCE, ncv=basis, v0=start)
    return torch.from_numpy(values), torch.from_numpy(vectors), len(products)


def steps_of_eigenthings(model: nn.Module, batches: Batches, k: int) -> int:
    """The fewest steps after which that library's Lanczos, which takes as many as it is told, has the residuals."""
    from hessian_eigenthings import lanczos_tridiagonal

    operator = eigenthings(model, batches)
    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(0)).to(operator.device)
    found = lanczos_tridiagonal(operator, start, MOST_STEPS)
    for steps in range(k, MOST_STEPS):
        diagonal, beside = found.alphas[:steps].double().cpu(), found.betas[: steps - 1].double().cpu()
        matrix = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
        values, vectors = torch.linalg.eigh(matrix)
        if (found.betas[steps - 1].cpu() * vectors[-1, -k:]).abs().max() <= TOLERANCE * values[-1].abs():
            return steps
    raise RuntimeError(f"{MOST_STEPS} steps are too few.")


def eigenthings(model: nn.Module, batches: Batches) -> Any:
    """The operator of pytorch-hessian-eigenthings."""
    from hessian_eigenthings import HessianOperator

    return HessianOperator(model, batches, lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]))


def by_eigenthings(model: nn.Module, batches: Batches, k: int, steps: int) -> tuple[Tensor, Tensor, int]:
    """That library's own Lanczos, of so many steps."""
    from hessian_eigenthings import lanczos

    found = lanczos(eigenthings(model, batches), k=k, max_iter=steps, which="LA", seed=0, reorthogonalize=True)
    return found.eigenvalues, found.eigenvectors.T, found.iterations


def largest_residual(products: HessianProducts, values: Tensor, vectors: Tensor) -> float:
    """The largest ‖Hv − θv‖ / |θ₁|, each from a product."""
    pairs = zip(values.cpu(), vectors.cpu().T, strict=True)
    residuals = [(products(vector.contiguous().float()) - value * vector).norm() for value, vector in pairs]
    return float(max(residuals) / values.cpu().abs().max())


def hessian(options: argparse.Namespace) -> None:
    """Prints a line for each way to find the eigenvalues."""
    warnings.simplefilter("ignore")  # what these libraries use is deprecated
    model, images, labels = load(options)
    batches = list(zip(images.split(options.batch), labels.split(options.batch), strict=True))
    steps = steps_of_eigenthings(model, batches, options.k)
    k = options.k
    searches = {
        "hessian_eigenvalues": Search(lambda: own(model, batches, k, hessian_products.MOST_KEPT_BYTES)),
        "  without keeping graphs": Search(lambda: own(model, batches, k, 0)),
        "curvlinops + SciPy": Search(lambda: by_curvlinops(model, batches, k, None)),
        f"  with {2 * k + 1} basis vectors": Search(lambda: by_curvlinops(model, batches, k, 2 * k + 1)),
        "pytorch-hessian-eigenthings": Search(lambda: by_eigenthings(model, batches, k, steps)),
    }
    for _ in range(options.rounds):  # one after another, for the machine may be busy
        for search in searches.values():

            def run(search: Search = search) -> None:
                search.found = search.run()

            search.times.append(seconds(run, options.device))
    products = HessianProducts(model, batches, cross_entropy, None, 0.0, "mean", 0)
    print(f"{options.device}, {options.threads} threads, {options.images} images by {options.batch}, {k} eigenvalues")
    print(f"{'':<30}{'products':>9}{'time (s)':>10}{'CPU (s)':>10}{'residual':>10}   eigenvalues")
    with products.prepared():
        for name, search in searches.items():
            values, vectors, count = search.found
            wall, processor = (statistics.median(times) for times in zip(*search.times, strict=True))
            listed = " ".join(f"{value:.4f}" for value in sorted(values.tolist(), reverse=True))
            residual = largest_residual(products, values, vectors)
            print(f"{name:<30}{count:>9}{wall:>10.2f}{processor:>10.2f}{residual:>10.1e}   {listed}")
