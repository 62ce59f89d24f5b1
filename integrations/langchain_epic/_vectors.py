"""What an index needs of any LangChain embeddings: whose vectors they are, and their length, 1.

Knows nothing of documents.
"""

from dataclasses import replace

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray

from epic_retrieval import EncoderInfo, InputError

PROBE = "probe:"

_TEXT = "The quick brown fox jumps over the lazy dog."
_NUMBERS = 32
# Services round differently from call to call; vectors of other models have nothing in common.
_SAME = 0.99
# Vectors that were normalised in single precision are left as they are, to the last bit.
_NORM_TOLERANCE = 1e-5


def probed(embedding: Embeddings, built: EncoderInfo | None) -> EncoderInfo:
    """Embeddings that do not say what decides their vectors, as an index notes them.

    They embed one fixed sentence. The beginning of its vector stands for them; where it is nearly
    that of `built`, they are the same.

    Args:
        embedding: Who.
        built: With whom the index was built, if there is one.

    Raises:
        InputError: They do not give vectors.
    """
    vector = units(embedding.embed_documents([_TEXT]))[0]
    if built is not None and built.fingerprint.startswith(PROBE) and _is_same(vector, built):
        return replace(built, dimension=len(vector))
    shown = np.rint(_beginning(vector) * 127).astype(np.int8)
    return EncoderInfo(_name(embedding), PROBE + shown.tobytes().hex(), len(vector))


def units(rows: object) -> NDArray[np.float32]:
    """Vectors at length 1, (n, dimension) float32; those that have it stay as they are.

    Raises:
        InputError: They are no vectors of one dimension, or one is zero or not finite.
    """
    try:
        vectors = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the embeddings gave no vectors ({error}); expected lists of numbers, equally long"
        ) from error
    if vectors.ndim != 2 or not vectors.size:
        raise InputError(
            f"the embeddings gave an array of shape {vectors.shape}; expected (n, dimension)"
        )
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    wrong = ~np.isfinite(norms) | (norms == 0)
    if wrong.any():
        raise InputError(
            f"the embeddings gave a vector of length {norms[wrong][0]} in row"
            f" {int(np.argmax(wrong))}; it has no direction, so there are no cosines"
        )
    unit: NDArray[np.float32] = (vectors / norms).astype(np.float32)
    return np.where(np.abs(norms - 1) > _NORM_TOLERANCE, unit, vectors)


def _is_same(vector: NDArray[np.float32], built: EncoderInfo) -> bool:
    kept = np.frombuffer(bytes.fromhex(built.fingerprint.removeprefix(PROBE)), dtype=np.int8)
    ours, theirs = _beginning(vector), kept.astype(np.float64)
    if ours.shape != theirs.shape:
        return False
    return bool(ours @ theirs >= _SAME * np.linalg.norm(ours) * np.linalg.norm(theirs))


def _beginning(vector: NDArray[np.float32]) -> NDArray[np.float64]:
    """Its first numbers, (32,) or fewer, the largest of them 1 or -1."""
    found = vector[:_NUMBERS].astype(np.float64)
    scaled: NDArray[np.float64] = found / max(np.abs(found).max(), np.finfo(np.float32).tiny)
    return scaled


def _name(embedding: Embeddings) -> str:
    model = getattr(embedding, "model", None) or getattr(embedding, "model_name", None)
    kind = type(embedding).__name__
    return f"{kind}({model})" if isinstance(model, str) else kind
