"""sentence-transformers: the module inside a SentenceTransformer, saved, moved and copied."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from epic_retrieval import EpicEncoder, InputError, shared_encoder
from sentence_transformers_epic import EpicModule
from tests.integrations.common import BARE, LONG, PAIRS, SHOWN, SYMMETRIC, TEXTS
from tests.models import tiny_encoder


@pytest.fixture(scope="module")
def model(folder: str) -> SentenceTransformer:
    return SentenceTransformer(modules=[EpicModule(folder, SHOWN)])


def test_queries_stand_behind_the_task_and_documents_do_not(
    model: SentenceTransformer, encoder: EpicEncoder
) -> None:
    for text in TEXTS:
        query = encoder.encode_queries([text], SHOWN)[0]
        np.testing.assert_array_equal(model.encode_query(text), query)
        passage = encoder.encode_passages([text])[0]
        np.testing.assert_array_equal(model.encode_document(text), passage)
        np.testing.assert_array_equal(model.encode(text), passage)
    assert model.encode_query(TEXTS).shape == (len(TEXTS), encoder.dimension)
    assert model.get_embedding_dimension() == encoder.dimension
    assert model.max_seq_length == encoder.checkpoint.config.max_length


def test_another_task_for_a_call(model: SentenceTransformer, encoder: EpicEncoder) -> None:
    for task in ("python-docs", BARE):
        expected = encoder.encode_queries(["x"], task)[0]
        np.testing.assert_array_equal(model.encode_query("x", epic_task=task), expected)
    new = SHOWN.with_demonstrations(PAIRS[1:])
    model.encode_query("x", epic_task=new)
    assert not encoder._prefix(new, "epic").keys[0].is_inference()  # others may need it too
    symmetric = encoder.encode_passages(["x"], SYMMETRIC)[0]
    np.testing.assert_array_equal(model.encode_document("x", epic_task=SYMMETRIC), symmetric)
    np.testing.assert_array_equal(model.encode("x", epic_task=SYMMETRIC), symmetric)
    with pytest.raises(InputError, match="no built-in task"):
        model.encode_query("x", epic_task="web-serch")
    with pytest.raises(ValueError, match="does not use"):
        model.encode_query("x", epictask="python-docs")


def test_what_it_cannot_do_is_said(model: SentenceTransformer, encoder: EpicEncoder) -> None:
    with pytest.raises(InputError, match="what stands before a query is its task"):
        model.encode_query("x", prompt="query: ")
    with pytest.raises(InputError, match="means query or document by it"):
        model.encode("x", task="web-search")
    with pytest.raises(InputError, match="text 0 is empty"):
        model.encode_query("")
    for bad in (None, 3.5, ("a", "pair")):
        with pytest.raises((InputError, ValueError)):
            model.encode_query([bad])
    with pytest.raises(InputError, match="cannot be trained"):
        model.train()({"texts": ["x"]})
    with pytest.raises(AttributeError):
        model.max_seq_length = 8
    with pytest.raises(InputError, match=r"turned into torch.float16; load it with dtype="):
        model.half()
    assert model.encode([]).shape == (0,)
    with pytest.raises(InputError, match="together with dtype"):
        EpicModule(encoder=encoder, dtype="float32")
    with pytest.raises(InputError, match="'bare' has no demonstrations"):
        EpicModule(encoder=encoder, task=BARE, mode="epic")


def test_a_megabyte_is_cut_at_max_length(model: SentenceTransformer) -> None:
    np.testing.assert_array_equal(model.encode_query(LONG), model.encode_query(LONG[:2000]))


def test_tensors_and_batches(model: SentenceTransformer, encoder: EpicEncoder) -> None:
    found = model.encode_query(TEXTS, convert_to_tensor=True, batch_size=3)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), encoder.encode_queries(TEXTS, SHOWN), atol=1e-6)
    scores = model.similarity(found, found)
    np.testing.assert_allclose(scores.diagonal(), 1, atol=1e-6)


def test_saved_and_loaded(folder: str, tmp_path: Path) -> None:
    module = EpicModule(folder, instruction="Find it", demonstrations=PAIRS, mode="text")
    model = SentenceTransformer(modules=[module])
    expected = model.encode_query(TEXTS[1])
    out = tmp_path / "saved"
    model.save_pretrained(str(out))
    # sentence-transformers refuses every class that is not its own, installed or not ...
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(out))
    # ... so that there are two ways.
    ways = [
        SentenceTransformer(str(out), trust_remote_code=True),
        SentenceTransformer(modules=[EpicModule.load(str(out))]),
    ]
    for again in ways:
        found: Any = again[0]
        assert (found.task, found.mode) == (module.task, "text")
        np.testing.assert_array_equal(again.encode_query(TEXTS[1]), expected)
        np.testing.assert_array_equal(
            again.encode_document(TEXTS[1]), model.encode_document(TEXTS[1])
        )
    # What it saved is a checkpoint too.
    core = EpicEncoder.from_pretrained(out)
    np.testing.assert_array_equal(core.encode_queries([TEXTS[1]], module.task, "text")[0], expected)


def test_any_checkpoint_loads(folder: str, encoder: EpicEncoder) -> None:
    module = EpicModule.load(folder, model_kwargs={"dtype": torch.float32})
    assert module.task.name == "web-search"
    assert module.encoder.dimension == encoder.dimension


def test_moving_opens_the_model_there_and_disturbs_nobody(
    folder: str, encoder: EpicEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = EpicModule(folder, SHOWN)
    for here in ("cpu", "cpu:0"):
        assert module.to(here).encoder is encoder
    # Without a second device, that it would be opened there is all there is to see.
    opened, elsewhere = [], tiny_encoder()

    def open_encoder(**given: object) -> EpicEncoder:
        opened.append(given)
        return elsewhere

    monkeypatch.setattr("sentence_transformers_epic.module.open_encoder", open_encoder)
    model = SentenceTransformer(modules=[module], device="meta")
    assert opened == [{"model": folder, "device": torch.device("meta"), "dtype": None}]
    assert module.encoder is elsewhere
    assert encoder.device == model.device == torch.device("cpu")


def test_a_given_encoder_goes_nowhere(encoder: EpicEncoder) -> None:
    module = EpicModule(encoder=encoder)
    with pytest.raises(InputError, match=r"on cpu, and meta is asked for.*device='cpu'\)"):
        module.to("meta")
    assert module.to("cpu").encoder is encoder
    with pytest.raises(InputError, match="name the model with model="):
        pickle.dumps(module)


def test_copies_share_the_model_and_pickles_open_it_again(
    folder: str, model: SentenceTransformer
) -> None:
    expected = model.encode_query("x")
    twin: Any = copy.deepcopy(model)
    assert twin[0].encoder is shared_encoder(folder)
    sent = pickle.dumps(model)  # as ST does for its pool of processes
    assert len(sent) < 20_000
    for again in (twin, pickle.loads(sent)):  # noqa: S301
        np.testing.assert_array_equal(again.encode_query("x"), expected)
