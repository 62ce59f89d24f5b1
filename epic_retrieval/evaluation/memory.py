"""VectorMemory: vectors of documents that several evaluations in a row ask for.

Documents of an asymmetric task are the same vectors in every mode; encoding them is nearly all of
an evaluation's time.
"""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_LIMIT = 2**30  # bytes


class VectorMemory:
    """Vectors under keys; the ones longest not asked for make room.

    Args:
        limit: most bytes that are kept.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def get(self, key: str, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """What is kept under the key, else what `compute` returns; not to be written to."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        vectors = compute()
        vectors.flags.writeable = False
        if vectors.nbytes <= self._limit:
            self._kept[key] = vectors
            while sum(one.nbytes for one in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
        return vectors
