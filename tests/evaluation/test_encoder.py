"""MtebEncoder: which side gets a prompt, what a document is, and mteb's own test of an encoder."""

from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from epic_retrieval import EpicEncoder, InputError, Task
from epic_retrieval.evaluation.encoder import MtebEncoder, contents
from epic_retrieval.evaluation.instructions import Instructions
from epic_retrieval.evaluation.local import find_local
from epic_retrieval.evaluation.local_tasks import local_task
from epic_retrieval.evaluation.memory import VectorMemory
from epic_retrieval.evaluation.metadata import model_meta, organised, result_key
from epic_retrieval.index import Passage
from epic_retrieval.prompt import Mode
from sentence_transformers_epic import EpicModule
from tests.evaluation import sets
from tests.models import tiny_encoder

ASYMMETRIC = Task("t", "Find what answers", sets.SHOWN)
SYMMETRIC = Task("t", "Find what means the same", sets.SHOWN, symmetric=True)
TEXTS = ["a red fish", "a bird\nsleeps"]


@pytest.fixture(scope="module")
def encoder() -> EpicEncoder:
    return tiny_encoder()


def metadata(kind: str, folder: Path) -> Any:  # noqa: ANN401
    return local_task(find_local(str(sets.KINDS[kind](folder / "set")))).metadata


@pytest.mark.parametrize("mode", ["none", "text", "epic"])
@pytest.mark.parametrize("task", [ASYMMETRIC, SYMMETRIC], ids=["asymmetric", "symmetric"])
def test_which_side_gets_the_prompt(
    mode: Mode, task: Task, encoder: EpicEncoder, tmp_path: Path
) -> None:
    model = MtebEncoder(encoder, mode, Instructions(tasks={"set": task}))
    about: dict[str, Any] = {
        "task_metadata": metadata("retrieval", tmp_path),
        "hf_split": "test",
        "hf_subset": "default",
    }
    asked = encoder.encode_queries(TEXTS, task, mode)
    told = encoder.encode_passages(TEXTS, task, mode)
    assert np.array_equal(asked, told) is task.symmetric
    for prompt_type, expected in (
        (PromptType.query, asked),
        (PromptType.document, told),
        (None, asked),  # both sides of pairs, and what is classified or clustered
    ):
        found = model.encode([{"text": TEXTS}], prompt_type=prompt_type, **about)
        np.testing.assert_array_equal(found, expected)


def test_a_document_is_what_an_index_holds() -> None:
    batch = {
        "title": ["A title", "", "Only a title"],
        "body": [" a text ", "a text", ""],
        "text": ["A title  a text ", "a text", "Only a title"],  # as mteb joins them
    }
    passages = [
        Passage("1", " a text ", "A title"),
        Passage("2", "a text"),
        Passage("3", "", "Only a title"),
    ]
    assert contents(batch) == [passage.content for passage in passages]
    assert contents({"text": ["a text"]}) == ["a text"]


def test_blank_texts_are_similar_to_nothing(encoder: EpicEncoder, tmp_path: Path) -> None:
    model = MtebEncoder(encoder)
    about = metadata("retrieval", tmp_path)
    vectors = model.encode(
        [{"text": ["x", " "]}, {"text": ["", "y"]}],
        task_metadata=about,
        hf_split="test",
        hf_subset="default",
    )
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0, 1], atol=1e-6)
    with pytest.raises(InputError, match="the columns image and no text"):
        model.encode([{"image": [1]}], task_metadata=about, hf_split="test", hf_subset="default")


# What mteb does with vectors, and sklearn with its four texts.
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Precision is ill-defined")
def test_mteb_accepts_it(encoder: EpicEncoder) -> None:
    model = MtebEncoder(encoder)
    assert isinstance(model, EncoderProtocol)
    results = mteb.mock_run(model)
    ran = [name for name, result in results.items() if result is not None]
    assert results.all_passed
    assert len(ran) > 20


def test_metadata_describe_the_model(encoder: EpicEncoder) -> None:
    meta = model_meta(encoder, "epic")
    assert meta.name == "local/tiny-qwen3"
    assert meta.embed_dim == encoder.dimension
    assert meta.max_tokens == encoder.checkpoint.config.max_length
    assert meta.n_embedding_parameters == 400 * 32
    assert meta.revision == encoder.passage_fingerprint()[:16]
    assert organised("Qwen/Qwen3") == "Qwen/Qwen3"


def test_weights_laid_out_for_a_cpu_are_counted(tiny_encoder_folder: Path) -> None:
    plain, packed = tiny_encoder(), EpicEncoder.from_pretrained(tiny_encoder_folder, device="cpu")
    whole = model_meta(plain, "none").n_parameters
    assert model_meta(packed, "none").n_parameters == whole
    rounded = EpicEncoder.from_pretrained(tiny_encoder_folder, device="cpu", dtype="int8")
    assert model_meta(rounded, "none").n_parameters == whole


def test_a_key_changes_with_what_decides_a_score(encoder: EpicEncoder) -> None:
    other = Task("t", "Find what answers", sets.OTHERS)
    assert result_key(encoder, ASYMMETRIC, "none", "d") == result_key(encoder, other, "none", "d")
    for mode in ("text", "epic"):
        keys = {
            result_key(encoder, ASYMMETRIC, mode, "d"),
            result_key(encoder, other, mode, "d"),
            result_key(encoder, ASYMMETRIC, mode, "other data"),
            result_key(encoder, Task("t", "Find", sets.SHOWN), mode, "d"),
            result_key(encoder, ASYMMETRIC, "none", "d"),
            result_key(tiny_encoder("llama"), ASYMMETRIC, mode, "d"),
        }
        assert len(keys) == 6


def test_modes_share_documents(tmp_path: Path) -> None:
    encoder, memory = tiny_encoder(), VectorMemory()
    asked = sets.Asked(encoder)
    about: dict[str, Any] = {
        "task_metadata": metadata("retrieval", tmp_path),
        "hf_split": "test",
        "hf_subset": "default",
        "prompt_type": PromptType.document,
    }
    instructions = Instructions(tasks={"set": ASYMMETRIC})
    first, second = (
        MtebEncoder(encoder, mode, instructions, memory=memory).encode([{"text": TEXTS}], **about)
        for mode in ("none", "epic")
    )
    np.testing.assert_array_equal(first, second)
    assert asked.passages == TEXTS
    MtebEncoder(encoder, "none", instructions, memory=memory).encode([{"text": ["z"]}], **about)
    assert asked.passages == [*TEXTS, "z"]


def test_memory_forgets_what_was_longest_not_asked_for() -> None:
    memory = VectorMemory(limit=3 * 4 * 2)
    made: list[str] = []

    def get(name: str, rows: int = 1) -> None:
        def make() -> NDArray[np.float32]:
            made.append(name)
            return np.zeros((rows, 2), np.float32)

        memory.get(name, make)

    for name in "abcaada":
        get(name)
    get("b")
    get("large", rows=9)
    get("large", rows=9)
    assert made == [*"abcd", "b", "large", "large"]


# mteb uses older names, of sentence-transformers and of its own.
@pytest.mark.filterwarnings("ignore:.*get_sentence_embedding_dimension:FutureWarning")
@pytest.mark.filterwarnings("ignore:The fill_missing parameter:DeprecationWarning")
@pytest.mark.parametrize("kind", ["retrieval", "reranking", "sts", "classification"])
def test_the_same_score_as_by_sentence_transformers(
    kind: str, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    task = ASYMMETRIC if kind in {"retrieval", "reranking"} else SYMMETRIC
    folder = sets.KINDS[kind](tmp_path / "set")
    if kind == "retrieval":
        rows = (folder / "corpus.jsonl").read_text().replace("Title", " ")
        for number in range(20):
            rows = rows.replace(f'"title": "  {number}"', '"title": ""')
        (folder / "corpus.jsonl").write_text(rows)  # titles are joined in two ways
    encoder = EpicEncoder.from_pretrained(tiny_encoder_folder, device="cpu")
    ours: Any = MtebEncoder(encoder, "epic", Instructions(tasks={"set": task}))
    theirs: Any = SentenceTransformer(modules=[EpicModule(task=task, mode="epic", encoder=encoder)])
    scores = [
        mteb.evaluate(
            model, local_task(find_local(str(folder))), cache=None, show_progress_bar=False
        )
        .task_results[0]
        .get_score()
        for model in (ours, theirs)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
