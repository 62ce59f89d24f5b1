"""PromptCache: prefixes in memory and on disk, under keys that name everything they depend on.

Knows nothing of how a prefix is computed; the caller makes the key (`EpicEncoder.prepare`).
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from epic_retrieval.prefix import Prefix
from epic_retrieval.storage import cache_folder, digest_of, digest_of_tensors, write_atomically

logger = logging.getLogger(__name__)


class PromptCache:
    """Least recently used prefixes in memory, all of them on disk.

    Safe for threads, and for processes that share a folder: files appear whole, and two processes
    that compute the same prefix write the same bytes. A file that is damaged is computed again.

    Args:
        folder: where to keep prefixes; None keeps them in memory only.
        memory: how many prefixes to hold in memory, at least 1.
    """

    def __init__(self, folder: Path | None, memory: int = 16) -> None:
        self.folder = folder
        self._memory = max(1, memory)
        self._held: OrderedDict[tuple[str, torch.device], Prefix] = OrderedDict()
        self._lock = threading.RLock()

    @classmethod
    def default(cls) -> "PromptCache":
        """In `$EPIC_CACHE_DIR`, or the user's cache folder."""
        return cls(cache_folder() / "prompts")

    def get(self, key: str, device: torch.device, compute: Callable[[], Prefix]) -> Prefix:
        """The prefix of `key` on `device`: from memory, from disk, or from `compute`."""
        with self._lock:
            prefix = self._held.get((key, device))
            if prefix is None:
                prefix = self._read(key, device)
            if prefix is None:
                prefix = compute()
                self._write(key, prefix)
            self._held[key, device] = prefix
            self._held.move_to_end((key, device))
            while len(self._held) > self._memory:
                self._held.popitem(last=False)
            return prefix

    def _path(self, key: str) -> Path | None:
        return self.folder / f"{key}.safetensors" if self.folder else None

    def _read(self, key: str, device: torch.device) -> Prefix | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                intact = (file.metadata() or {}).get("sha256") == _seal(key, tensors)
            if intact:
                return _from_tensors({name: t.to(device) for name, t in tensors.items()})
            problem = "its checksum is wrong"
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            problem = str(error)
        logger.warning("cached prompt %s is damaged (%s); computing it again", path, problem)
        return None

    def _write(self, key: str, prefix: Prefix) -> None:
        path = self._path(key)
        if path is None:
            return
        tensors = _to_tensors(prefix)
        try:
            write_atomically(path, save(tensors, {"sha256": _seal(key, tensors)}))
        except OSError as error:
            logger.warning("the prompt cannot be kept in %s: %s", path.parent, error)


def _seal(key: str, tensors: dict[str, Tensor]) -> str:
    """A checksum that another prompt's file, renamed or restored in this one's place, lacks."""
    return digest_of([key, digest_of_tensors(tensors)])


def _to_tensors(prefix: Prefix) -> dict[str, Tensor]:
    tensors = {}
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        tensors[f"{layer}.keys"] = keys.detach().cpu().contiguous()
        tensors[f"{layer}.values"] = values.detach().cpu().contiguous()
    return tensors


def _from_tensors(tensors: dict[str, Tensor]) -> Prefix:
    layers = range(len(tensors) // 2)
    return Prefix(
        tuple(tensors[f"{layer}.keys"] for layer in layers),
        tuple(tensors[f"{layer}.values"] for layer in layers),
    )
