import json
from pathlib import Path
from typing import Any

import yaml

from epic_training.development import DevelopmentScore
from epic_training.model_card import write_model_card
from tests.conftest import ROOT

CONFIG = yaml.safe_load((ROOT / "training" / "configs" / "bundled.yaml").read_text())
METAS: dict[str, dict[str, Any]] = {
    "gsm8k": {"pairs": 7473, "licence": "MIT"},
    "tldr": {"pairs": 12},
}


def card(folder: Path, scores: list[DevelopmentScore]) -> str:
    (folder / "model.safetensors").write_bytes(bytes(2_500_000))
    (folder / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 256}')
    log = {
        # Killed after 20 minutes, resumed, finished 10 minutes later.
        "pretrain": [
            {"step": 50 * n, "seconds": s} for n, s in enumerate((600.0, 1200.0, 300.0, 600.0))
        ],
        "contrastive": [{"step": 50, "seconds": 70.0}],
    }
    write_model_card(folder, CONFIG, METAS, log, scores)
    return (folder / "README.md").read_text()


def test_card(tmp_path: Path) -> None:
    scores = [
        DevelopmentScore("gsm8k", 70, 0.5, (0.6, 0.7, 0.8)),
        DevelopmentScore("tldr", 9, 0.3, (0.3, 0.3, 0.3)),
    ]
    text = card(tmp_path, scores)
    assert "(4 layers, 256 wide,\n2.5 MB in float16)" in text
    assert "(30 minutes)" in text
    assert "(1 minute)" in text
    assert "| gsm8k | 70 | 0.500 | 0.700 (0.600 to 0.800) |" in text
    assert "| **mean** | | **0.400** | **0.500** |" in text
    assert "- gsm8k: 7,473 pairs, MIT" in text
    assert "- tldr: 12 pairs, licence in its own meta.json" in text
    assert json.loads((tmp_path / "development.json").read_text())[0] == {
        "name": "gsm8k",
        "pairs": 70,
        "none": 0.5,
        "shown": [0.6, 0.7, 0.8],
    }


def test_card_without_scores(tmp_path: Path) -> None:
    assert "| no data set has held-out pairs |" in card(tmp_path, [])
    assert json.loads((tmp_path / "development.json").read_text()) == []
