"""A whole run: the parts in their order, beside a yardstick that tells machines and days apart."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from epic_retrieval.benchmarking.bench import Bench
from epic_retrieval.benchmarking.costs import measure_costs
from epic_retrieval.benchmarking.matches import measure_rivals
from epic_retrieval.benchmarking.models import parameters_of
from epic_retrieval.benchmarking.requests import (
    measure_arrivals,
    measure_batches,
    measure_cold,
    measure_stages,
)
from epic_retrieval.benchmarking.scaling import measure_scaling

_PARTS: dict[str, Callable[[Bench], None]] = {
    "stages": measure_stages,
    "batches": measure_batches,
    "arrivals": measure_arrivals,
    "cold": measure_cold,
    "rivals": measure_rivals,
    "costs": measure_costs,
    "scaling": measure_scaling,
}
YARDSTICK = "yardstick"
_SIDE = 256
_MS = 1e3


def run(bench: Bench) -> None:
    """Measure every part that the conditions name; results go to the bench's record.

    A fixed piece of work is timed before each part and at the end. Two runs between which it
    changed were not made under the same conditions.
    """
    encoder = bench.encoder
    bench.record.facts |= {
        "model": {
            "name": encoder.name if "/" not in encoder.name else encoder.name.rpartition("/")[2],
            "dimension": encoder.dimension,
            "parameters": parameters_of(encoder),
            "precision": encoder.checkpoint.backbone.precision.removeprefix("torch."),
            "device": str(encoder.device),
        },
        "index": {
            "passages": bench.index.manifest.count,
            "kind": bench.index.manifest.search.factory if bench.index.manifest.search else "Flat",
        },
        "seconds": {},
    }
    yardstick: list[float] = []
    for name, measure in _PARTS.items():
        if name in bench.conditions.only:
            yardstick += measured_yardstick()
            start = time.perf_counter()
            measure(bench)
            bench.record.facts["seconds"][name] = round(time.perf_counter() - start, 1)
    yardstick += measured_yardstick()
    bench.record.add(YARDSTICK, "ms", yardstick)


def measured_yardstick(count: int = 8) -> Sequence[float]:
    """Milliseconds of the same matrix products each time."""
    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE))
    spent = []
    for _ in range(count):
        start = time.perf_counter()
        for _ in range(8):
            matrix @ matrix
        spent.append((time.perf_counter() - start) * _MS)
    return spent
