"""`epic bench`: latency from the question to the first answer, beside other ways to encode it.

Measured runs become records (JSON), which become pages and comparisons.
"""

from epic_retrieval.benchmarking.answering import open_answerer
from epic_retrieval.benchmarking.bench import Bench
from epic_retrieval.benchmarking.cases import queries_from, read_queries, spread_out, tasks_named
from epic_retrieval.benchmarking.comparison import comparison_lines
from epic_retrieval.benchmarking.conditions import Conditions
from epic_retrieval.benchmarking.figures import write_figures
from epic_retrieval.benchmarking.models import open_model, with_projector
from epic_retrieval.benchmarking.page import write_page
from epic_retrieval.benchmarking.record import Record, environment
from epic_retrieval.benchmarking.run import run
from epic_retrieval.benchmarking.summary import summary_lines

__all__ = [
    "Bench",
    "Conditions",
    "Record",
    "comparison_lines",
    "environment",
    "open_answerer",
    "open_model",
    "queries_from",
    "read_queries",
    "run",
    "spread_out",
    "summary_lines",
    "tasks_named",
    "with_projector",
    "write_figures",
    "write_page",
]
