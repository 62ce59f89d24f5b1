"""What every test shares: an environment without surprises, and the folder of real data."""

import os

# Before torch is imported: oneDNN reads its limit once, and a missing model name must not
# be looked up on a hub.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from threads and lose much when another process wants the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real data sets: EPIC_TEST_DATA, or shared/data beside the repository."""
    given = os.environ.get("EPIC_TEST_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data: set EPIC_TEST_DATA, or put it in {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a complete EPIC checkpoint with random weights: real code paths, empty answers."""
    from tests.models import save_tiny_encoder

    return save_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny-epic")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never read or fill the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPIC_CACHE_DIR", str(tmp_path_factory.mktemp("epic-cache")))
        patch.delenv("EPIC_MODEL", raising=False)
        yield
