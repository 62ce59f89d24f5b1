import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from epic_retrieval import CheckpointError, Demonstration, EpicEncoder, InputError, Task
from langchain_epic import EpicEmbeddings
from langchain_epic.shared_models import shared_encoder

BARE = Task("bare", "Find what answers")
SYMMETRIC = Task("same", "Find what means the same", (Demonstration("one", "two"),), symmetric=True)
TEXTS = ["A first passage.", "a line\nand   another\t", "third"]


class WithTinyModel:
    """Parameters of LangChain's own suites."""

    @pytest.fixture(autouse=True)
    def _folder(self, tiny_encoder_folder: Path) -> None:
        self.folder = str(tiny_encoder_folder)

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return EpicEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, str]:
        return {"model": self.folder}


class TestUnit(WithTinyModel, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        return {"EPIC_MODEL": self.folder}, {}, {"model": self.folder}


class TestIntegration(WithTinyModel, EmbeddingsIntegrationTests):
    pass


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> EpicEncoder:
    return EpicEncoder.from_pretrained(tiny_encoder_folder)


def test_both_verbs_are_the_encoders(encoder: EpicEncoder) -> None:
    embeddings = EpicEmbeddings(task="python-docs", encoder=encoder)
    expected = encoder.encode_queries([TEXTS[1]], "python-docs")
    np.testing.assert_array_equal(
        np.asarray([embeddings.embed_query(TEXTS[1])], np.float32), expected
    )
    documents = np.asarray(embeddings.embed_documents(TEXTS), np.float32)
    np.testing.assert_array_equal(documents, encoder.encode_passages(TEXTS))
    assert embeddings.embed_documents([]) == []


def test_a_symmetric_task_reaches_the_passages(encoder: EpicEncoder) -> None:
    embeddings = EpicEmbeddings(task=SYMMETRIC, mode="none", encoder=encoder)
    documents = np.asarray(embeddings.embed_documents(TEXTS), np.float32)
    np.testing.assert_array_equal(documents, encoder.encode_passages(TEXTS, SYMMETRIC, "none"))
    assert np.abs(documents - encoder.encode_passages(TEXTS)).max() > 1e-3


def test_mode_reaches_the_queries(encoder: EpicEncoder) -> None:
    by_mode = {
        mode: EpicEmbeddings(mode=mode, task=SYMMETRIC, encoder=encoder).embed_query("x")
        for mode in (None, "epic", "text", "none")
    }
    assert by_mode[None] == by_mode["epic"]
    assert len({tuple(vector) for vector in by_mode.values()}) == 3


def test_with_task_shares_the_model_and_keeps_the_settings(encoder: EpicEncoder) -> None:
    first = EpicEmbeddings(task="python-docs", batch_size=7, encoder=encoder)
    second = first.with_task(SYMMETRIC)
    assert (second.task, second.batch_size) == (SYMMETRIC, 7)
    assert second._encoder is first._encoder
    assert second.embed_query("x") != first.embed_query("x")
    fresh = EpicEmbeddings(task="python-docs", encoder=encoder)
    assert first.embed_query("x") == fresh.embed_query("x")
    with pytest.raises(InputError, match="no built-in task"):
        first.with_task("no-such-task")
    with pytest.raises(InputError, match="none; add some"):
        EpicEmbeddings(mode="epic", encoder=encoder).with_task(BARE)


def test_task_may_be_a_file(encoder: EpicEncoder, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    SYMMETRIC.save(path)
    assert EpicEmbeddings(task=str(path), encoder=encoder).task == SYMMETRIC


def test_adapters_of_one_model_share_it(tiny_encoder_folder: Path) -> None:
    folder = str(tiny_encoder_folder)
    one, two = EpicEmbeddings(model=folder), EpicEmbeddings(model=folder, task=SYMMETRIC)
    assert one._encoder is two._encoder is shared_encoder(folder, None, None)
    assert EpicEmbeddings(model=folder, dtype="float32")._encoder is not one._encoder


def test_wrong_settings_fail_at_construction(encoder: EpicEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no built-in task 'web-serch'"):
        EpicEmbeddings(task="web-serch", encoder=encoder)
    with pytest.raises(ValidationError, match="'bare' has none"):
        EpicEmbeddings(task=BARE, mode="epic", encoder=encoder)
    with pytest.raises(ValidationError, match="together with device, dtype"):
        EpicEmbeddings(device="cpu", dtype="float32", encoder=encoder)
    with pytest.raises(ValidationError, match="Extra inputs"):
        EpicEmbeddings(model_name="x", encoder=encoder)  # type: ignore[call-arg]
    with pytest.raises(CheckpointError, match="no model at"):
        EpicEmbeddings(model=str(tmp_path / "absent"))


def test_mode_epic_needs_a_projector() -> None:
    from tests.models import tiny_encoder

    with pytest.raises(CheckpointError, match="no projector"):
        EpicEmbeddings(mode="epic", encoder=tiny_encoder(projector=False))


async def test_async_agrees_with_sync(encoder: EpicEncoder) -> None:
    embeddings = EpicEmbeddings(encoder=encoder)
    assert await embeddings.aembed_query("x") == pytest.approx(
        embeddings.embed_query("x"), abs=1e-6
    )
    assert await embeddings.aembed_documents(TEXTS) == embeddings.embed_documents(TEXTS)


def test_works_with_a_vector_store(encoder: EpicEncoder) -> None:
    store = InMemoryVectorStore(EpicEmbeddings(task=SYMMETRIC, mode="none", encoder=encoder))
    store.add_texts(TEXTS)
    ((best, score),) = store.similarity_search_with_score(TEXTS[1], k=1)
    assert best.page_content == TEXTS[1]
    assert score == pytest.approx(1.0, abs=1e-5)


def test_missing_langchain_is_said_with_the_command() -> None:
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "from epic_retrieval import MissingExtraError\n"
        "try: import langchain_epic\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'epic-retrieval[langchain]'" in done.stdout
