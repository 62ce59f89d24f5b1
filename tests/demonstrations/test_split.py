from dataclasses import replace
from pathlib import Path

import pytest

from epic_retrieval.demonstrations import Labelled, read_labelled, split_labelled
from epic_retrieval.demonstrations.split import part_of, place_of
from epic_retrieval.errors import InputError
from tests.demonstrations.samples import labelled, rows, write_pairs


def test_parts_are_disjoint_and_complete(tmp_path: Path) -> None:
    data = labelled(tmp_path, 200)
    found = split_labelled(data)
    shown = {pair.query for pair in found.pool}
    choosing = set(found.development.queries[: found.development.choosing])
    deciding = set(found.development.queries[found.development.choosing :])
    assert len(shown) + len(choosing) + len(deciding) == 200
    assert shown | choosing | deciding == set(data.queries)
    assert min(map(len, (shown, choosing, deciding))) > 40, "about 60, 70 and 70"
    assert found.development.passages == data.passages
    for query, answers in zip(found.development.queries, found.development.relevant, strict=True):
        assert answers == data.relevant[data.queries.index(query)]


def test_a_part_depends_on_the_words_alone(tmp_path: Path) -> None:
    pairs = rows(120)
    pairs.sort(key=lambda row: row["positive"][::-1])
    shuffled = read_labelled(write_pairs(tmp_path / "shuffled.jsonl", pairs))
    one, other = split_labelled(labelled(tmp_path, 120)), split_labelled(shuffled)
    assert one.pool == other.pool
    assert one.development.queries == other.development.queries
    assert place_of("Who wrote  Emma?") == place_of("who wrote emma")
    assert part_of("who wrote emma", 0.999) == "pool"
    assert place_of("東京") != place_of("京都")
    assert 0.45 < sum(map(place_of, map(str, range(500)))) / 500 < 0.55


def test_what_answers_a_development_query_is_not_shown(tmp_path: Path) -> None:
    data = labelled(tmp_path, 120)
    scored = split_labelled(data).development.queries[0]
    answer = data.passages[next(iter(data.relevant[data.queries.index(scored)]))]
    shown = split_labelled(data).pool[0].query
    pairs = rows(120)
    [row] = [row for row in pairs if row["query"] == shown]
    row["positive"] = f" {answer.upper()}"
    changed = split_labelled(read_labelled(write_pairs(tmp_path / "changed.jsonl", pairs)))
    assert changed.answers == 1
    assert shown not in {pair.query for pair in changed.pool}


def test_other_queries_to_score_on(tmp_path: Path) -> None:
    data = labelled(tmp_path, 200)
    scored = Labelled(data.queries[50:], data.relevant[50:], data.passages)
    found = split_labelled(data, scored)
    assert {pair.query for pair in found.pool} == set(data.queries[:50])
    assert set(found.development.queries) == set(data.queries[50:])


def test_limits(tmp_path: Path) -> None:
    data = labelled(tmp_path, 200)
    found = split_labelled(data, most_queries=25, most_passages=60).development
    full = split_labelled(data).development
    assert (found.choosing, len(found.queries)) == (25, 50)
    assert found.queries[:25] == full.queries[:25]
    assert len(found.passages) == 60
    assert {one for answers in found.relevant for one in answers} <= found.passages.keys()
    assert len(split_labelled(data, most_queries=25, most_passages=3).development.passages) == 50


def test_a_query_shows_its_best_passage(tmp_path: Path) -> None:
    data = labelled(tmp_path, 120)
    graded = replace(data, relevant=tuple({**one, "7": 3, "8": 2} for one in data.relevant))
    scored = replace(data, queries=data.queries[20:], relevant=data.relevant[20:])
    shown = split_labelled(graded, scored).pool
    assert {pair.passage for pair in shown} == {data.passages["7"]}


def test_what_is_too_little(tmp_path: Path) -> None:
    data = labelled(tmp_path, 40)
    with pytest.raises(InputError, match=r"queries to choose .* expected at least 20 each"):
        split_labelled(data)
    with pytest.raises(InputError, match="no pair is left for demonstrations"):
        split_labelled(labelled(tmp_path, 100), labelled(tmp_path, 100))
    with pytest.raises(InputError, match=r"the pool's share is 1.0"):
        split_labelled(data, pool_share=1.0)
