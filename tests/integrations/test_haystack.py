"""Haystack: components on their own and in pipelines, saved and loaded."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.core.errors import DeserializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice

from epic_retrieval import CheckpointError, EpicEncoder, InputError, Task
from haystack_epic import EpicDocumentEmbedder, EpicTextEmbedder
from tests.integrations.common import BARE, LONG, PAIRS, SHOWN, SYMMETRIC, TEXTS, Passes, floats


def test_construction_is_light_and_checks_the_task(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for component in (EpicTextEmbedder, EpicDocumentEmbedder):
        assert component(folder)._encoder is None
        with pytest.raises(InputError, match="no built-in task 'web-serch'"):
            component(task="web-serch")
        with pytest.raises(InputError, match="without an instruction"):
            component(demonstrations=PAIRS)
        with pytest.raises(CheckpointError, match="no model at"):
            component(str(tmp_path / "absent")).warm_up()
        with pytest.raises(InputError, match="'bare' has no demonstrations"):
            component(folder, BARE, mode="epic").warm_up()
        monkeypatch.setenv("EPIC_MODEL", folder)
        assert component().to_dict()["init_parameters"]["model"] == folder
        monkeypatch.delenv("EPIC_MODEL")


def test_components_share_their_model(folder: str, encoder: EpicEncoder) -> None:
    one, two = EpicTextEmbedder(folder), EpicDocumentEmbedder(folder, SHOWN)
    one.warm_up()
    two.warm_up()
    assert one._encoder is two._encoder is encoder


def test_copies_share_the_model(folder: str) -> None:
    component = EpicTextEmbedder(Path(folder), SHOWN)
    expected = component.run("x")
    for again in (copy.deepcopy(component), pickle.loads(pickle.dumps(component))):  # noqa: S301
        assert again._encoder is None
        assert again.run("x") == expected
        assert again._encoder is component._encoder


@pytest.mark.parametrize("device", [None, "cpu", ComponentDevice.from_str("cpu")])
def test_settings_survive_saving(folder: str, device: Any) -> None:  # noqa: ANN401
    text = EpicTextEmbedder(
        folder, instruction="Find it", demonstrations=PAIRS, mode="text", device=device
    )
    documents = EpicDocumentEmbedder(
        folder,
        SYMMETRIC,
        batch_size=3,
        progress_bar=False,
        meta_fields_to_embed=["title"],
        embedding_separator=" | ",
        device=device,
        dtype="float32",
    )
    pipeline = Pipeline()
    pipeline.add_component("text", text)
    pipeline.add_component("documents", documents)
    saved = pipeline.dumps()
    assert len(saved) < 3000
    again = Pipeline.loads(saved, allowed_modules=["haystack_epic"])
    assert again.dumps() == saved
    found: Any = again.get_component("text")
    assert found.task == Task("custom", "Find it", PAIRS)
    assert found.run("x") == text.run("x")
    with pytest.raises(DeserializationError):  # Haystack's rule for what is not its own
        Pipeline.loads(saved)


def test_text_embedder_takes_another_task_for_a_call(folder: str, encoder: EpicEncoder) -> None:
    component: Any = EpicTextEmbedder(folder, SHOWN)
    assert component.run("x") == {"embedding": encoder.encode_queries(["x"], SHOWN)[0].tolist()}
    for task in ("python-docs", SYMMETRIC):
        expected = encoder.encode_queries(["x"], task)[0].tolist()
        assert component.run("x", task) == {"embedding": expected}
    with pytest.raises(InputError, match="no built-in task"):
        component.run("x", "web-serch")


async def test_async_agrees_with_sync(folder: str) -> None:
    text: Any = EpicTextEmbedder(folder, SHOWN)
    assert await text.run_async("x", "python-docs") == text.run("x", "python-docs")
    documents: Any = EpicDocumentEmbedder(folder)
    given = [Document(content=one) for one in TEXTS]
    assert await documents.run_async(given) == documents.run(given)


def test_document_embedder_leaves_what_it_was_given(folder: str, encoder: EpicEncoder) -> None:
    given = [Document(content=text, meta={"i": i}) for i, text in enumerate(TEXTS)]
    found = EpicDocumentEmbedder(folder).run(given)["documents"]
    assert all(document.embedding is None for document in given)
    assert [(one.id, one.content, one.meta) for one in found] == [
        (one.id, one.content, one.meta) for one in given
    ]
    vectors = floats([one.embedding for one in found])
    np.testing.assert_array_equal(vectors, encoder.encode_passages(TEXTS))


def test_meta_fields_stand_before_the_content(folder: str, encoder: EpicEncoder) -> None:
    component: Any = EpicDocumentEmbedder(
        folder, meta_fields_to_embed=["title", "year", "absent"], embedding_separator="\n\n"
    )
    given = [
        Document(content="text", meta={"title": "A title", "year": 1999, "other": "no"}),
        Document(content=None, meta={"title": "Only this", "year": None}),
    ]
    found = component.run(given)["documents"]
    expected = encoder.encode_passages(["A title\n\n1999\n\ntext", "Only this\n\n"])
    np.testing.assert_array_equal(floats([one.embedding for one in found]), expected)


@pytest.mark.parametrize("text", [None, 3.5, b"bytes", ""])
def test_what_is_no_query(folder: str, text: Any) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match="text 0 is"):
        EpicTextEmbedder(folder).run(text)


def test_what_are_no_documents(folder: str) -> None:
    component: Any = EpicDocumentEmbedder(folder)
    for given in ("text", None, ["text"], [Document(content="x"), None]):
        with pytest.raises(InputError, match="expects a list of Document; for a query"):
            component.run(given)
    with pytest.raises(InputError, match=r"document .* has no text to embed"):
        component.run([Document(content=None)])
    assert component.run([]) == {"documents": []}


def test_a_megabyte_is_cut_at_max_length(folder: str) -> None:
    component: Any = EpicTextEmbedder(folder)
    assert component.run(LONG) == component.run(LONG[:2000])


def test_batch_size_is_heeded(folder: str, passes: Passes) -> None:
    component: Any = EpicDocumentEmbedder(folder, batch_size=2)
    component.run([Document(content=text) for text in "abcde"])
    assert passes.sizes == [2, 2, 1]


async def test_a_pipeline_finds_documents() -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    texts = [
        "shutil.copyfile: copy the contents of the file named src to a file named dst",
        "Inhaled medicines open the airways and reduce their inflammation.",
        "sorted returns a new list with its items in order.",
    ]
    embedder: Any = EpicDocumentEmbedder()
    store.write_documents(embedder.run([Document(content=text) for text in texts])["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", EpicTextEmbedder(task="web-search"))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    for query, expected in zip(("copy a file", "how is asthma treated"), texts, strict=False):
        given = {"embedder": {"text": query, "task": "python-docs"}}
        for found in (pipeline.run(given), await pipeline.run_async(given)):
            assert [one.content for one in found["retriever"]["documents"]] == [expected]
