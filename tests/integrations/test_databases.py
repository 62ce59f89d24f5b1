"""The examples of vector databases: each finds what exact search over core's own vectors finds."""

import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_retrieval import EpicEncoder, as_task, shared_encoder

EXAMPLES = Path(__file__).resolve().parents[2] / "integrations" / "examples" / "databases"
ROWS = [json.loads(line) for line in (EXAMPLES / "help-articles.jsonl").read_text().splitlines()]
# What each store calls a score, as a cosine.
COSINES: dict[str, Callable[[float], float]] = {
    "chroma_langchain": lambda distance: 1 - distance,
    "chroma_llama_index": lambda score: 1 + math.log(score),
    "lancedb_llama_index": lambda score: 1 + math.log(score) / 2,
    "qdrant_langchain": lambda score: score,
    "qdrant_llama_index": lambda score: score,
}


@pytest.fixture(scope="module")
def passages() -> Any:  # noqa: ANN401
    return shared_encoder().encode_passages([row["text"] for row in ROWS])


def exact(passages: Any, message: str, task: str, platform: str | None) -> dict[str, float]:  # noqa: ANN401
    """The five nearest articles and their cosines, the nearest first."""
    query = shared_encoder().encode_queries([message], as_task(task), "epic")[0]
    cosines = {
        row["_id"]: float(passage @ query)
        for row, passage in zip(ROWS, passages, strict=True)
        if platform in {None, row["platform"]}
    }
    return dict(sorted(cosines.items(), key=lambda item: -item[1])[:5])


# LanceDB's class for LlamaIndex calls what LanceDB calls deprecated.
@pytest.mark.filterwarnings("ignore:table_names:DeprecationWarning")
# LlamaIndex makes payload indexes also where Qdrant is local and has none.
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
@pytest.mark.parametrize("name", sorted(COSINES))
def test_a_database_outlives_its_demonstrations(
    name: str,
    passages: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[str] = []
    encode = EpicEncoder.encode_passages

    def watched(self: EpicEncoder, texts: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        encoded.extend(texts)
        return encode(self, texts, *given, **named)

    monkeypatch.setattr(EpicEncoder, "encode_passages", watched)
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    result = example["main"](tmp_path / "database")
    for key, task, platform in (
        ("shipped", "support-tickets", None),
        ("own", str(EXAMPLES / "help-desk.yaml"), None),
        ("android", str(EXAMPLES / "help-desk.yaml"), "android"),
    ):
        expected = exact(passages, example["MESSAGE"], task, platform)
        assert [found for found, _ in result[key]] == list(expected), key
        cosines = [COSINES[name](score) for _, score in result[key]]
        np.testing.assert_allclose(cosines, list(expected.values()), atol=1e-5)
    assert result["shipped"] != result["own"]
    assert result["unchanged"]
    # Qdrant's class for LangChain embeds "dummy_text" to see that the sizes agree.
    assert [text for text in encoded if text != "dummy_text"] == [row["text"] for row in ROWS]


def test_qdrant_takes_what_is_there(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "qdrant_langchain.py"))
    first, second = (example["main"](tmp_path / "database") for _ in range(2))
    assert [name for name, _ in second["shipped"]] == [name for name, _ in first["shipped"]]
    assert second["unchanged"]


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(COSINES)
