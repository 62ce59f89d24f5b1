"""The one door to FAISS: imports it late, and says what to install when it cannot.

Knows nothing of index folders.
"""

import functools
import importlib
import warnings
from importlib import metadata
from types import ModuleType

from epic_retrieval.errors import MissingExtraError

# Everything on the package index that owns the import name `faiss`.
_OWNERS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
_INSTALL = 'pip install "epic-retrieval[cpu]" (or "epic-retrieval[gpu]" for an NVIDIA GPU)'


@functools.cache
def load_faiss() -> ModuleType:
    """The module `faiss`.

    Raises:
        MissingExtraError: FAISS is not installed, or cannot be loaded; the message says what to
            install or remove.

    Warns:
        RuntimeWarning: Several distributions of FAISS are installed over each other.
    """
    owners = installed_owners()
    try:
        module = importlib.import_module("faiss")
    except (ImportError, RuntimeError) as error:
        # faiss-gpu raises RuntimeError when its CUDA libraries are missing.
        raise MissingExtraError(_import_problem(owners, error)) from error
    if not hasattr(module, "IndexFlatIP"):
        raise MissingExtraError(_import_problem(owners, "it holds no IndexFlatIP"))
    if len(owners) > 1:
        warnings.warn(_conflict(owners), RuntimeWarning, stacklevel=2)
    return module


def installed_owners() -> tuple[str, ...]:
    """The installed distributions that own the import name `faiss`; more than one is a fault."""
    found = []
    for name in _OWNERS:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def _conflict(owners: tuple[str, ...]) -> str:
    return (
        f"{' and '.join(owners)} are installed together, but overwrite each other's files. "
        f"Keep one: pip uninstall -y {' '.join(owners)}, then {_INSTALL}."
    )


def _import_problem(owners: tuple[str, ...], error: Exception | str) -> str:
    if len(owners) > 1:
        return f"FAISS cannot be loaded ({error}): {_conflict(owners)}"
    if not owners and isinstance(error, ModuleNotFoundError):
        return f"An index needs FAISS, which is not installed: {_INSTALL}."
    name = owners[0] if owners else "faiss"
    if name.startswith("faiss-gpu"):
        return (
            f"{name} is installed but cannot be loaded ({error}). Its CUDA libraries may be "
            f"missing: pip install --force-reinstall {name}, or without a GPU "
            f'pip uninstall {name}, then pip install "epic-retrieval[cpu]".'
        )
    return (
        f"{name} is installed but cannot be loaded ({error}). "
        f"Install it again: pip uninstall {name}, then {_INSTALL}."
    )
