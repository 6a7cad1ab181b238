"""The first basis of the search for eigenvalues against dense matrices."""

import numpy as np
import pytest

from lightning_psp.analysis import eigenpairs
from lightning_psp.analysis.eigenpairs import largest_eigenpairs
from lightning_psp.analysis.lanczos import lanczos


def matrix_with(eigenvalues):
    generator = np.random.default_rng(0)
    vectors = np.linalg.qr(generator.standard_normal((len(eigenvalues), len(eigenvalues))))[0]
    return vectors * np.asarray(eigenvalues) @ vectors.T


def from_basis(matrix, start, k, steps):
    """The largest eigenvalues and their residuals in the space of start, A start, … by the textbook."""
    krylov = [start]
    for _ in range(steps - 1):
        krylov.append(matrix @ krylov[-1])
        krylov[-1] /= np.linalg.norm(krylov[-1])
    basis = np.linalg.qr(np.stack(krylov, axis=1))[0]
    values, shares = np.linalg.eigh(basis.T @ matrix @ basis)
    vectors = basis @ shares[:, -k:]
    return values[-k:], np.linalg.norm(matrix @ vectors - vectors * values[-k:], axis=0)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3])
def test_as_few_products_as_suffice(k, tolerance):
    matrix = matrix_with([*np.linspace(-1, 1, 57), 5.0, 7.0, 9.0])
    start = np.random.default_rng(1).standard_normal(60)
    start /= np.linalg.norm(start)
    calls = []

    def multiply(vector):
        calls.append(vector)
        return matrix @ vector

    vectors, has_converged = lanczos(multiply, start, matrix @ start, k=k, tolerance=tolerance, smallest=0.0, size=60)
    assert has_converged
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-12)
    values, residuals = from_basis(matrix, start, k, len(calls) + 1)
    assert residuals.max() <= tolerance * values[-1]
    np.testing.assert_allclose((vectors * (matrix @ vectors)).sum(axis=0), values, rtol=1e-10)
    values, residuals = from_basis(matrix, start, k, len(calls))
    assert residuals.max() > tolerance * values[-1]


def test_a_basis_that_is_full():
    matrix = matrix_with(np.linspace(0, 1, 50))
    start = np.full(50, 50**-0.5)
    vectors, has_converged = lanczos(
        lambda vector: matrix @ vector, start, matrix @ start, k=2, tolerance=1e-6, smallest=0.0, size=6
    )
    assert not has_converged
    values = (vectors * (matrix @ vectors)).sum(axis=0)
    np.testing.assert_allclose(values, from_basis(matrix, start, 2, 6)[0], rtol=1e-10)


def test_a_basis_that_cannot_grow():
    matrix = np.diag([3.0, 1.0, 0.0, 0.0, 0.0])
    start = np.array([0.6, 0.8, 0.0, 0.0, 0.0])
    vectors, has_converged = lanczos(
        lambda vector: matrix @ vector, start, matrix @ start, k=3, tolerance=1e-6, smallest=1e-12, size=5
    )
    assert not has_converged
    assert vectors.shape == (5, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "eigenvalues",
    [
        [*np.linspace(0, 1, 195), 2.0, 3.0, 5.0, 8.0, 9.0],
        np.linspace(0.99, 1, 200),  # too close for the first basis
        [*np.linspace(-90, 0, 195), 1.0, 2.0, 2.0, 2.0, 3.0],  # one three times, and far below the smallest
        [0.0] * 200,
        -np.linspace(1, 3, 200),
    ],
    ids=["apart", "close", "multiple", "zero", "negative"],
)
def test_against_dense(eigenvalues, dtype):
    matrix = matrix_with(eigenvalues)
    exact = matrix.astype(dtype).astype(np.float64)
    pairs = largest_eigenpairs(lambda vector: matrix.astype(dtype) @ vector, 200, 4, 1e-4, dtype, seed=0)
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(exact)[:-5:-1], rtol=2e-4, atol=1e-5)
    residuals = np.linalg.norm(exact @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
    assert residuals.max() <= 1.1e-4 * max(abs(pairs.values[0]), 1e-2)


def test_a_basis_rounded_to_float32_is_not_decomposed(monkeypatch):
    """Its vectors are less orthogonal than eigenvectors have to be exact, and far more rows than it has vectors."""
    sizes = []
    solve = eigenpairs._least_squares
    monkeypatch.setattr(
        eigenpairs,
        "_least_squares",
        lambda ingredients, vectors: sizes.append(len(ingredients)) or solve(ingredients, vectors),
    )
    rows = 300_000
    values = np.concatenate([np.random.default_rng(0).uniform(-1, 1, rows - 3), [20, 40, 60]]).astype(np.float32)
    pairs = largest_eigenpairs(lambda vector: values * vector, rows, 3, 1e-3, np.float32, seed=0)
    np.testing.assert_allclose(pairs.values, [60, 40, 20], rtol=1e-5)
    residuals = np.linalg.norm(values[:, None] * pairs.vectors - pairs.vectors * pairs.values, axis=0)
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-4)
    assert sizes
    assert max(sizes) < rows


def test_a_search_that_found_nothing_says_so(monkeypatch):
    monkeypatch.setattr(eigenpairs, "MOST_RECORDED_BYTES", 0)
    monkeypatch.setattr(eigenpairs, "MOST_PRODUCTS_OF_A_SEARCH", 6)  # a single restart
    matrix = matrix_with(np.linspace(0, 1, 60))
    with pytest.raises(RuntimeError, match=r"^0 of the 2 largest eigenvalues .* products, so far none\."):
        largest_eigenpairs(lambda vector: matrix @ vector, 60, 2, 1e-12, np.float64, seed=0)
