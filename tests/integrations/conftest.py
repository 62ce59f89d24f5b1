"""One small model for all adapters."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when Haystack is imported

import pytest

from epic_retrieval import EpicEncoder, shared_encoder
from tests.integrations.common import Passes


@pytest.fixture(scope="module")
def folder(tiny_encoder_folder: Path) -> str:
    return str(tiny_encoder_folder)


@pytest.fixture(scope="module")
def encoder(folder: str) -> EpicEncoder:
    return shared_encoder(folder)


@pytest.fixture
def passes(encoder: EpicEncoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    counted = Passes(encoder, monkeypatch)
    yield counted
    counted.release()
