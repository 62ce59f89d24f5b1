"""The log of a run: JSONL, TensorBoard, a progress bar, and the curves as a picture.

Knows nothing of models.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from epic_retrieval.storage import write_atomically
from epic_training.development import DevelopmentScore, summarise

_SHOWN = {"loss": "loss", "learning_rate": "lr", "queries_per_second": "q/s", "gpu_gib": "GiB"}


class Log:
    """Writes what a run reports.

    Args:
        folder: of the run.
        first: steps that are done; records of later ones, from a run that was killed, are dropped.
        steps: of the whole run.
        write: False in all processes but one, where nothing is written or shown.
    """

    def __init__(self, folder: Path, first: int, steps: int, *, write: bool) -> None:
        self._folder, self._write = folder, write
        self._path = folder / "log.jsonl"
        self.records = [one for one in read_log(self._path) if one["step"] <= first]
        if not write:
            return
        from torch.utils.tensorboard import SummaryWriter

        text = "".join(json.dumps(record) + "\n" for record in self.records)
        write_atomically(self._path, text.encode())
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)
        self._bar = tqdm(total=steps, initial=first, unit="step", desc="training")

    def step(self, step: int, report: Mapping[str, float], dataset: str) -> None:
        """Record what a step reports."""
        self._record({"step": step, "dataset": dataset, **report})
        if self._write:
            for name, value in report.items():
                self._board.add_scalar(f"training/{name}", value, step)
            self._bar.set_postfix(
                {short: f"{report[name]:.3g}" for name, short in _SHOWN.items() if name in report}
            )
            self._bar.update(step - self._bar.n)

    def scores(self, step: int, scores: Sequence[DevelopmentScore]) -> None:
        """Record development scores and draw the curves."""
        summary = asdict(summarise(scores))
        self._record({"step": step, "scores": [asdict(score) for score in scores], "mean": summary})
        if self._write:
            for name, value in summary.items():
                if value is not None:
                    self._board.add_scalar(f"development/{name}", value, step)
            self._bar.set_description(f"training (nDCG@10 {summarise(scores).best:.3f})")
            self.draw()

    def improved(self, scores: Sequence[DevelopmentScore]) -> bool:
        """Whether the scores that were recorded last are the best so far."""
        means = [record["mean"] for record in self.records if "mean" in record]
        best = [max(value for value in mean.values() if value is not None) for mean in means]
        return bool(scores) and summarise(scores).best >= max(best)

    def draw(self) -> None:
        """Draw loss and scores into `curves.png`."""
        from epic_training.curves import draw_curves

        draw_curves(self.records, self._folder / "curves.png")

    def close(self) -> None:
        """Finish the files; the curves are drawn once more."""
        if self._write:
            self._file.close()
            self._board.close()
            self._bar.close()
            if self.records:
                self.draw()

    def _record(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self._write:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
