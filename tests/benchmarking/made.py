"""A record with something in every part, made without timing anything."""

from collections.abc import Callable

import numpy as np

from epic_retrieval.benchmarking.costs import payback
from epic_retrieval.benchmarking.pipeline import STAGES
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.benchmarking.shapes import counted_costs, known_shapes

Around = Callable[..., list[float]]
WAYS = (("none", 0, 9.0), ("text", 5, 12.0), ("epic", 5, 10.0))


def made_record(*, slower: float = 1.0, seed: int = 0) -> Record:
    """Times around known middles; those of the EPIC encoder's batches multiplied by `slower`."""
    generator = np.random.default_rng(seed)

    def around(middle: float, count: int = 40) -> list[float]:
        found: list[float] = (middle * generator.lognormal(0, 0.03, count)).tolist()
        return found

    record = Record(
        {"cpu": "a <processor>", "cores": 2, "threads": 1, "versions": {"torch": "2"}},
        {"k": [0, 5]},
    )
    record.facts["model"] = {"name": "small", "parameters": 8_000_000, "precision": "torch.float32"}
    record.facts["index"] = {"passages": 2000, "kind": "Flat"}
    record.add("yardstick", "ms", around(3))
    _requests(record, around, slower)
    _rivals(record, around)
    _costs(record, around)
    _scaling(record, around)
    record.left_out = {"rivals/text-flagembedding": "FlagEmbedding does not run <here>"}
    return record


def _requests(record: Record, around: Around, slower: float) -> None:
    for way, k, encode in WAYS:
        parts = dict(zip(STAGES, (0.2, encode, 0.5, 0.2, 0.02, 40.0), strict=True))
        name = f"stages/python-docs {way} k={k}"
        for stage, middle in (parts | {"total": sum(parts.values())}).items():
            record.add(f"{name}/{stage}", "ms", around(middle))
        factor = slower if way == "epic" else 1.0
        for size in (1, 8):
            record.add(f"batches/{way} batch={size}/latency", "ms", around(encode * size * factor))
            record.add(f"batches/{way} batch={size}/throughput", "queries/s", around(1e3 / encode))
        for state, middle in (("nothing kept", 90), ("prompt on disk", 15), ("warm", encode)):
            record.add(f"cold/{way}/{state}", "ms", around(middle, 5))
    for load in (0.5, 2.0):
        for label, middle in (("shared passes", 50), ("one by one", 60 * load**3)):
            record.add(f"arrivals/{label} load={load:g}/latency", "ms", around(middle))
            record.add(f"arrivals/{label} load={load:g}/throughput", "queries/s", [30.0])


def _rivals(record: Record, around: Around) -> None:
    middles = {"epic-shared": 10.0, "text-shared": 12.0, "epic-rerun": 90.0, "no-prompt": 10.0}
    places = [(kind, clock) for kind in ("batch", "single") for clock in ("wall", "core")]
    for kind, clock in places:
        for name, middle in middles.items():
            record.add(f"rivals/{kind}/{clock}/{name}", "ms per query", around(middle, 5))
            interval = [0.97, 1.02] if name == "no-prompt" else [middle / 11, middle / 9]
            pair = {"kind": kind, "clock": clock, "above": name, "below": "epic-shared"}
            found = {"median": middle / 10, "interval": interval, "rounds": 5}
            record.ratios += [pair | found] if name != "epic-shared" else []
    agreement = {"one": "epic-shared", "other": "epic-rerun", "smallest_cosine": 1.0}
    record.agreement = [agreement | {"checked": True, "agree": True}]


def _costs(record: Record, around: Around) -> None:
    prompts = []
    for way, positions in (("text", 900), ("epic", 130)):
        record.add(f"costs/python-docs {way} k=5/prepare", "ms", around(positions / 10, 5))
        row = {"task": "python-docs", "way": way, "k": 5, "positions": positions}
        row |= {"keys_values_bytes": positions * 4096, "disk_bytes": positions * 4200}
        prompts.append(row | {"paid_back_after_queries": payback(positions / 10, 10, 90)})
    record.facts["costs"] = {"own_tokens_per_query": 12.0, "prompts": prompts}
    shapes, assumed = known_shapes()
    record.facts["larger models"] = {
        "assumed": vars(assumed),
        "shapes": {one.name: counted_costs(one, assumed) for one in shapes},
    }


def _scaling(record: Record, around: Around) -> None:
    varied = {
        "demonstrations": (1, 5),
        "demonstration tokens": (25, 200),
        "query tokens": (8, 128),
        "batch": (1, 64),
    }
    for what, values in varied.items():
        for value in values:
            for way, middle in (("text", 10 + value / 10), ("epic", 10.0)):
                record.add(f"scaling/{what}/{way} x={value}", "ms per query", around(middle, 5))
    for size in (1_000, 100_000):
        record.add(f"scaling/corpus/flat x={size}", "ms per query", around(size / 2e3, 5))
        record.add(f"scaling/corpus/auto x={size}", "ms per query", around(0.9, 5))
