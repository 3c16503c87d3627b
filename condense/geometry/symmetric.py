"""Gram matrices and their eigenvalues on a CPU, by half the arithmetic: symmetric matrices in BLAS and LAPACK.

The routines are called where scipy exports them for other compiled code (scipy.linalg.cython_blas, cython_lapack):
called this way they let other threads run, which scipy's Python functions do not. docs/performance.md has the times.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_BLOCK = 12  # columns that dsytrd reduces at once: a sixth faster than with LAPACK's 32 for 256 rows
_EPSILON = float(np.finfo(np.float64).eps)
_NOISE = 16  # rounding of the reduction, in ε times the largest eigenvalue


def upper_gram(rows: NDArray[Any]) -> NDArray[Any]:
    """Products of the rows (n, d), float32 or float64: (n, n), 0 below the diagonal."""
    rows, n = np.ascontiguousarray(rows), len(rows)
    gram = np.zeros((n, n), dtype=rows.dtype)
    name, number = ("ssyrk", ctypes.c_float) if rows.dtype == np.float32 else ("dsyrk", ctypes.c_double)
    # BLAS reads matrices by columns: it sees the rows as (d, n), and the lower triangle of theirs is the upper here
    _call(name, b"L", b"T", n, rows.shape[1], number(1.0), rows, rows.shape[1], number(0.0), gram, n)
    return gram


def above_diagonal(matrix: NDArray[Any], entries: NDArray[Any]) -> None:
    """Copy what is above the diagonal of a matrix (n, n), row by row, to entries (n(n−1)/2,); float32 or float64."""
    name, n = "strttp" if matrix.dtype == np.float32 else "dtrttp", len(matrix)
    # without its first column the matrix holds them on and above the diagonal of its first n − 1 rows
    _call(name, b"L", n - 1, matrix.reshape(-1)[1:], n, entries, ctypes.c_int(0))


@dataclass(frozen=True)
class Tridiagonal:
    """A symmetric matrix that another one is similar to: its diagonal (n,) and what stands beside it (n − 1,).

    within: the form that this one is a part of, whose largest eigenvalue says what is rounding in it.
    """

    diagonal: Floats
    beside: Floats
    within: Tridiagonal | None = None

    @property
    def floor(self) -> float:
        """No eigenvalue below this is told from rounding; from bounds of the largest ones, their sums."""
        own = len(self.diagonal) * _EPSILON * float(self.diagonal.sum())
        return own if self.within is None else max(own, _NOISE * _EPSILON * float(self.within.diagonal.sum()))

    def eigenvalues(self) -> Floats:
        """Eigenvalues, ascending; what is only rounding is 0."""
        noise = 0.0 if self.within is None else _NOISE * _EPSILON * float(self.within.eigenvalues()[-1])
        return _of_tridiagonal(self.diagonal, self.beside, noise)


def tridiagonal(matrix: Floats, lengths: Floats | None = None) -> Tridiagonal:
    """The form of a symmetric matrix A (n, n), or of diag(lengths) A diag(lengths); the upper triangle of A is read."""
    if lengths is None:
        return Tridiagonal(*_tridiagonal(np.array(matrix, dtype=np.float64, order="C")))
    scaled = np.multiply(matrix, lengths, order="C")
    scaled *= lengths[:, None]
    return Tridiagonal(*_tridiagonal(scaled))


def row_sums(matrix: Floats) -> Floats:
    """Sums of the rows of a symmetric matrix (n, n) -> (n,); its upper triangle is read."""
    return _product(matrix, np.ones(len(matrix)))


def with_and_without_mean(gram: Floats) -> tuple[Tridiagonal, Tridiagonal, float]:
    """Forms of a Gram matrix (n, n) of rows, and of the rows minus their mean, n − 1; its eigenvalues' squares' sum.

    The upper triangle of the matrix is read.

    A reflection takes the direction (1, …, 1)/√n to the first axis; dsytrd leaves that axis where it is. Centring the
    rows then sets the first row and column of the tridiagonal form to 0: the rest of it has the other eigenvalues.
    """
    whole = Tridiagonal(*_tridiagonal(_reflected(np.array(gram, dtype=np.float64, order="C"))))
    diagonal, beside = whole.diagonal[1:], whole.beside[1:]
    squares = float(diagonal @ diagonal + 2 * beside @ beside)
    return whole, Tridiagonal(diagonal, beside, whole), squares


def resolvent_traces(diagonals: Floats, besides: Floats, shifts: Floats) -> Floats:
    """t·tr (T + t)⁻¹ of many tridiagonal matrices T without negative eigenvalues, for many t > 0 at once.

    diagonals (n, M), besides (n − 1, M), shifts (K,) -> (K, M). The trace is the logarithmic derivative of the
    determinant, whose pivots follow from one row to the next: O(n) for each matrix and shift. Where an eigenvalue is
    −t or less by rounding the result means nothing.
    """
    t = np.broadcast_to(shifts[:, None], (len(shifts), diagonals.shape[1]))
    squares = besides * besides
    pivot = diagonals[0] + t
    slope = 1.0 / pivot  # the derivative of the pivot's logarithm by t
    total, above = slope.copy(), np.empty_like(pivot)
    for row in range(1, len(diagonals)):
        np.divide(squares[row - 1], pivot, out=above)
        np.add(t, diagonals[row], out=pivot)
        pivot -= above
        above *= slope
        above += 1.0
        np.divide(above, pivot, out=slope)
        total += slope
    made: Floats = total * t
    return made


def _reflected(matrix: Floats) -> Floats:
    """P A P, in place in the upper triangle, for the reflection P that takes (1, …, 1)/√n to the first axis."""
    n = len(matrix)
    axis = np.full(n, n**-0.5)
    axis[0] += 1.0  # P = I − axis·axisᵀ·scale; the plus keeps it clear of cancellation
    scale = 2.0 / float(axis @ axis)
    image = _product(matrix, axis) * scale
    image -= axis * (0.5 * scale * float(axis @ image))
    _call("dsyr2", b"L", n, ctypes.c_double(-1.0), axis, 1, image, 1, matrix, n)
    return matrix


def _product(matrix: Floats, vector: Floats) -> Floats:
    """A symmetric matrix, which may be the first rows and columns of a larger one, times a vector."""
    n, product, apart = len(matrix), np.empty(len(matrix)), matrix.strides[0] // matrix.itemsize
    _call("dsymv", b"L", n, ctypes.c_double(1.0), matrix, apart, vector, 1, ctypes.c_double(0.0), product, 1)
    return product


def _tridiagonal(matrix: Floats) -> tuple[Floats, Floats]:
    """Diagonal (n,) and subdiagonal (n − 1,) of QᵀAQ, the first axis being the first column of Q; overwrites A.

    The upper triangle of A is read.
    """
    n, info = len(matrix), ctypes.c_int(0)
    diagonal, beside, factors = np.empty(n), np.empty(max(1, n - 1)), np.empty(max(1, n - 1))
    work = np.empty(n * _BLOCK)
    _call("dsytrd", b"L", n, matrix, n, diagonal, beside, factors, work, len(work), info)
    if info.value:
        raise ArithmeticError(f"LAPACK's dsytrd failed: {info.value}")
    return diagonal, beside[: n - 1]


def _of_tridiagonal(diagonal: Floats, beside: Floats, noise: float = 0.0) -> Floats:
    """Eigenvalues, ascending; 0 below `noise`, and below n·ε times the largest."""
    values, rest, info = diagonal.copy(), beside.copy(), ctypes.c_int(0)
    if len(values) > 1:
        _call("dsterf", len(values), values, rest, info)
    if info.value:
        raise ArithmeticError(f"LAPACK's dsterf did not converge: {info.value}")
    floor = max(noise, len(values) * _EPSILON * float(np.abs(values).max(initial=0.0)))
    return np.where(values > floor, values, 0.0)


def _call(name: str, *arguments: bytes | int | NDArray[Any] | ctypes._SimpleCData[Any]) -> None:
    """Run a routine, every argument passed by reference."""
    _routine(name)(*(_by_reference(argument) for argument in arguments))


def _by_reference(argument: bytes | int | NDArray[Any] | ctypes._SimpleCData[Any]) -> Any:
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    return ctypes.byref(ctypes.c_int(argument) if isinstance(argument, int) else argument)


@functools.cache
def _routine(name: str) -> Callable[..., None]:
    """A routine of scipy's BLAS or LAPACK as a foreign function: the interpreter's lock is released while it runs."""
    from scipy.linalg import cython_blas, cython_lapack

    capsule = (cython_blas if name in cython_blas.__pyx_capi__ else cython_lapack).__pyx_capi__[name]
    names, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    names.restype, names.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None)(pointer(capsule, names(capsule)))
