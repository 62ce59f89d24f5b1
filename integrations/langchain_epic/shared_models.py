"""One loaded model for all adapters of a process that ask for the same one.

Knows nothing of LangChain. Holds no model that nobody uses any more.
"""

import threading
import weakref

from epic_retrieval import EpicEncoder

_Key = tuple[str | None, str | None, str | None]

_lock = threading.Lock()
_loaded: weakref.WeakValueDictionary[_Key, EpicEncoder] = weakref.WeakValueDictionary()


def shared_encoder(model: str | None, device: str | None, dtype: str | None) -> EpicEncoder:
    """Loads an encoder, or returns the one already loaded from the same model, device, dtype."""
    key = (model, device, dtype)
    with _lock:  # two threads that want the same model must not both load it
        encoder = _loaded.get(key)
        if encoder is None:
            encoder = EpicEncoder.from_pretrained(model, device=device, dtype=dtype)
            _loaded[key] = encoder
    return encoder
