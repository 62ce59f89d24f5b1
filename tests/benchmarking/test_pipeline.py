from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval import Demonstration, EpicEncoder, PassageIndex, Task
from epic_retrieval.benchmarking.answering import StandIn
from epic_retrieval.benchmarking.bench import Bench, in_turns, ways_for
from epic_retrieval.benchmarking.conditions import Answering, Conditions
from epic_retrieval.benchmarking.costs import measure_costs
from epic_retrieval.benchmarking.models import open_model
from epic_retrieval.benchmarking.pipeline import STAGES, Pipeline, Way
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.benchmarking.requests import measure_arrivals, measure_cold
from epic_retrieval.benchmarking.scaling import groups
from epic_retrieval.index import EncoderInfo, Passage, build_index
from tests.models import tiny_encoder

PASSAGES = [Passage(str(n), f"passage {n} on subject {n % 7}", f"title {n}") for n in range(40)]
TASK = Task("t", "find it", (Demonstration("a question", "an answer"), Demonstration("b", "c")))
NOTHING = Answering(first_ms=0, ms_per_token=0)


class Heard(StandIn):
    """A stand-in that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(NOTHING)
        self.prompts: list[str] = []

    def first(self, prompt: str) -> None:
        self.prompts.append(prompt)


@pytest.fixture(scope="module")
def encoder() -> EpicEncoder:
    return tiny_encoder()


@pytest.fixture(scope="module")
def index(encoder: EpicEncoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PassageIndex]:
    folder = tmp_path_factory.mktemp("indexes") / "index"
    info = EncoderInfo("tiny", encoder.passage_fingerprint(), encoder.dimension)
    build_index(PASSAGES, encoder.encode_passages, folder, encoder=info)
    with PassageIndex.open(folder) as opened:
        yield opened


@pytest.fixture
def bench(encoder: EpicEncoder, index: PassageIndex, tmp_path: Path) -> Bench:
    conditions = Conditions(k=(0, 2), rounds=1, slow_rounds=1, requests=6, rates=(5.0,), top=2)
    return Bench(
        encoder=encoder,
        index=index,
        passages=PASSAGES,
        tasks=[TASK],
        queries=["subject 3", "subject 4"],
        answerer=StandIn(NOTHING),
        conditions=conditions,
        record=Record({}, {}),
        workspace=tmp_path,
    )


def test_a_request_goes_the_way_of_a_user(encoder: EpicEncoder, index: PassageIndex) -> None:
    heard = Heard()
    with Pipeline(encoder, index, heard, top=3) as pipeline:
        spent = pipeline.ask(["subject 3"], TASK, Way("epic"))
    hits = index.search(encoder.encode_queries(["subject 3"], TASK, "epic"), 3)[0]
    (prompt,) = heard.prompts
    assert [prompt.index(hit.passage.content) for hit in hits] == sorted(
        prompt.index(hit.passage.content) for hit in hits
    )
    assert prompt.endswith("Question: subject 3\nAnswer:")
    assert set(spent) == {*STAGES, "total"}
    assert all(spent[stage] > 0 for stage in STAGES)
    # Stages do not overlap.
    assert sum(spent[stage] for stage in STAGES) <= spent["total"]


def test_a_batch_is_retrieved_without_answers(encoder: EpicEncoder, index: PassageIndex) -> None:
    heard = Heard()
    with Pipeline(encoder, index, heard, top=3) as pipeline:
        spent = pipeline.ask(["a", "b"], TASK, Way("text"), answer=False)
    assert heard.prompts == []
    assert "answer" not in spent


def test_the_stopwatch_leaves_the_index_as_it_was(
    encoder: EpicEncoder, index: PassageIndex
) -> None:
    shards = index._opened().shards
    before = dict(vars(shards))
    with Pipeline(encoder, index, StandIn(NOTHING), top=3):
        assert "fetch" in vars(shards)
    assert vars(shards) == before


def test_ways_by_number_of_demonstrations() -> None:
    assert [way.name for way in ways_for(0, again=True)] == ["none"]
    assert [way.name for way in ways_for(3)] == ["text", "epic"]
    assert [way.name for way in ways_for(3, again=True)][2:] == [
        "text, prompt run again",
        "epic, prompt run again",
    ]


def test_conditions_take_turns() -> None:
    calls: list[str] = []
    work = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = in_turns(work, 3, often={"c": 1})
    assert "".join(calls) == "abc" + "abc" + "ba" + "ab"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3, "c": 1}


def test_costs_are_those_of_the_real_prompt(bench: Bench) -> None:
    measure_costs(bench)
    rows = {row["way"]: row for row in bench.record.facts["costs"]["prompts"]}
    assert set(rows) == {"none", "text", "epic"}
    for way in ("text", "epic"):
        prefix = bench.encoder._prefix(TASK, way)
        assert rows[way]["positions"] == prefix.length
        assert rows[way]["keys_values_bytes"] == prefix.nbytes
        assert rows[way]["disk_bytes"] > prefix.nbytes
    assert "costs/t epic k=2/prepare" in bench.record.series


def test_a_prompt_without_room_is_left_out(bench: Bench) -> None:
    long = TASK.with_demonstrations([Demonstration("long", "word " * 2000)])
    bench.conditions = replace(bench.conditions, k=(1,))
    bench.tasks = [long]
    measure_costs(bench)
    (name,) = bench.record.left_out
    assert name == "costs/t text k=1"
    assert "positions" in bench.record.left_out[name]
    assert [row["way"] for row in bench.record.facts["costs"]["prompts"]] == ["epic"]


def test_first_queries_in_three_states(bench: Bench) -> None:
    measure_cold(bench)
    assert {name.rpartition("/")[2] for name in bench.record.under("cold/epic/")} == {
        "nothing kept",
        "prompt on disk",
        "warm",
    }
    assert not list(bench.workspace.iterdir())


def test_arrivals_are_all_served(bench: Bench) -> None:
    measure_arrivals(bench)
    for way in ("shared passes", "one by one"):
        assert len(bench.record.series[f"arrivals/{way} load=5/latency"].values) == 6
    assert np.isfinite(bench.record.facts["arrivals"]["one after the other, queries/s"])


def test_prompts_that_are_run_again_are_kept_while_they_take_turns() -> None:
    names = [f"{way} x={n}" for n in range(9) for way in ("epic", "epic, prompt run again")]
    first, second = groups(names)
    assert first + second == names
    assert [sum("again" in name for name in group) for group in (first, second)] == [8, 1]
    assert groups(["epic x=1"]) == [["epic x=1"]]


def test_no_prompt_has_to_make_room(tmp_path: Path) -> None:
    encoder = open_model("random:tiny", tmp_path)
    tasks = [replace(TASK, instruction=f"find number {n}") for n in range(40)]
    first = encoder._prefix(tasks[0], "none")
    for task in tasks:
        encoder.prepare(task, "none")
    assert encoder._prefix(tasks[0], "none") is first
