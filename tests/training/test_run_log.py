"""What a run writes for those who watch it: log, TensorBoard, curves, a progress bar."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from epic_training.curves import draw_curves
from epic_training.development import DevelopmentScore
from epic_training.run_log import Log, read_log

REPORTS = [{"loss": 2.0 - step / 4, "learning_rate": 0.1, "extra": step} for step in range(1, 5)]
SCORES = [
    [DevelopmentScore("a", 9, 0.25, (0.5, 0.5))],
    [DevelopmentScore("a", 9, 0.5, (0.25, 0.5)), DevelopmentScore("b", 9, 1.0, (0.5,))],
]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all else."""
    monkeypatch.setattr("epic_training.curves.draw_curves", lambda _records, _path: None)


def write(folder: Path, *, main: bool = True) -> Log:
    log = Log(folder, 0, 4, write=main)
    for step, report in enumerate(REPORTS, start=1):
        log.step(step, report, "toy")
        if step % 2 == 0:
            log.scores(step, SCORES[step // 2 - 1])
    log.close()
    return log


@pytest.mark.usefixtures("no_pictures")
def test_every_record_is_a_line(tmp_path: Path) -> None:
    log = write(tmp_path)
    assert read_log(tmp_path / "log.jsonl") == json.loads(json.dumps(log.records))
    steps = [record for record in log.records if "loss" in record]
    assert steps == [
        {"step": step, "dataset": "toy"} | report for step, report in enumerate(REPORTS, start=1)
    ]
    scored = [record for record in log.records if "mean" in record]
    assert [record["mean"] for record in scored] == [
        {"none": 0.25, "shown": 0.5},
        {"none": 0.75, "shown": 0.4375},
    ]
    assert log.improved(SCORES[1])
    assert not log.improved(SCORES[0])
    assert not log.improved([])


@pytest.mark.usefixtures("no_pictures")
def test_a_log_that_goes_on_drops_what_is_done_again(tmp_path: Path) -> None:
    write(tmp_path)
    again = Log(tmp_path, 2, 4, write=True)
    again.step(3, {"loss": 7.0}, "toy")
    again.close()
    found = [(record["step"], record.get("loss")) for record in read_log(tmp_path / "log.jsonl")]
    assert found == [(1, 1.75), (2, 1.5), (2, None), (3, 7.0)]


@pytest.mark.usefixtures("no_pictures")
def test_only_one_process_writes_and_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = write(tmp_path, main=False)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""
    loud = write(tmp_path)
    assert quiet.records == loud.records
    shown = capsys.readouterr().err
    assert "training (nDCG@10 0.750): 100%" in shown
    assert "4/4" in shown
    assert "loss=1," in shown


@pytest.mark.usefixtures("no_pictures")
def test_events_show_what_the_log_says(tmp_path: Path) -> None:
    write(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "learning_rate", "extra"):
        shown = [(event.step, event.value) for event in events.Scalars(f"training/{name}")]
        expected = [(step, report[name]) for step, report in enumerate(REPORTS, start=1)]
        np.testing.assert_allclose(shown, expected, rtol=1e-6)
    found = [(event.step, event.value) for event in events.Scalars("development/none")]
    assert found == [(2, 0.25), (4, 0.75)]
    assert [event.value for event in events.Scalars("development/shown")] == [0.5, 0.4375]


def test_curves_are_a_picture(tmp_path: Path) -> None:
    records = write(tmp_path).records
    (tmp_path / "curves.png").unlink()
    for name, given in {
        "curves": records,
        "losses": [record for record in records if "loss" in record],
        "scores": [record for record in records if "mean" in record],
    }.items():
        path = tmp_path / f"{name}.png"
        draw_curves(given, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        picture = matplotlib.image.imread(path)
        assert 500 < picture.shape[1] < 2000
        assert 300 < picture.shape[0] < 2000
        assert picture[..., :3].std() > 0.01, "something is drawn"
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_scores_without_demonstrations_have_a_curve_too(tmp_path: Path) -> None:
    with_none = [{"step": 1, "mean": {"none": 0.5, "shown": None}}]
    draw_curves(with_none, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()
