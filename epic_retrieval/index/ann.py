"""A FAISS structure that proposes rows near a query, out of the first rows of an index.

It is opened for reading alone: nothing can be added. What it proposes has no scores, since those
come from the stored vectors. Knows nothing of passages.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.exact import Allowed
from epic_retrieval.index.filling import train_and_add
from epic_retrieval.index.manifest import REBUILD
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.structure import LISTS_SEARCH, Parts, make, shape_of
from epic_retrieval.index.structure_file import read_structure

__all__ = ["CANDIDATES", "EF_SEARCH", "NPROBE", "Ann", "train_and_add"]

# Names of parameters: how many lists or nodes are looked at, and how many rows are scored anew.
NPROBE = "nprobe"
EF_SEARCH = "efSearch"
CANDIDATES = "candidates"
# So many settings are kept ready; a filter's belong to one search alone.
_KEPT = 100


class Ann:
    """A structure that is open for searching; open one with `Ann.read`. Thread-safe.

    Attributes:
        rows: How many rows it holds: rows 0 to rows - 1.
        dimension: Width of the vectors.
        factory: FAISS index_factory string that it was made from.
        effort: Name of the parameter that trades time for recall: "nprobe", "efSearch", or None.
        most_effort: Its largest sensible value.
        supports_filter: Whether `propose` takes `allowed`.
    """

    def __init__(self, parts: Parts, factory: str) -> None:
        self._parts = parts
        self.factory = factory
        self.rows = int(parts.whole.ntotal)
        self.dimension = int(parts.whole.d)
        self.effort: str | None = None
        self.most_effort = 1
        if parts.lists:
            self.effort, self.most_effort = NPROBE, int(parts.inner.nlist)
        elif parts.graph:
            self.effort, self.most_effort = EF_SEARCH, max(1, self.rows)
        # FAISS's parameters by our own: to make them takes longer than some searches.
        self._made: dict[tuple[int, int], Any] = {}
        self.supports_filter = self._tried_filter()

    @classmethod
    def read(cls, path: Path, factory: str, rows: int, dimension: int, *, mmap: bool) -> "Ann":
        """Open index.faiss. Its checksum must have been compared before.

        Args:
            path: Of the file.
            factory: That it was made from.
            rows: That it must hold.
            dimension: That its vectors must have.
            mmap: Leave it on disk, where the system keeps in memory what is used; codes for
                fast-scan are read into memory in any case.

        Raises:
            PassageIndexError: FAISS cannot read it, or it is not what it should be.
        """
        parts = read_structure(path, mapped=mmap)
        found = int(parts.whole.ntotal), int(parts.whole.d)
        if found != (rows, dimension):
            raise PassageIndexError(
                f"{path}: {found[0]:,} vectors of {found[1]} dimensions, but the manifest says "
                f"{rows:,} of {dimension}. {REBUILD}"
            )
        measures = {parts.whole.metric_type, parts.inner.metric_type}
        if measures != {load_faiss().METRIC_INNER_PRODUCT} or not parts.whole.is_trained:
            raise PassageIndexError(
                f"{path}: not a finished structure for inner products. {REBUILD}"
            )
        try:
            expected = shape_of(make(factory, dimension))
        except InputError as error:
            raise PassageIndexError(f"{path}: {error}") from error
        if shape_of(parts) != expected:
            raise PassageIndexError(
                f'{path}: {shape_of(parts)}, but "{factory}" gives {expected}. {REBUILD}'
            )
        return cls(parts, factory)

    def propose(
        self,
        queries: Vectors,
        count: int,
        parameters: Mapping[str, int],
        allowed: Allowed | None = None,
    ) -> Rows:
        """Rows that may be near each query, most promising first.

        Args:
            queries: (n, dimension) float32.
            count: How many rows to propose.
            parameters: "nprobe" or "efSearch"; "candidates" is of no effect here. What is left
                out, or not for this structure, is FAISS's own default.
            allowed: (rows,) bool: propose only these.

        Returns:
            (n, count) int64; -1 where fewer rows were found.

        Raises:
            InputError: `allowed` has another length, or this structure supports none.
        """
        if not len(queries):
            return np.empty((0, count), np.int64)
        if allowed is None:
            search = self._kept_parameters(parameters, count)
        else:
            search = self._search_parameters(parameters, count, self._selector(allowed))
        found: Rows = self._parts.whole.search(queries, count, params=search)[1]
        return found

    def _selector(self, allowed: Allowed) -> Any:  # noqa: ANN401 - FAISS is untyped
        if not self.supports_filter:
            raise InputError(f'"{self.factory}" cannot be searched with a filter.')
        if allowed.shape != (self.rows,):
            raise InputError(
                f"allowed has the shape {allowed.shape}: expected ({self.rows},), a bool a row."
            )
        # FAISS holds no reference to the bits, so the selector does.
        bits = np.packbits(allowed, bitorder="little")
        faiss = load_faiss()
        selector = faiss.IDSelectorBitmap(self.rows, faiss.swig_ptr(bits))
        selector.bits = bits
        return selector

    def _kept_parameters(self, parameters: Mapping[str, int], count: int) -> Any:  # noqa: ANN401
        key = parameters.get(self.effort or "", 1), count
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= _KEPT:
                self._made.clear()
            found = self._made[key] = self._search_parameters(parameters, count, None)
        return found

    def _search_parameters(
        self,
        parameters: Mapping[str, int],
        count: int,
        selector: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        faiss = load_faiss()
        given = {} if selector is None else {"sel": selector}
        effort = min(parameters.get(self.effort or "", 1), self.most_effort)
        if self._parts.lists:
            quantizer = faiss.downcast_index(self._parts.inner.quantizer)
            if isinstance(quantizer, faiss.IndexHNSW):
                wide = max(LISTS_SEARCH, 2 * effort)
                given["quantizer_params"] = faiss.SearchParametersHNSW(efSearch=wide)
            made = faiss.SearchParametersIVF(nprobe=effort, **given)
        elif self._parts.graph:
            made = faiss.SearchParametersHNSW(efSearch=max(effort, count), **given)
        elif given:
            made = faiss.SearchParameters(**given)
        else:
            return None
        if self._parts.transforms:
            return faiss.SearchParametersPreTransform(index_params=made)
        return made

    def _tried_filter(self) -> bool:
        """Whether FAISS takes a selector: asked with one that lets nothing through."""
        nothing = load_faiss().IDSelectorRange(0, 0)
        query = np.zeros((1, self.dimension), np.float32)
        try:
            self._parts.whole.search(query, 1, params=self._search_parameters({}, 1, nothing))
        except RuntimeError:
            return False
        return True
