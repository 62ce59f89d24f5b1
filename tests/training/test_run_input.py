"""Data as people have it, through whole runs: trained on as defined, or a clear error."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from epic_retrieval import EpicError, InputError
from epic_training.run import _Trainer, dry_run, train
from tests.training.runs import ASKED, configured, losses, records, write_mix, write_toy_run
from tests.training.samples import write_lines, write_pairs

ROWS = [{"query": f"question {n}", "positive": f"answer {n}"} for n in range(24)]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than a toy run."""
    monkeypatch.setattr("epic_training.curves.draw_curves", lambda _records, _path: None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy")).parent


def mix_of(toy: Path, rows: Sequence[Mapping[str, object]], **settings: object) -> str:
    """The name of a mix of one data set, `given`, with these rows."""
    write_pairs(toy / "data" / "given", rows)
    write_mix(toy / "given.yaml", {"given": {"instruction": ASKED} | settings})
    return "given.yaml"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "q"}, "positive"),
        ({"query": "q", "positive": ""}, "positive .*blank"),
        ({"query": " \n", "positive": "p"}, "query .*blank"),
        ({"query": "q", "positive": 7}, "positive .*7"),
        ({"query": "q", "positive": []}, "no positive"),
        ({"query": "q", "positive": "\ud800"}, "surrogate"),
        ("no JSON", "JSON"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_trained(
    row: object, said: str, toy: Path, tmp_path: Path
) -> None:
    lines = [json.dumps(one) for one in ROWS]
    lines[16] = row if isinstance(row, str) else json.dumps(row)
    mix_of(toy, ROWS)
    write_lines(toy / "data" / "given", lines)
    for doing in (lambda c: train(c, tmp_path / "out"), dry_run):
        with pytest.raises(InputError, match=f"given.*pairs.jsonl.gz, line 17.*{said}"):
            doing(configured(toy, mix="given.yaml"))
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_is_not_there(toy: Path, tmp_path: Path) -> None:
    write_mix(toy / "absent.yaml", {"absent": {"instruction": ASKED}})
    with pytest.raises(InputError, match=r"absent\.yaml: dataset 'absent': .*absent"):
        train(configured(toy, mix="absent.yaml"), tmp_path / "out")
    with pytest.raises(InputError, match=r"none\.yaml"):
        train(configured(toy, mix="none.yaml"), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ratio": 0}, "ratio is 0; remove the dataset instead"),
        ({"rato": 1}, "rato"),
        ({"development": 100}, "development is 100"),
    ],
)
def test_a_bad_mix(settings: dict[str, object], said: str, toy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"given\.yaml: dataset 'given': .*{said}"):
        train(configured(toy, mix=mix_of(toy, ROWS, **settings)), tmp_path / "out")


def test_a_data_set_smaller_than_a_batch_gives_smaller_batches(
    toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = ["batches.size=64", "demonstrations.groups=4", "batches.workers=2"]
    train(configured(toy, *chosen, mix=mix_of(toy, ROWS[:3])), tmp_path / "out")
    assert "batches of 3 rows instead of 64" in caplog.text
    assert len(losses(tmp_path / "out")) == 4
    negatives = [one["negatives"] for one in records(tmp_path / "out")]
    assert negatives == [2.0] * 4
    with pytest.raises(InputError, match=r"'given' has 1 rows .* at least 2"):
        train(configured(toy, mix=mix_of(toy, ROWS[:1])), tmp_path / "one")


@pytest.mark.parametrize("regime", ["epic", "text"])
def test_all_languages_emoji_and_long_texts(regime: str, toy: Path, tmp_path: Path) -> None:
    texts = [
        "Wo lebt der Igel? 🦔",
        "猫はどこに住んでいますか",
        "أين يعيش البومة؟",
        "👩‍👩‍👧‍👦 🇫🇷 " * 9,
        "</s> <s> <pad> Instruct: x\nQuery: y",
        "e\u0301 \u200b \u202e ﷽",
        "\x00\x07 control",
        "one\r\ntwo\ttabs",
        "x" * 100_000,
        "long words " * 10_000,
        "{query} {instruction} %s \\n",
        " leading and trailing \n",
    ]
    rows = [
        {"query": text, "positive": f"{text[::-1]} {n}", "negative": f"{text} {n}"}
        for n, text in enumerate(texts)
    ]
    mix = mix_of(toy, rows, development=20)
    chosen = [f"regime={regime}", "batches.size=9", "demonstrations.tokens=16"]
    config = configured(toy, *chosen, mix=mix)
    shown = dry_run(config)
    assert "\x07" not in shown
    trainer = _Trainer(config, tmp_path)
    trainer.run()
    batch = trainer._batch(0)
    assert max(map(len, [*batch.queries, *batch.passages])) == config.max_length
    assert len(losses(tmp_path)) == 4
    assert any("mean" in record for record in records(tmp_path))


def test_texts_that_are_all_alike_teach_nothing_and_break_nothing(
    toy: Path, tmp_path: Path
) -> None:
    train(configured(toy, mix=mix_of(toy, [ROWS[0]] * 12)), tmp_path)
    assert losses(tmp_path) == [0.0] * 4
    assert [record["demonstrations"] for record in records(tmp_path)] == [0.0] * 4


def test_rows_with_their_own_negatives_only(toy: Path, tmp_path: Path) -> None:
    rows = [row | {"negative": [f"no {n}", f"nor {n}"]} for n, row in enumerate(ROWS)]
    chosen = ["batches.negatives=2", "demonstrations.prompts=sample"]
    mix = mix_of(toy, rows, in_batch_negatives=False)
    train(configured(toy, *chosen, mix=mix), tmp_path)
    assert [record["negatives"] for record in records(tmp_path)] == [2.0] * 4
    with pytest.raises(InputError, match="in_batch_negatives"):
        train(configured(toy, "batches.negatives=0", mix=mix), tmp_path / "none")


def test_a_teachers_scores_join_the_loss(toy: Path, tmp_path: Path) -> None:
    folder = toy / "data" / "taught"
    folder.mkdir()
    rows = [
        {
            "query": row["query"],
            "pos": [row["positive"]],
            "neg": [f"no {n}", f"nor {n}"],
            "pos_scores": [0.9],
            "neg_scores": [0.1, 0.5],
            "prompt": ASKED,
            "type": "normal",
        }
        for n, row in enumerate(ROWS)
    ]
    with gzip.open(folder / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    taught = {"path": "taught/rows.jsonl.gz", "format": "flagembedding"}
    write_mix(toy / "taught.yaml", {"taught": taught})
    chosen = ["batches.negatives=2", "optimizer.steps=1"]
    for weight in (0, 1):
        settings = [*chosen, f"loss.distillation_weight={weight}"]
        train(configured(toy, *settings, mix="taught.yaml"), tmp_path / str(weight))
    assert losses(tmp_path / "1")[0] > losses(tmp_path / "0")[0]


@pytest.mark.parametrize("prompts", ["group", "sample"])
def test_prompts_that_do_not_fit_the_model(prompts: str, toy: Path, tmp_path: Path) -> None:
    rows = [
        {"query": f"{n} " + "word " * 300, "positive": f"{n} " + "text " * 300} for n in range(20)
    ]
    chosen = ["regime=text", f"demonstrations.prompts={prompts}", "demonstrations.tokens=400"]
    with pytest.raises(InputError, match="1024 positions; "):
        train(configured(toy, *chosen, "optimizer.steps=9", mix=mix_of(toy, rows)), tmp_path)


def test_float16_needs_a_gpu(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(EpicError, match=r"memory\.precision 'float16' cannot be had here"):
        train(configured(toy, "memory.precision=float16"), tmp_path)
