"""The largest eigenvalues of a symmetric matrix by Lanczos' method with a look at each of its vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Multiply: TypeAlias = Callable[[Array], Array]


def lanczos(
    multiply: Multiply, start: Array, image: Array, *, k: int, tolerance: float, smallest: float, size: int
) -> tuple[Array, bool]:
    """Finds the vectors of the algebraically largest eigenvalues with as few products as Lanczos' method can.

    Every vector is made orthogonal to all before it, and the eigenvalues of the matrix within the basis so far are
    computed with each. The residual of each is known without a product: the size of what the last product has outside
    of the basis, times the share of the last vector in the eigenvector.

    Args:
        multiply: gives the product with a vector ``[rows]``.
        start: the first vector, of length 1.
        image: the product with it.
        k: number of eigenvalues.
        tolerance: largest residual, relative to the size of the largest eigenvalue.
        smallest: a residual that is small enough whatever the eigenvalues.
        size: most vectors of the basis.

    Returns:
        Vectors ``[rows, k]``, or fewer where the basis cannot grow so far, and whether the residuals are small enough.

    Example:
        >>> values, start = np.arange(50.0), np.full(50, 50**-0.5)
        >>> vectors, has_converged = lanczos(
        ...     lambda v: values * v, start, values * start, k=1, tolerance=1e-3, smallest=0.0, size=40
        ... )
        >>> has_converged, round(float(vectors[:, 0] @ (values * vectors[:, 0])), 3)
        (True, 49.0)
    """
    basis = np.empty((size, len(start)), start.dtype)
    diagonal: list[float] = []
    beside: list[float] = []
    vector = start
    for number in range(1, size + 1):
        basis[number - 1] = vector
        rest = image if number == 1 else multiply(vector)
        diagonal.append(float(np.dot(rest, vector)))
        for _ in range(2):  # what rounding leaves of the first time goes with the second
            rest = rest - basis[:number].T @ (basis[:number] @ rest)
        beyond = float(np.linalg.norm(rest))
        values, shares = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        residual = beyond * float(np.abs(shares[-1, -k:]).max())
        has_converged = number >= k and residual <= max(tolerance * float(abs(values[-1])), smallest)
        if has_converged or beyond <= smallest or number == size:
            break
        beside.append(beyond)
        vector = (rest / beyond).astype(start.dtype)
    vectors = basis[:number].T @ shares[:, -k:]
    return vectors / np.linalg.norm(vectors, axis=0), has_converged
