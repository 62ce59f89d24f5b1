"""Choosing demonstrations on labelled queries, deciding whether they help, checking them."""

from epic_retrieval.demonstrations.bootstrap import Gain, paired_bootstrap
from epic_retrieval.demonstrations.candidates import STRATEGIES, Candidate, Strategy
from epic_retrieval.demonstrations.checks import Finding, check_task
from epic_retrieval.demonstrations.choose import Choice
from epic_retrieval.demonstrations.labelled import Labelled, read_labelled
from epic_retrieval.demonstrations.leakage import TestSet, find_leaks, read_test_set
from epic_retrieval.demonstrations.select import SelectionSettings, select_demonstrations
from epic_retrieval.demonstrations.split import Development, Split, split_labelled

__all__ = [
    "STRATEGIES",
    "Candidate",
    "Choice",
    "Development",
    "Finding",
    "Gain",
    "Labelled",
    "SelectionSettings",
    "Split",
    "Strategy",
    "TestSet",
    "check_task",
    "find_leaks",
    "paired_bootstrap",
    "read_labelled",
    "read_test_set",
    "select_demonstrations",
    "split_labelled",
]
