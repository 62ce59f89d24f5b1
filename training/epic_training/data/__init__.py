"""Training data: from published formats to batches that are a function of seed and step."""

from epic_training.data.formats import FORMATS, guess_format, read_rows
from epic_training.data.mix import DatasetSettings, Mix, TrainingSet, load_mix, open_mix
from epic_training.data.plan import BatchPlan, Share, TextBatch
from epic_training.data.report import DatasetReport, MixReport, TokenCounts, describe_mix, render
from epic_training.data.rows import TrainingRow
from epic_training.data.store import RowStore, open_rows

__all__ = [
    "FORMATS",
    "BatchPlan",
    "DatasetReport",
    "DatasetSettings",
    "Mix",
    "MixReport",
    "RowStore",
    "Share",
    "TextBatch",
    "TokenCounts",
    "TrainingRow",
    "TrainingSet",
    "describe_mix",
    "guess_format",
    "load_mix",
    "open_mix",
    "open_rows",
    "read_rows",
    "render",
]
