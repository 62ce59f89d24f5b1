"""The examples that answer questions: what they retrieve and quote, beside exact search by core."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_retrieval import shared_encoder

EXAMPLES = Path(__file__).resolve().parents[2] / "integrations" / "examples"


def loaded(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(scope="module")
def langchain(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    return loaded("rag_langchain")["main"](tmp_path_factory.mktemp("langchain") / "index")


@pytest.fixture(scope="module")
def llama_index(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    return loaded("rag_llama_index")["main"](tmp_path_factory.mktemp("llama-index") / "index")


def summary(answers: Any, name: str) -> list[tuple[str, list[str], str]]:  # noqa: ANN401
    """Question, ids of passages and answer, where `name` is what the framework calls an id."""
    return [
        (one["question"], [getattr(found, name) for found in one["passages"]], one["answer"])
        for one in answers
    ]


def test_every_framework_reads_and_says_the_same(langchain: Any, llama_index: Any) -> None:  # noqa: ANN401
    expected = summary(langchain, "id")
    assert summary(llama_index, "node_id") == expected
    assert summary(loaded("rag_haystack")["main"](), "id") == expected


def test_the_passages_are_the_nearest(langchain: Any) -> None:  # noqa: ANN401
    documents = loaded("rag_langchain")["documents"]()
    vectors = shared_encoder().encode_passages([one.page_content for one in documents])
    questions = [one["question"] for one in langchain]
    queries = shared_encoder().encode_queries(questions, "python-docs", "epic")
    for row, one in zip(np.argsort(-(queries @ vectors.T), axis=1), langchain, strict=True):
        assert [passage.id for passage in one["passages"]] == [documents[at].id for at in row[:3]]


def test_answers_are_quoted(langchain: Any) -> None:  # noqa: ANN401
    for one in langchain:
        assert any(one["answer"] in passage.page_content for passage in one["passages"])
    [folder] = [one for one in langchain if one["question"].startswith("a temporary folder")]
    assert folder["answer"].startswith("tempfile.TemporaryDirectory")
    assert "temporary directory" in folder["answer"]


@pytest.mark.parametrize(
    "path",
    [one for one in EXAMPLES.rglob("*.py") if one.stem != "rag_haystack"],
    ids=lambda p: p.stem,
)
def test_without_a_folder_they_say_how_they_are_called(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(path)])
    with pytest.raises(
        SystemExit, match=f"usage: python integrations/examples/.*{path.name} FOLDER"
    ):
        runpy.run_path(str(path), run_name="__main__")
