"""Checks of vectors at the door, for passages and queries alike.

Knows nothing of FAISS, which takes NaN without a word and a wrong width with a bare assertion.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError

Vectors: TypeAlias = NDArray[np.float32]

# Wide enough for vectors that were normalised in half precision.
_NORM_TOLERANCE = 1e-3


def checked_vectors(vectors: object, dimension: int, source: str) -> Vectors:
    """The same vectors, (n, dimension) float32, C-contiguous.

    Args:
        vectors: What to check.
        dimension: The width that the index has.
        source: Whose vectors these are, for messages: "The encoder gave", "The queries are".

    Raises:
        InputError: Not a 2-D float32 array of that width, or a row that is not finite or not of
            length 1 (to 1e-3).
    """
    if not isinstance(vectors, np.ndarray):
        kind = f"{type(vectors).__module__}.{type(vectors).__name__}"
        raise InputError(f"{source} a {kind}: expected a numpy array of float32.")
    if vectors.ndim != 2:
        fix = " For one query, use vector[None, :]." if vectors.ndim == 1 else ""
        raise InputError(
            f"{source} an array of shape {vectors.shape}: expected (n, {dimension}).{fix}"
        )
    if vectors.dtype != np.float32:
        raise InputError(
            f"{source} an array of {vectors.dtype}: expected float32; "
            "use vectors.astype(numpy.float32)."
        )
    if vectors.shape[1] != dimension:
        raise InputError(
            f"{source} vectors of {vectors.shape[1]} dimensions: expected {dimension}. "
            "Use the encoder (and settings) that the index names."
        )
    _check_rows(vectors, source)
    return np.ascontiguousarray(vectors)


def _check_rows(vectors: Vectors, source: str) -> None:
    # Single precision is enough for that. Written so that NaN and infinity do not pass.
    squares = np.einsum("nd,nd->n", vectors, vectors)
    if not squares.size or np.abs(squares - 1).max() <= _NORM_TOLERANCE:
        return
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(
            f"{source} NaN or infinity in row {row}: check the model's weights and dtype."
        )
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    off = np.abs(norms - 1.0)
    if off.max() > _NORM_TOLERANCE:
        row = int(off.argmax())
        raise InputError(
            f"{source} a vector of length {norms[row]:.6g} in row {row}: expected 1, since scores "
            "are cosines; divide each row by its L2 norm."
        )
