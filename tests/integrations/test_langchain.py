"""LangChain: its own contract suites, unchanged, and what they do not ask."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from epic_retrieval import CheckpointError, EpicEncoder, InputError, Task, shared_encoder
from langchain_epic import EpicEmbeddings
from tests.integrations.common import BARE, LONG, PAIRS, SHOWN, SYMMETRIC, TEXTS, Passes, floats
from tests.models import tiny_encoder


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


def test_both_verbs_are_the_encoders(encoder: EpicEncoder) -> None:
    embeddings = EpicEmbeddings(task="python-docs", encoder=encoder)
    expected = encoder.encode_queries([TEXTS[1]], "python-docs")
    np.testing.assert_array_equal(floats([embeddings.embed_query(TEXTS[1])]), expected)
    documents = floats(embeddings.embed_documents(TEXTS))
    np.testing.assert_array_equal(documents, encoder.encode_passages(TEXTS))


def test_mode_reaches_the_queries(encoder: EpicEncoder) -> None:
    by_mode = {
        mode: EpicEmbeddings(mode=mode, task=SYMMETRIC, encoder=encoder).embed_query("x")
        for mode in (None, "epic", "text", "none")
    }
    assert by_mode[None] == by_mode["epic"]
    assert len({tuple(vector) for vector in by_mode.values()}) == 3


def test_the_task_in_every_form(encoder: EpicEncoder, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    SHOWN.save(path)
    pairs: list[Any] = [("one", "two"), {"query": "three", "passage": "four"}]
    made = EpicEmbeddings(instruction=SHOWN.instruction, demonstrations=pairs, encoder=encoder)
    assert made.task == Task("custom", SHOWN.instruction, PAIRS)
    for given in (SHOWN, path, str(path), SHOWN.to_dict()):
        embeddings = EpicEmbeddings(task=given, encoder=encoder)  # type: ignore[arg-type]
        assert embeddings.task == SHOWN
        assert embeddings.embed_query("x") == made.embed_query("x")
    instructed = EpicEmbeddings(instruction=SHOWN.instruction, encoder=encoder)
    assert instructed.embed_query("x") != made.embed_query("x")


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
    with pytest.raises(InputError, match="'bare' has no demonstrations, which mode 'epic' needs"):
        EpicEmbeddings(mode="epic", encoder=encoder).with_task(BARE)


def test_adapters_of_one_model_share_it(folder: str) -> None:
    one, two = EpicEmbeddings(model=folder), EpicEmbeddings(model=Path(folder), task=SYMMETRIC)  # type: ignore[arg-type]
    assert one._encoder is two._encoder is shared_encoder(folder)
    assert copy.deepcopy(one)._encoder is copy.copy(one)._encoder is one._encoder
    assert EpicEmbeddings(model=folder, dtype="float32")._encoder is not one._encoder


def test_a_pickled_one_loads_its_model_by_name(folder: str, encoder: EpicEncoder) -> None:
    embeddings = EpicEmbeddings(model=folder, task=SHOWN, mode="text", batch_size=3)
    sent = pickle.dumps(embeddings)
    assert len(sent) < 2000
    assert pickle.loads(sent) == embeddings  # noqa: S301
    assert pickle.loads(sent).embed_query("x") == embeddings.embed_query("x")  # noqa: S301
    with pytest.raises(InputError, match="name the model with model="):
        pickle.dumps(EpicEmbeddings(encoder=encoder))


def test_wrong_settings_fail_at_construction(
    encoder: EpicEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"task": "web-serch"}, "no built-in task 'web-serch'"),
        ({"task": BARE, "mode": "epic"}, "'bare' has no demonstrations"),
        ({"task": SHOWN, "instruction": "x"}, "pass either a task, or instruction"),
        ({"demonstrations": PAIRS}, "without an instruction"),
        ({"mode": "epci"}, "Input should be 'epic', 'text' or 'none'"),
        ({"batch_size": 0}, "greater than 0"),
        ({"device": "cpu", "dtype": "float32"}, "together with device, dtype"),
        ({"model_name": "x"}, "Extra inputs"),
        ({"encoder": "tiny"}, "encoder is 'tiny'; expected an EpicEncoder"),
    ]
    for settings, message in refused:
        with pytest.raises(ValidationError, match=message):
            EpicEmbeddings(**{"encoder": encoder} | settings)
    with pytest.raises(CheckpointError, match="no model at"):
        EpicEmbeddings(model=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="no projector"):
        EpicEmbeddings(mode="epic", encoder=tiny_encoder(projector=False))
    monkeypatch.setenv("EPIC_MODEL", str(tmp_path / "absent"))
    assert EpicEmbeddings(encoder=encoder)._encoder is encoder


@pytest.mark.parametrize("text", [None, 3.5, b"bytes", ["a list"], "", " \n"])
async def test_what_is_no_query(encoder: EpicEncoder, text: Any) -> None:  # noqa: ANN401
    embeddings = EpicEmbeddings(encoder=encoder)
    with pytest.raises(InputError, match="text 0 is"):
        embeddings.embed_query(text)
    with pytest.raises(InputError, match="text 0 is"):
        await embeddings.aembed_query(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "got None; expected a list of texts"),
        (7, "got 7; expected a list of texts"),
        ("one text", "got 'one text'; expected a list of texts"),
        (["fine", None], "text 1 is a NoneType; expected str"),
        (["fine", 7], "text 1 is a int; expected str"),
        (["fine", ""], "text 1 is empty; remove it"),
    ],
)
async def test_what_are_no_documents(encoder: EpicEncoder, texts: Any, message: str) -> None:  # noqa: ANN401
    embeddings = EpicEmbeddings(encoder=encoder)
    with pytest.raises(InputError, match=message):
        embeddings.embed_documents(texts)
    with pytest.raises(InputError, match=message):
        await embeddings.aembed_documents(texts)


def test_nothing_gives_nothing_and_iterables_are_taken(encoder: EpicEncoder) -> None:
    embeddings = EpicEmbeddings(encoder=encoder)
    assert embeddings.embed_documents([]) == []
    assert embeddings.embed_documents(iter(TEXTS)) == embeddings.embed_documents(TEXTS)  # type: ignore[arg-type]


def test_a_megabyte_is_cut_at_max_length(encoder: EpicEncoder) -> None:
    embeddings = EpicEmbeddings(encoder=encoder)
    beginning = LONG[:2000]
    assert embeddings.embed_query(LONG) == embeddings.embed_query(beginning)
    assert embeddings.embed_documents([LONG]) == embeddings.embed_documents([beginning])
    assert embeddings.embed_query(beginning) != embeddings.embed_query("a word")


async def test_async_agrees_with_sync_and_leaves_the_loop_free(
    encoder: EpicEncoder, passes: Passes
) -> None:
    embeddings = EpicEmbeddings(encoder=encoder)
    assert await embeddings.aembed_query("x") == embeddings.embed_query("x")
    passes.threads.clear()
    found = await embeddings.aembed_documents(TEXTS)
    assert threading.get_ident() not in passes.threads
    assert found == embeddings.embed_documents(TEXTS)


def test_batch_size_is_heeded(encoder: EpicEncoder, passes: Passes) -> None:
    EpicEmbeddings(encoder=encoder, batch_size=2).embed_documents(["a", "b", "c", "d", "e"])
    assert passes.sizes == [2, 2, 1]


def test_works_with_a_vector_store(encoder: EpicEncoder) -> None:
    store = InMemoryVectorStore(EpicEmbeddings(task=SYMMETRIC, mode="none", encoder=encoder))
    store.add_texts(TEXTS)
    ((best, score),) = store.similarity_search_with_score(TEXTS[1], k=1)
    assert best.page_content == TEXTS[1]
    assert score == pytest.approx(1.0, abs=1e-5)
