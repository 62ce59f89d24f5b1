"""LlamaIndex: there is no standard suite, so its behaviours one by one, on its own classes."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import (
    Document,
    Settings,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from pydantic import ValidationError

from epic_retrieval import CheckpointError, EpicEncoder, InputError, Task, shared_encoder
from llama_index_epic import EpicEmbedding
from tests.integrations.common import BARE, LONG, PAIRS, SHOWN, SYMMETRIC, TEXTS, Passes, floats
from tests.models import tiny_encoder

FACTS = {
    "copy a file": "shutil.copyfile: copy the contents of the file named src to a file named dst",
    "how is asthma treated": "Inhaled medicines open the airways and reduce their inflammation.",
    "sort numbers in ascending order": "sorted returns a new list with its items in order.",
    "what are the symptoms of diabetes": "People with diabetes often feel thirsty and are tired.",
}


@pytest.fixture(scope="module")
def bundled() -> EpicEmbedding:
    return EpicEmbedding(task="web-search")


def test_queries_stand_behind_the_task_and_texts_do_not(folder: str, encoder: EpicEncoder) -> None:
    embedding = EpicEmbedding(folder, task=SHOWN)
    for text in TEXTS:
        query = encoder.encode_queries([text], SHOWN)[0]
        np.testing.assert_array_equal(floats(embedding.get_query_embedding(text)), query)
        passage = encoder.encode_passages([text])[0]
        np.testing.assert_array_equal(floats(embedding.get_text_embedding(text)), passage)
    queries = encoder.encode_queries(["a", "b"], SHOWN)
    np.testing.assert_allclose(
        embedding.get_agg_embedding_from_queries(["a", "b"]), queries.mean(axis=0), atol=1e-6
    )


def test_texts_of_a_symmetric_task_stand_behind_it_too(folder: str, encoder: EpicEncoder) -> None:
    embedding = EpicEmbedding(folder, task=SYMMETRIC)
    assert embedding.get_text_embedding("x") == embedding.get_query_embedding("x")
    assert embedding.get_text_embedding("x") != EpicEmbedding(folder).get_text_embedding("x")


async def test_texts_go_in_batches(folder: str, passes: Passes) -> None:
    texts = [f"text {i}" for i in range(20)]
    embedding = EpicEmbedding(folder)
    whole = embedding.get_text_embedding_batch(texts)
    assert passes.sizes == [20]
    assert await embedding.aget_text_embedding_batch(texts) == whole
    assert passes.sizes == [20, 20]
    small = EpicEmbedding(folder, embed_batch_size=8)
    for found in (
        small.get_text_embedding_batch(texts, show_progress=False),
        await small.aget_text_embedding_batch(texts),
    ):
        np.testing.assert_allclose(found, whole, atol=1e-6)
    assert passes.sizes[2:] == [8, 8, 4] * 2


async def test_asynchronous_texts_leave_the_loop_free(folder: str, passes: Passes) -> None:
    embedding = EpicEmbedding(folder, task=SHOWN, embed_batch_size=2, num_workers=3)
    assert await embedding.aget_query_embedding("x") == embedding.get_query_embedding("x")
    passes.threads.clear()
    found = await embedding.aget_text_embedding_batch(TEXTS)
    found.append(await embedding.aget_text_embedding("x"))
    assert threading.get_ident() not in passes.threads
    np.testing.assert_allclose(found, embedding.get_text_embedding_batch([*TEXTS, "x"]), atol=1e-6)


class Recorder(BaseEventHandler):
    events: list[Any] = []  # noqa: RUF012 (pydantic copies it)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **_: object) -> None:
        self.events.append(event)


async def test_instrumentation_events_fire(folder: str) -> None:
    recorder, debug = Recorder(), LlamaDebugHandler(print_trace_on_end=False)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(recorder)
    try:
        embedding = EpicEmbedding(
            folder, task=SHOWN, mode="none", callback_manager=CallbackManager([debug])
        )
        query = embedding.get_query_embedding("a query")
        texts = embedding.get_text_embedding_batch(["one", "two"])
        await embedding.aget_query_embedding("a query")
        await embedding.aget_text_embedding_batch(["one", "two"])
    finally:
        dispatcher.event_handlers.remove(recorder)
    starts = [event for event in recorder.events if isinstance(event, EmbeddingStartEvent)]
    ends = [event for event in recorder.events if isinstance(event, EmbeddingEndEvent)]
    assert len(starts) == len(ends) == 4
    assert [(event.chunks, event.embeddings) for event in ends] == [
        (["a query"], [query]),
        (["one", "two"], texts),
    ] * 2
    assert starts[0].model_dict == {
        "class_name": "EpicEmbedding",
        "model_name": folder,
        "embed_batch_size": 512,
        "task": "shown",
        "mode": "none",
    }
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 4


def test_dicts_and_json_hold_settings_without_weights(folder: str) -> None:
    embedding = EpicEmbedding(
        folder, task=SHOWN, mode="text", dtype="float32", embed_batch_size=7, num_workers=2
    )
    kept = embedding.to_dict()
    assert (kept["class_name"], kept["model_name"]) == ("EpicEmbedding", folder)
    for again in (
        EpicEmbedding.from_dict(kept),
        EpicEmbedding.from_json(embedding.to_json()),
        EpicEmbedding.model_validate_json(embedding.model_dump_json()),
        EpicEmbedding(**embedding.model_dump()),
    ):
        assert again.to_dict() == embedding.to_dict()
        assert (again.task, again.mode, again.num_workers) == (SHOWN, "text", 2)
        assert again._encoder is embedding._encoder
        assert again.get_query_embedding("x") == embedding.get_query_embedding("x")
    assert len(embedding.model_dump_json()) < 2000


def test_another_model_of_the_same_name_is_refused(folder: str, tmp_path: Path) -> None:
    kept = EpicEmbedding(folder).to_dict()
    tiny_encoder("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="is not the one that this adapter was saved with"):
        EpicEmbedding.from_dict(kept | {"model_name": str(tmp_path / "other")})
    # Another task of the same model has the same texts, unless it is symmetric.
    assert EpicEmbedding(folder, task=SHOWN).fingerprint == kept["fingerprint"]
    assert EpicEmbedding(folder, task=SYMMETRIC).fingerprint != kept["fingerprint"]


def test_copies_share_the_model_and_pickles_load_it_by_name(
    folder: str, encoder: EpicEncoder
) -> None:
    embedding = EpicEmbedding(folder, task=SHOWN, embed_batch_size=3)
    for twin in (copy.copy(embedding), copy.deepcopy(embedding), embedding.model_copy(deep=True)):
        assert twin._encoder is embedding._encoder
    sent = pickle.dumps(embedding)
    assert len(sent) < 2000
    again = pickle.loads(sent)  # noqa: S301
    assert again.to_dict() == embedding.to_dict()
    assert again.get_query_embedding("x") == embedding.get_query_embedding("x")
    with pytest.raises(InputError, match="name the model with model_name= instead"):
        pickle.dumps(EpicEmbedding(encoder=encoder))
    gone = pickle.dumps(EpicEmbedding(folder)).replace(folder.encode(), b"x" * len(folder))
    with pytest.raises(CheckpointError, match="no model at"):
        pickle.loads(gone)  # noqa: S301


def test_a_cache_that_would_mix_queries_and_texts_is_refused(folder: str) -> None:
    with pytest.raises(InputError, match="keys it by the text alone"):
        EpicEmbedding(folder, embeddings_cache=SimpleKVStore())
    embedding = EpicEmbedding(folder)
    with pytest.raises(ValidationError, match="frozen"):
        embedding.embeddings_cache = SimpleKVStore()


@pytest.mark.parametrize("name", ["model_name", "task", "mode", "device", "dtype", "fingerprint"])
def test_what_decides_vectors_cannot_be_changed(folder: str, name: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(EpicEmbedding(folder), name, "none")


def test_with_task_shares_the_model_and_keeps_the_settings(folder: str) -> None:
    first = EpicEmbedding(folder, task="python-docs", embed_batch_size=7)
    second = first.with_task(SYMMETRIC)
    assert (second.task, second.embed_batch_size) == (SYMMETRIC, 7)
    assert second._encoder is first._encoder
    assert second.to_dict() == EpicEmbedding(folder, task=SYMMETRIC, embed_batch_size=7).to_dict()
    assert second.get_query_embedding("x") != first.get_query_embedding("x")
    assert first.task.name == "python-docs"
    with pytest.raises(InputError, match="no built-in task"):
        first.with_task("no-such-task")
    with pytest.raises(InputError, match="'bare' has no demonstrations"):
        EpicEmbedding(folder, mode="epic").with_task(BARE)


def test_settings_are_checked_at_construction(
    folder: str, encoder: EpicEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = EpicEmbedding(folder, instruction="Find it", demonstrations=[("one", "two")])
    assert made.task == Task("custom", "Find it", PAIRS[:1])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"task": "web-serch"}, "no built-in task"),
        ({"task": BARE, "mode": "epic"}, "'bare' has no demonstrations"),
        ({"task": SHOWN, "instruction": "x"}, "pass either a task"),
        ({"encoder": encoder}, "together with model; pass either"),
        ({"embed_batch_size": 0}, "greater than 0"),
        ({"tsk": "web-search"}, "Extra inputs are not permitted"),
        ({"mode": "epci"}, "epci"),
    ]
    for settings, message in refused:
        with pytest.raises(ValueError, match=message):
            EpicEmbedding(folder, **settings)
    with pytest.raises(CheckpointError, match="no model at"):
        EpicEmbedding(str(tmp_path / "absent"))
    monkeypatch.setenv("EPIC_MODEL", folder)
    assert EpicEmbedding()._encoder is EpicEmbedding(Path(folder))._encoder is encoder
    assert EpicEmbedding(encoder=shared_encoder("epic-mini")).model_name == "epic-mini"


@pytest.mark.parametrize("text", [None, 3.5, b"bytes", "", " \n"])
async def test_what_is_no_text(folder: str, text: Any) -> None:  # noqa: ANN401
    embedding = EpicEmbedding(folder)
    for call in (embedding.get_query_embedding, embedding.get_text_embedding):
        with pytest.raises(InputError, match="text 0 is"):
            call(text)
    with pytest.raises(InputError, match="text 1 is"):
        embedding.get_text_embedding_batch(["fine", text])
    with pytest.raises(InputError, match="text 0 is"):
        await embedding.aget_query_embedding(text)
    with pytest.raises(InputError, match="text 1 is"):
        await embedding.aget_text_embedding_batch(["fine", text])


def test_nothing_and_a_megabyte(folder: str) -> None:
    embedding = EpicEmbedding(folder)
    assert embedding.get_text_embedding_batch([]) == []
    assert embedding.get_query_embedding(LONG) == embedding.get_query_embedding(LONG[:2000])


def nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=str(i)) for i, text in enumerate(FACTS.values())]


@pytest.mark.parametrize("use_async", [False, True])
async def test_an_index_finds_texts_also_inside_a_running_loop(
    bundled: EpicEmbedding, use_async: bool
) -> None:
    index = VectorStoreIndex(nodes(), embed_model=bundled, use_async=use_async)
    retriever = index.as_retriever(similarity_top_k=2)
    for number, query in enumerate(FACTS):
        found, also = retriever.retrieve(query), await retriever.aretrieve(query)
        assert found[0].node_id == also[0].node_id == str(number)
        expected = np.dot(
            bundled.get_query_embedding(query), bundled.get_text_embedding(FACTS[query])
        )
        assert found[0].score == pytest.approx(expected, abs=1e-5)


def test_an_index_outlives_its_demonstrations(
    folder: str, tmp_path: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = EpicEmbedding(folder, task=SHOWN)
    index = VectorStoreIndex(nodes(), embed_model=embedding)
    index.storage_context.persist(str(tmp_path))
    passes.sizes.clear()
    changed = embedding.with_task(SHOWN.with_demonstrations(PAIRS[:1]))
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = changed
    again: Any = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)))
    found = again.as_retriever(similarity_top_k=1).retrieve("a query")
    queries = changed._encoder.encode_queries(["a query"], changed.task)
    vectors = changed._encoder.encode_passages(list(FACTS.values()))
    assert int(found[0].node_id) == int((queries @ vectors.T).argmax())
    assert Settings.embed_model is changed


class BestSentence(CustomLLM):
    """A deterministic stand-in: the line of the context that shares most words with the query."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_kw: Any) -> CompletionResponse:  # noqa: ANN401, ARG002
        _, context, rest = prompt.split("---------------------")
        query = set(rest.lower().split("query:")[1].split())
        lines = [line for line in context.strip().splitlines() if line]
        return CompletionResponse(
            text=max(lines, key=lambda line: len(query & set(line.lower().split())))
        )

    def stream_complete(self, prompt: str, formatted: bool = False, **_kw: Any) -> Any:  # noqa: ANN401
        raise NotImplementedError


def test_a_query_engine_answers(bundled: EpicEmbedding) -> None:
    index = VectorStoreIndex(nodes(), embed_model=bundled)
    engine = index.as_query_engine(llm=BestSentence(), similarity_top_k=1)
    for query, fact in FACTS.items():
        assert str(engine.query(query)) == fact
    mocked = index.as_query_engine(llm=MockLLM(), similarity_top_k=1)
    assert FACTS["copy a file"] in str(mocked.query("copy a file"))


def test_an_ingestion_pipeline_embeds_once(folder: str, passes: Passes) -> None:
    store, cache = SimpleVectorStore(), IngestionCache()
    embedding = EpicEmbedding(folder, task=SHOWN)
    pipeline = IngestionPipeline(transformations=[embedding], vector_store=store, cache=cache)
    first = pipeline.run(nodes=nodes())
    assert passes.sizes == [4]
    assert [node.embedding for node in pipeline.run(nodes=nodes())] == [
        node.embedding for node in first
    ]
    assert passes.sizes == [4]
    expected = embedding._encoder.encode_passages([node.text for node in nodes()])
    np.testing.assert_array_equal(floats([node.embedding for node in first]), expected)
    assert len(store.data.embedding_dict) == 4
    # The cache knows the model and the task of its texts.
    other = IngestionPipeline(transformations=[embedding.with_task(SYMMETRIC)], cache=cache)
    assert other.run(nodes=nodes())[0].embedding != first[0].embedding


@pytest.mark.filterwarnings("ignore:Specified num_workers")
def test_an_ingestion_pipeline_works_in_other_processes(folder: str, encoder: EpicEncoder) -> None:
    pipeline = IngestionPipeline(transformations=[EpicEmbedding(folder, task=SYMMETRIC)])
    # One document keeps one of the two processes idle, and so the test short: each of them takes
    # ten seconds to import what a model needs.
    (found,) = pipeline.run(documents=[Document(text=TEXTS[0])], num_workers=2)
    expected = encoder.encode_passages([found.get_content()], SYMMETRIC)
    np.testing.assert_array_equal(floats([found.embedding]), expected)
