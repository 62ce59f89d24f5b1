"""What holds for every adapter: core's vectors bit by bit, shared passes, no deadlock, the door."""

import ast
import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from haystack import Document
from sentence_transformers import SentenceTransformer

import haystack_epic
import langchain_epic
import llama_index_epic
from epic_retrieval import EpicEncoder, Task, shared_encoder
from epic_retrieval.prompt import MODES, Mode
from haystack_epic import EpicDocumentEmbedder, EpicTextEmbedder
from langchain_epic import EpicEmbeddings
from llama_index_epic import EpicEmbedding
from sentence_transformers_epic import EpicModule
from tests.integrations.common import SHOWN, SYMMETRIC, TEXTS, Passes, floats, run_python

Floats = list[float]
Query = Callable[[str], Floats]


def queries_of(settings: dict[str, Any]) -> dict[str, Query]:
    """How each adapter embeds a query."""
    named = {"model_name" if name == "model" else name: settings[name] for name in settings}
    model = SentenceTransformer(modules=[EpicModule(**settings)])
    return {
        "langchain": EpicEmbeddings(**settings).embed_query,
        "llama-index": EpicEmbedding(**named).get_query_embedding,
        "haystack": lambda text: EpicTextEmbedder(**settings).run(text)["embedding"],
        "sentence-transformers": lambda text: model.encode_query(text).tolist(),
    }


def documents_of(settings: dict[str, Any]) -> dict[str, Callable[[list[str]], list[Floats]]]:
    """How each adapter embeds documents, one batch of them."""
    named = {"model_name" if name == "model" else name: settings[name] for name in settings}
    model = SentenceTransformer(modules=[EpicModule(**settings)])

    def haystack(texts: list[str]) -> list[Floats]:
        component = EpicDocumentEmbedder(**settings)
        found = component.run([Document(content=text) for text in texts])["documents"]
        return [document.embedding or [] for document in found]

    return {
        "langchain": EpicEmbeddings(**settings).embed_documents,
        "llama-index": EpicEmbedding(**named).get_text_embedding_batch,
        "haystack": haystack,
        "sentence-transformers": lambda texts: model.encode_document(texts).tolist(),
    }


@pytest.mark.parametrize("mode", MODES)
def test_the_same_query_has_the_same_bits_everywhere(
    folder: str, encoder: EpicEncoder, mode: Mode
) -> None:
    for name, embed in queries_of({"model": folder, "task": SHOWN, "mode": mode}).items():
        for text in TEXTS:
            expected = encoder.encode_queries([text], SHOWN, mode)[0]
            np.testing.assert_array_equal(floats(embed(text)), expected, err_msg=name)


def test_the_same_query_has_the_same_bits_everywhere_on_the_bundled_model() -> None:
    text = "how do I stop\nwaiting for a process?"
    expected = shared_encoder().encode_queries([text], "python-docs")[0]
    for name, embed in queries_of({"task": "python-docs"}).items():
        np.testing.assert_array_equal(floats(embed(text)), expected, err_msg=name)


@pytest.mark.parametrize("task", [SHOWN, SYMMETRIC])
def test_documents_agree_and_take_the_prompt_of_a_symmetric_task(
    folder: str, encoder: EpicEncoder, task: Task
) -> None:
    bare = encoder.encode_passages(TEXTS)
    expected = encoder.encode_passages(TEXTS, task, "epic")
    assert (np.abs(expected - bare).max() > 1e-3) == task.symmetric
    for name, embed in documents_of({"model": folder, "task": task, "mode": "epic"}).items():
        vectors = floats(embed(TEXTS))
        # sentence-transformers orders texts by length first, and a batch's order rounds.
        np.testing.assert_allclose(vectors, expected, atol=1e-6, err_msg=name)


def asked_of(settings: dict[str, Any]) -> dict[str, Callable[[str], Awaitable[Floats]]]:
    """How each adapter embeds a query asynchronously."""
    named = {"model_name" if name == "model" else name: settings[name] for name in settings}
    component = EpicTextEmbedder(**settings)
    component.warm_up()

    async def haystack(text: str) -> Floats:
        found: Floats = (await component.run_async(text))["embedding"]
        return found

    return {
        "langchain": EpicEmbeddings(**settings).aembed_query,
        "llama-index": EpicEmbedding(**named).aget_query_embedding,
        "haystack": haystack,
    }


@pytest.mark.parametrize("adapter", ["langchain", "llama-index", "haystack"])
@pytest.mark.parametrize("bundled", [True, False])
async def test_32_concurrent_queries_share_forward_passes(
    folder: str, bundled: bool, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"task": SHOWN} if bundled else {"task": SHOWN, "model": folder}
    ask = asked_of(settings)[adapter]
    encoder = shared_encoder() if bundled else shared_encoder(folder)
    queries = [f"question number {i}, in {i % 7 + 1} words" for i in range(32)]
    alone = [encoder.encode_queries([one], SHOWN)[0] for one in queries]
    passes = Passes(encoder, monkeypatch)
    passes.hold()
    asked = [asyncio.ensure_future(ask(one)) for one in queries]
    for _ in range(5):
        await asyncio.sleep(0)  # now all of them stand in the queue, or run
    passes.release()
    vectors = await asyncio.wait_for(asyncio.gather(*asked), 60)
    assert sum(passes.sizes) == 32
    assert len(passes.sizes) <= 2
    assert passes.threads.isdisjoint({threading.get_ident()})
    np.testing.assert_allclose(floats(vectors), alone, atol=2e-6)


async def test_adapters_of_one_model_share_passes_among_each_other(
    folder: str, passes: Passes
) -> None:
    asks = list(asked_of({"task": SHOWN, "model": folder}).values())
    passes.hold()
    asked = [asyncio.ensure_future(asks[i % 3](f"query {i}")) for i in range(12)]
    for _ in range(5):
        await asyncio.sleep(0)
    passes.release()
    await asyncio.wait_for(asyncio.gather(*asked), 60)
    assert sum(passes.sizes) == 12
    assert len(passes.sizes) <= 2


async def test_a_synchronous_call_inside_a_running_loop_waits_for_nobody(folder: str) -> None:
    embeddings = EpicEmbeddings(model=folder, task=SHOWN)
    waiting = [asyncio.ensure_future(embeddings.aembed_query(f"query {i}")) for i in range(8)]
    await asyncio.sleep(0)
    inside = embeddings.embed_query("query 3")  # the loop stands still meanwhile
    vectors = await asyncio.wait_for(asyncio.gather(*waiting), 60)
    np.testing.assert_allclose(vectors[3], inside, atol=2e-6)


NOTEBOOK = """
import asyncio, sys
from langchain_epic import EpicEmbeddings
print({"torch", "faiss"} & set(sys.modules))

import nest_asyncio

embeddings = EpicEmbeddings(model=sys.argv[1])
nest_asyncio.apply()  # as notebooks do, so that a cell may start a loop inside the running one

async def gathered():
    return await asyncio.gather(*(embeddings.aembed_query(f"query {i}") for i in range(32)))

async def cell():
    found = asyncio.run(gathered())
    found += asyncio.get_event_loop().run_until_complete(gathered())
    return found + await gathered() + [embeddings.embed_query("last")]

print(len(asyncio.run(asyncio.wait_for(cell(), 60))))
"""


def test_a_notebook_meets_no_deadlock_and_imports_at_once(folder: str) -> None:
    assert run_python(NOTEBOOK, folder).splitlines() == ["set()", "97"]


@pytest.mark.parametrize("adapter", [haystack_epic, langchain_epic, llama_index_epic])
def test_importing_an_adapter_loads_no_model_code(adapter: ModuleType) -> None:
    # sentence-transformers loads torch itself.
    (path,) = Path(adapter.__path__[0]).glob("emb*.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "epic_retrieval":
            assert not {"EpicEncoder", "EncoderPool", "PassageIndex"} & {
                one.name for one in node.names
            }


DOORS = {
    "langchain_epic": ("langchain_core", "langchain-core", "langchain"),
    "llama_index_epic": ("llama_index", "llama-index-core", "llama-index"),
    "haystack_epic": ("haystack", "haystack-ai", "haystack"),
    "sentence_transformers_epic": (
        "sentence_transformers",
        "sentence-transformers",
        "sentence-transformers",
    ),
}


@pytest.mark.parametrize("package", DOORS)
def test_a_missing_framework_is_said_with_the_command(package: str) -> None:
    blocked, distribution, extra = DOORS[package]
    code = (
        "import sys; sys.modules[sys.argv[2]] = None\n"
        "from epic_retrieval import MissingExtraError\n"
        "try: __import__(sys.argv[1])\n"
        "except MissingExtraError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    message, torch_too = run_python(code, package, blocked).splitlines()
    assert message.startswith(f"{package} needs {distribution}")
    assert f"pip install 'epic-retrieval[{extra}]'" in message
    assert torch_too == "False"
