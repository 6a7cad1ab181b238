"""The largest eigenvalues of a symmetric matrix of which only products with vectors are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_psp.analysis.lanczos import Array, Multiply, lanczos

# A matrix of at most so many rows, or three for each eigenvalue, is written out: as many products.
MOST_ROWS_WRITTEN_OUT = 40
# ARPACK's basis has twice as many vectors as eigenvalues, and at least so many. Restarts lose little, and show what has
# converged. The first basis shows it with each vector, and may have more.
FEWEST_BASIS_VECTORS = 8
FURTHER_FIRST_VECTORS = 20
# Symmetry makes eigenvalues multiple where networks are linear in their weights, which seldom are so many then.
MOST_ROWS_LOOKED_AT = 100_000
MOST_RECORDED_BYTES = 2**28  # twice as many where the weights are in float32, while products are put together
MOST_PRODUCTS_OF_A_SEARCH = 1000
MOST_SEARCHES = 3
ANY_RESIDUAL = 1e30
OF_TOLERANCE = 0.9  # what the first basis aims at, for its residuals are rounded otherwise than those that count
# Of residuals, in parts of the tolerance: the estimated scale may exceed the largest eigenvalue by some ten times.
PRECISION = 0.01
ROUNDING = 100 * float(np.finfo(np.float64).eps)  # relative to the matrix: where its largest eigenvalue is 0


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenvalues and eigenvectors of a matrix.

    Args:
        values: ``[count]``, in descending order.
        vectors: ``[rows, count]``, of length 1.
        residuals: ``[count]``, ‖Hv − θv‖.
    """

    values: Array
    vectors: Array
    residuals: Array


def largest_eigenpairs(multiply: Multiply, rows: int, k: int, tolerance: float, dtype: Any, seed: int) -> Eigenpairs:
    """Finds the algebraically largest eigenvalues by Lanczos' method.

    Most are found in a first basis that grows until they are. Where it gets large, or there is no memory to keep its
    products, the implicitly restarted method goes on from what it tells (SciPy's, of ARPACK).

    Residuals are computed from products, those of the search where these are at hand and others otherwise. From one
    vector Lanczos finds one vector of a multiple eigenvalue. So up to 100,000 rows a short search among the vectors
    orthogonal to those found looks whether a larger eigenvalue was missed; if so, that search is carried on, and so
    forth. A small matrix is written out.

    Args:
        multiply: gives the product with a vector ``[rows]``.
        rows: size of the matrix.
        k: number of eigenvalues, at most `rows`.
        tolerance: largest residual, relative to the size of the largest eigenvalue.
        dtype: float32 or float64.
        seed: of the vectors that searches start from.

    Returns:
        The eigenvalues with their vectors.

    Raises:
        ImportError: if SciPy is not installed.
        RuntimeError: if an eigenvalue has not converged.
        ValueError: if a product is not finite.

    Example:
        >>> pairs = largest_eigenpairs(lambda v: np.arange(100.0) * v, 100, 2, 1e-6, np.float64, seed=0)
        >>> pairs.values.round(6)
        array([99., 98.])
    """
    if rows <= max(MOST_ROWS_WRITTEN_OUT, 3 * k):
        return _written_out(multiply, rows, k, tolerance, dtype)
    matrix = _Matrix(multiply, rows, dtype, seed)
    found = _converged(matrix, k, tolerance)
    while matrix.has_larger(found, found.values[-1] + max(tolerance * abs(found.values[0]), ROUNDING * matrix.scale)):
        found = _largest_of(found, _converged(matrix, k, tolerance, found), k)
    return found


class _Matrix:
    """A matrix, and searches for eigenvalues in it.

    Args:
        multiply: gives the product with a vector.
        rows: size of the matrix.
        dtype: type of the vectors.
        seed: of the vectors that searches start from.
    """

    def __init__(self, multiply: Multiply, rows: int, dtype: Any, seed: int) -> None:
        self._rows, self._dtype = rows, np.dtype(dtype)
        self._multiply, self._products = multiply, 0
        self._recorded: list[tuple[Array, Array]] = []
        self._generator = np.random.default_rng(seed)
        self._first = self.direction()
        self._first_image = self.times(self._first)
        # An estimate of the Frobenius norm, which no eigenvalue exceeds.
        self.scale = float(np.linalg.norm(self._first_image)) * rows**0.5 or 1.0
        # ARPACK's tolerance is relative to each eigenvalue. Moved up, those at 0 have one, too.
        self._shift = self.scale / 10

    def direction(self) -> Array:
        """A random vector of length 1."""
        vector = self._generator.standard_normal(self._rows)
        return (vector / np.linalg.norm(vector)).astype(self._dtype)

    def times(self, vector: Array) -> Array:
        """The product with a vector."""
        self._products += 1
        vector = vector.ravel().astype(self._dtype)  # a copy: ARPACK overwrites its own
        image = self._multiply(vector)
        if not np.isfinite(image).all():
            raise ValueError("A product with the Hessian is not finite: there is NaN or infinity in weights or data.")
        if (len(self._recorded) + 1) * 2 * vector.nbytes <= MOST_RECORDED_BYTES:
            self._recorded.append((vector, image))
        return image

    def images(self, vectors: Array, precision: float) -> Array:
        """The products with vectors ``[rows, count]``: made of those with the vectors they are made of, or computed."""
        ingredients, images = (np.stack(each).astype(np.float64).T for each in zip(*self._recorded, strict=True))
        # Those of the first basis are orthonormal but for rounding; those of several restarts depend on each other.
        for find in (_by_inner_products, _least_squares):
            shares = find(ingredients, vectors)
            error = np.linalg.norm(ingredients @ shares - vectors, axis=0)
            rounding = float(np.finfo(self._dtype).eps) * np.abs(shares).sum(axis=0)
            if self.scale * float((error + rounding).max()) <= precision:
                found: Array = images @ shares
                return found
        return np.stack([self.times(vector) for vector in vectors.T], axis=1)

    def in_first_basis(self, k: int, tolerance: float) -> tuple[Array, bool]:
        """The vectors ``[rows, k]`` of the largest eigenvalues, and whether their residuals are small enough.

        Without the memory to keep products, what the first product tells: the first step of a search.
        """
        most = MOST_RECORDED_BYTES // (2 * self._first.nbytes)
        size = min(max(2 * k + 2, FEWEST_BASIS_VECTORS) + FURTHER_FIRST_VECTORS, most, self._rows)
        if size <= 2 * k:
            return (self._first_image + self._shift * self._first)[:, None], False
        smallest = ROUNDING * self.scale
        return lanczos(
            self.times, self._first, self._first_image, k=k, tolerance=tolerance, smallest=smallest, size=size
        )

    def search(self, k: int, tolerance: float, start: Array, found: Eigenpairs | None) -> Array:
        """The vectors ``[rows, k]`` of the largest eigenvalues, those orthogonal to the ones found."""
        self._recorded.clear()
        basis = max(2 * k + 2, FEWEST_BASIS_VECTORS)
        _, vectors = self._lanczos(k, tolerance, start, found, basis, MOST_PRODUCTS_OF_A_SEARCH // (basis - k))
        return vectors

    def has_larger(self, found: Eigenpairs, bound: float) -> bool:
        """Whether a few steps orthogonal to what was found come upon an eigenvalue above a bound."""
        if self._rows > MOST_ROWS_LOOKED_AT:
            return False
        # A search that took long had to tell close eigenvalues apart; a look has to, too.
        steps = min(max(FEWEST_BASIS_VECTORS, self._products // 4), self._rows - 1)
        values, _ = self._lanczos(1, ANY_RESIDUAL, self.direction(), found, steps, 1)
        return bool(values[0] > bound)

    def _lanczos(
        self, k: int, tolerance: float, start: Array, found: Eigenpairs | None, basis: int, restarts: int
    ) -> tuple[Array, Array]:
        eigsh, linear_operator, no_convergence = _solver()

        def multiply(vector: Array) -> Array:
            vector = vector.ravel()
            moved: Array
            if found is None:
                moved = self.times(vector) + self._shift * vector
                return moved
            # What was found is moved to the lower end.
            inside = found.vectors @ (found.vectors.T @ vector)
            image = self.times(vector - inside)
            image = image - found.vectors @ (found.vectors.T @ image)
            moved = image + self._shift * (vector - inside) - self.scale * inside
            return moved

        operator = linear_operator((self._rows, self._rows), matvec=multiply, dtype=self._dtype)
        try:
            values, vectors = eigsh(operator, k, which="LA", v0=start, ncv=basis, tol=tolerance, maxiter=restarts)
        except no_convergence as error:
            raise RuntimeError(
                f"{len(error.eigenvalues)} of the {k} largest eigenvalues of the Hessian have converged after"
                f" {self._products} products, so far {_listed(error.eigenvalues - self._shift) or 'none'}. Choose a"
                " larger `tolerance` or a smaller `k`."
            ) from error
        return values - self._shift, vectors


def _by_inner_products(ingredients: Array, vectors: Array) -> Array:
    return _least_squares(ingredients.T @ ingredients, ingredients.T @ vectors)


def _least_squares(ingredients: Array, vectors: Array) -> Array:
    shares: Array = np.linalg.lstsq(ingredients, vectors, rcond=None)[0]
    return shares


def _converged(matrix: _Matrix, k: int, tolerance: float, found: Eigenpairs | None = None) -> Eigenpairs:
    """The k largest eigenvalues orthogonal to those found, each with the residual that is asked for."""
    asked, vectors, has_converged = tolerance / 2, matrix.direction()[:, None], False
    precision = PRECISION * tolerance * matrix.scale
    if found is None:
        vectors, has_converged = matrix.in_first_basis(k, OF_TOLERANCE * tolerance)
    for _ in range(MOST_SEARCHES):
        if not has_converged:
            vectors = matrix.search(k, asked, vectors.sum(axis=1), found)
        has_converged = False
        pairs = _with_residuals(vectors, matrix.images(vectors, precision))
        size = max(abs(pairs.values[0]), abs(found.values[0]) if found else 0.0)
        allowed = max(tolerance * size, ROUNDING * matrix.scale)
        worst = float(pairs.residuals.max())
        if worst <= allowed:
            return pairs
        asked *= allowed / worst / 2
        precision = PRECISION * allowed  # a largest eigenvalue next to 0 asks for more than the scale does
    raise _not_converged(pairs, tolerance, allowed)


def _with_residuals(vectors: Array, images: Array) -> Eigenpairs:
    values = (vectors * images).sum(axis=0, dtype=np.float64)
    residuals = np.linalg.norm(images.astype(np.float64) - vectors * values, axis=0)
    order = np.argsort(-values)
    return Eigenpairs(values[order], vectors[:, order], residuals[order])


def _largest_of(first: Eigenpairs, second: Eigenpairs, k: int) -> Eigenpairs:
    values = np.concatenate([first.values, second.values])
    order = np.argsort(-values)[:k]
    return Eigenpairs(
        values[order],
        np.concatenate([first.vectors, second.vectors], axis=1)[:, order],
        np.concatenate([first.residuals, second.residuals])[order],
    )


def _written_out(multiply: Multiply, rows: int, k: int, tolerance: float, dtype: Any) -> Eigenpairs:
    whole = np.stack([multiply(row) for row in np.eye(rows, dtype=dtype)]).astype(np.float64)
    if not np.isfinite(whole).all():
        raise ValueError("The Hessian is not finite: there is NaN or infinity in weights or data.")
    vectors = np.linalg.eigh((whole + whole.T) / 2)[1][:, -k:]
    pairs = _with_residuals(vectors, whole @ vectors)
    scale, size = float(np.linalg.norm(whole)), abs(pairs.values[0])
    rounding = 10 * float(np.finfo(dtype).eps) * scale
    # A largest eigenvalue that is 0 but for rounding has no size to go by.
    allowed = max(tolerance * size, ROUNDING * scale) if size > rounding else rounding
    if pairs.residuals.max() > allowed:
        raise _not_converged(pairs, tolerance, allowed)
    return pairs


def _not_converged(pairs: Eigenpairs, tolerance: float, allowed: float) -> RuntimeError:
    return RuntimeError(
        f"The largest eigenvalues of the Hessian, {_listed(pairs.values)}, have not converged: the residuals"
        f" ‖Hv - θv‖ are {_listed(pairs.residuals)}, and `tolerance={tolerance:g}` asks for at most {allowed:.3g}."
        " Choose a larger tolerance, or weights in float64 where these are in a lower precision. Nothing converges"
        " where an operation of the network has a wrong second derivative, autocast rounds what it computes, or the"
        " data are not the same in each pass."
    )


def _solver() -> tuple[Any, Any, Any]:
    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`hessian_eigenvalues` needs SciPy, which is not installed: pip install 'lightning_psp[analysis]'"
        ) from error
    return eigsh, LinearOperator, ArpackNoConvergence


def _listed(values: Array) -> str:
    return ", ".join(f"{value:.4g}" for value in sorted(values, reverse=True))
