"""Shards made by workers of a Ray cluster are those of one process, whatever happens to a worker.

Run as a module it does all that needs a cluster, and writes down what happened: Ray needs sockets
and a process of its own.
"""

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from epic_retrieval.errors import InputError, MissingExtraError, PassageIndexError
from epic_retrieval.index import (
    Manifest,
    Passage,
    build_index,
    ray_engine,
    read_manifest,
    verify_index,
)
from epic_retrieval.index._batches import EncodingSettings
from epic_retrieval.index._ray import RayOptions, cluster
from epic_retrieval.index._ray_pool import Worker
from epic_retrieval.index._shard_folder import Encode, ShardFolder
from epic_retrieval.index._source import complete_shards
from epic_retrieval.index.encode import Progress, encode_shards
from epic_retrieval.index.manifest import ShardInfo
from epic_retrieval.index.merge import merge
from epic_retrieval.index.ray_engine import _check_visible, encode_shards_ray
from epic_retrieval.index.shard import ShardWriter
from tests.index.samples import ENCODER, ROOT, encode, passages

SETTINGS = EncodingSettings(ENCODER, "float16", 12, shard_size=10)
COUNT = 75
TWO = RayOptions(workers=2, cpus=0.5)
ONE = replace(TWO, workers=1)


def make_encode(log: Path, killed: Path | None = None) -> Encode:
    """The encoder of the samples; the first process that meets passage 23 is killed."""
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")

    def encode_or_die(texts: list[str]) -> np.ndarray:
        time.sleep(0.02)  # so that no worker does it all
        if killed is not None and any("passage 23." in text for text in texts):
            try:
                killed.touch(exist_ok=False)
            except FileExistsError:
                return encode(texts)
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(texts)

    return encode_or_die


def make_nothing() -> NoReturn:
    raise AssertionError("nothing is left to encode")


def throw(error: BaseException, *_: object) -> NoReturn:
    raise error


def too_narrow(texts: list[str]) -> np.ndarray:
    return np.ones((len(texts), 5), dtype=np.float32)


def failing(trouble: Callable[[], object], at: str, log: Path | None = None) -> Encode:
    """The encoder of the samples; a text that holds `at` gives it trouble."""
    if log is not None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")

    def encode_or_fail(texts: list[str]) -> np.ndarray:
        if any(at in text for text in texts):
            trouble()
        return encode(texts)

    return encode_or_fail


def run(
    out: Path, make: Callable[[], Any], options: RayOptions = ONE, count: int = 30
) -> list[ShardInfo]:
    return encode_shards_ray(
        passages(count), make, out, settings=SETTINGS, options=options, chunk_size=4
    )


def indexed(
    out: Path, make: Callable[..., Any], told: list[Progress] | None = None, **options: object
) -> Manifest:
    """An index of 30 passages in three shards."""
    return build_index(
        passages(30),
        make,
        out,
        encoder=ENCODER,
        shard_size=10,
        progress=None if told is None else told.append,
        **options,  # type: ignore[arg-type]  # an engine or nothing
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the other process worked, which has ended by then."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra ray")
    found = tmp_path_factory.mktemp("ray")
    done = subprocess.run(
        [sys.executable, "-m", "tests.index.test_ray_engine", str(found)],
        cwd=ROOT,
        # Ray would leave a token in the home folder.
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "said.json").read_bytes())
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_shards_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    """Every byte, although a worker was killed on the way."""
    infos = encode_shards(passages(COUNT), encode, tmp_path, settings=SETTINGS, chunk_size=4)
    assert complete_shards(folder / "killed") == infos
    assert (folder / "killed.mark").exists()
    assert files(folder / "killed") == files(tmp_path)


def test_each_worker_makes_one_encoder(folder: Path) -> None:
    made = (folder / "killed.log").read_text().split()
    assert len(made) == len(set(made))
    # The one that takes the place of the killed may come too late to be of use.
    assert len(made) in {2, 3}


def test_an_index_is_that_of_one_process(
    folder: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    """Also where the first run was stopped; what was finished then is not encoded again."""
    assert said["build"]["stopped"]["kind"] == "OSError"
    assert "1 finished shard (10 passages) is kept" in said["build"]["stopped"]["notes"]
    assert said["build"]["reused"] == 10
    manifest = indexed(tmp_path / "index", encode)
    assert replace(read_manifest(folder / "index"), created="", updated="") == replace(
        manifest, created="", updated=""
    )
    assert verify_index(folder / "index", encode, sample=30).ok


def test_finished_shards_need_no_cluster(folder: Path) -> None:
    """There are no sockets here."""
    before = files(folder / "killed")
    told: list[Progress] = []
    infos = encode_shards_ray(
        iter(passages(COUNT)),
        make_nothing,
        folder / "killed",
        settings=SETTINGS,
        progress=told.append,
    )
    assert infos == complete_shards(folder / "killed")
    assert files(folder / "killed") == before
    assert (told[-1].passages, told[-1].reused, told[-1].shards) == (COUNT, COUNT, 8)


def test_progress_is_told(said: dict[str, Any]) -> None:
    told = said["progress"]
    counts = [one["passages"] for one in told]
    assert counts == sorted(counts)
    assert counts[-1] == told[-1]["total"] == COUNT
    assert told[-1]["shards"] == 8
    written = [one["bytes_written"] for one in told]
    assert written == sorted(written)
    assert written[-1] > 0
    assert told[-1]["seconds"] > 0


def test_a_corpus_is_read_no_faster_than_it_is_encoded(said: dict[str, Any]) -> None:
    """One shard for each of two workers, one read ahead, one being read."""
    assert 0 < said["ahead"] <= 5


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("failing", "OSError", "out of paper"),
        ("odd", "PassageIndexError", "A worker failed: .*OddError: left and right"),
        (
            "unsendable",
            "InputError",
            "make_encode cannot be sent to the workers .cannot pickle '_thread.lock'",
        ),
        ("no room", "InputError", "There is no room for a worker: each needs 1 cores and 99 GPUs"),
    ],
)
def test_errors_come_back_readable(
    said: dict[str, Any], name: str, kind: str, message: str
) -> None:
    error = said["errors"][name]
    assert error["kind"] == kind
    assert re.search(message, error["text"], re.DOTALL), error["text"]
    assert "\x1b" not in error["text"]


def test_an_encoders_error_says_where_it_was_raised(said: dict[str, Any]) -> None:
    notes = said["errors"]["failing"]["notes"]
    assert "In a worker:" in notes
    assert "test_ray_engine.py" in notes
    assert "\x1b" not in notes


def test_what_was_finished_before_an_error_is_kept(folder: Path) -> None:
    # Whoever would have met passage 3 a second time would have died.
    assert len((folder / "failing.rest").read_text().split()) == 1
    assert len(complete_shards(folder / "failing")) == 3


def test_a_folder_that_machines_do_not_share_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(lambda: encode, tmp_path, SETTINGS, 4)
    with pytest.raises(InputError, match=r"is not the same folder on .* all machines of the"):
        worker.start()
    monkeypatch.setattr(ray_engine, "_PATIENCE", 0)
    kept = ShardFolder(tmp_path, SETTINGS)
    (info,) = encode_shards(passages(3), encode, tmp_path / "elsewhere", settings=SETTINGS)
    with pytest.raises(PassageIndexError, match=rf"shard {info.name}, but it is not to be seen"):
        _check_visible(kept, info)


def test_a_cluster_is_started_and_ended_once(said: dict[str, Any]) -> None:
    assert said["inside"] == {"initialized": True, "statistics": None}
    assert said["after"] == {"initialized": False}


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install .epic-retrieval\[ray\]"):
        encode_shards_ray(passages(3), make_nothing, tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"cpus": 0, "gpus": 0}, {"cpus": -1.0, "gpus": 2.0}]
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        RayOptions(**options)


# Without a cluster: deaths and orders of every kind, quickly.


class TaskError(Exception):
    """Stands for RayTaskError."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"in a worker: {cause}")
        self.cause = cause


class DeadError(Exception):
    """Stands for ActorDiedError."""


class Dead(BaseException):
    """Raised by an encoder to end its worker."""


@dataclass(eq=False)
class FakeReference:
    value: object
    error: Exception | None


class FakeWorker:
    """Does what it is asked at once."""

    def __init__(self, kind: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._worker = kind(*arguments)

    def __getattr__(self, name: str) -> SimpleNamespace:
        def do(*arguments: object) -> FakeReference:
            try:
                return FakeReference(getattr(self._worker, name)(*arguments), None)
            except Dead:
                return FakeReference(None, DeadError("It died."))
            except Exception as error:  # noqa: BLE001 (it goes to whoever wants the result)
                return FakeReference(None, TaskError(error))

        return SimpleNamespace(remote=do)


class FakeRay:
    """A cluster of two cores in this process, where results come in any order."""

    exceptions = SimpleNamespace(
        RayTaskError=TaskError, UnserializableException=KeyError, RayError=DeadError
    )

    def __init__(
        self, *, running: bool = True, seed: int = 0, error: Exception | None = None
    ) -> None:
        self.calls: list[Any] = []
        self.alive: set[FakeWorker] = set()
        self._running = running
        self._error = error
        self._random = random.Random(seed)  # noqa: S311 (no secret)

    def is_initialized(self) -> bool:
        return self._running

    def init(self, **options: object) -> None:
        self.calls.append((os.environ.get("RAY_USAGE_STATS_ENABLED"), options))
        if self._error is not None:
            raise self._error

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    available_resources = cluster_resources

    def remote(self, kind: Callable[..., object]) -> SimpleNamespace:
        def start(*arguments: object) -> FakeWorker:
            worker = FakeWorker(kind, arguments)
            self.alive.add(worker)
            return worker

        def options(**found: object) -> SimpleNamespace:
            self.calls.append(found)
            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def put(self, value: object) -> object:
        return value

    def wait(
        self,
        references: list[FakeReference],
        timeout: float,  # noqa: ARG002 (as Ray's)
    ) -> tuple[list[FakeReference], list[FakeReference]]:
        assert references, "nobody works"
        return [self._random.choice(references)], []

    def get(self, reference: FakeReference) -> object:
        if reference.error is not None:
            raise reference.error
        return reference.value

    def kill(self, worker: FakeWorker) -> None:
        self.alive.discard(worker)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return fake


def sometimes_dead(seed: int) -> Callable[[], Encode]:
    chance = random.Random(seed)  # noqa: S311 (no secret)

    def dying(texts: list[str]) -> np.ndarray:
        if chance.random() < 0.08:
            raise Dead
        return encode(texts)

    def make() -> Encode:
        if chance.random() < 0.2:
            raise Dead
        return dying

    return make


@pytest.mark.parametrize("seed", range(8))
def test_orders_and_deaths_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: FakeRay, seed: int
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay(seed=seed))
    infos = encode_shards(passages(COUNT), encode, tmp_path / "one", settings=SETTINGS)
    found = run(tmp_path / "two", sometimes_dead(seed), RayOptions(workers=3), COUNT)
    assert found == infos
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_a_changed_corpus_reuses_unchanged_shards(tmp_path: Path, ray: FakeRay) -> None:
    before = run(tmp_path, lambda: encode)
    texts = passages(30)
    texts[13] = replace(texts[13], text="Changed.")
    told: list[Progress] = []
    after = encode_shards_ray(
        texts, lambda: encode, tmp_path, settings=SETTINGS, progress=told.append
    )
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]
    assert (told[-1].passages, told[-1].reused, told[-1].shards) == (30, 20, 3)
    assert complete_shards(tmp_path) == after


def test_shards_of_another_index_are_taken(tmp_path: Path, ray: FakeRay) -> None:
    infos = run(tmp_path / "one", lambda: encode)
    merge([tmp_path / "one"], tmp_path / "index")
    found = encode_shards_ray(
        passages(30), make_nothing, tmp_path / "two", settings=SETTINGS, reuse=[tmp_path / "index"]
    )
    assert found == infos


def test_workers_are_as_ordered_and_end(tmp_path: Path, ray: FakeRay) -> None:
    made: list[int] = []

    def make() -> Encode:
        made.append(1)
        return encode

    run(tmp_path, make, RayOptions(cpus=0.5, gpus=0))
    assert len(made) == 4, "two cores, a half for each"
    assert ray.calls == [{"num_cpus": 0.5, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0}]
    assert ray.alive == set()


def test_a_shard_that_kills_is_given_up(tmp_path: Path, ray: FakeRay) -> None:
    make = partial(failing, partial(throw, Dead()), "passage 15.")
    with pytest.raises(PassageIndexError, match=r"3 workers died, .* passages 11 to 20, .*It died"):
        run(tmp_path, make)
    assert ray.alive == set()
    with pytest.raises(InputError, match="not come to its end"):
        complete_shards(tmp_path)
    # What was finished is not encoded again.
    assert len(run(tmp_path, partial(failing, partial(throw, Dead()), "passage 5."))) == 3


def test_no_worker_that_lives_is_an_error(tmp_path: Path, ray: FakeRay) -> None:
    with pytest.raises(PassageIndexError, match="Workers died while they made their encoder"):
        run(tmp_path, partial(throw, Dead()), RayOptions(workers=3))


def test_one_worker_that_lives_is_enough(tmp_path: Path, ray: FakeRay) -> None:
    made: list[int] = []

    def make() -> Encode:
        made.append(1)
        if len(made) != 7:
            raise Dead
        return encode

    assert len(run(tmp_path, make, RayOptions(workers=8))) == 3


@pytest.mark.parametrize(
    ("make", "texts", "kind", "message"),
    [
        (partial(throw, RuntimeError("no such model")), None, RuntimeError, "no such model"),
        (lambda: partial(throw, OSError("no paper")), None, OSError, "no paper"),
        (lambda: too_narrow, None, InputError, "encode returned vectors of 5 dimensions: expec"),
        (
            lambda: encode,
            [*passages(15), passages(4)[3], *passages(30)[20:]],
            InputError,
            'The id "d3" stands twice, at passages 4 and 16',
        ),
        (
            lambda: encode,
            [*passages(10), *passages(10)],
            InputError,
            'The id "d0" stands twice, at passages 1 and 11',
        ),
    ],
)
def test_errors_are_those_of_one_process(
    tmp_path: Path,
    ray: FakeRay,
    make: Callable[[], Encode],
    texts: Sequence[Passage] | None,
    kind: type[Exception],
    message: str,
) -> None:
    corpus = passages(30) if texts is None else texts
    with pytest.raises(kind, match=message):
        encode_shards(corpus, make(), tmp_path / "one", settings=SETTINGS)
    with pytest.raises(kind, match=message):
        encode_shards_ray(corpus, make, tmp_path / "two", settings=SETTINGS)
    assert ray.alive == set()


def test_a_full_disk_is_told_as_without_a_cluster(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_writer: ShardWriter, _passages: object, _vectors: object) -> None:
        raise PassageIndexError("no space") from OSError(28, "No space left on device")

    run(tmp_path, lambda: encode, count=10)
    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(PassageIndexError, match=r"No space left.*1 finished shard .10 passages"):
        run(tmp_path, lambda: encode)


def test_a_cluster_of_somebody_else_stays(ray: FakeRay) -> None:
    with cluster(None):
        pass
    assert ray.calls == []


@pytest.mark.parametrize(("chosen", "told"), [(None, "0"), ("1", "1")])
def test_our_own_cluster_is_quiet(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, told: str
) -> None:
    fake = FakeRay(running=False)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    if chosen is not None:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", chosen)
    with pytest.raises(KeyError), cluster(None):
        raise KeyError
    (statistics, options), end = fake.calls
    assert statistics == told
    assert options["address"] == "local"
    assert options["include_dashboard"] is False
    assert end == "shutdown"
    assert os.environ.get("RAY_USAGE_STATS_ENABLED") == chosen


def test_a_cluster_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(running=False)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv("RAY_ADDRESS", "variable:6379")
    for given in (None, "head:6379", "auto"):
        with cluster(given):
            pass
    asked = [call[1]["address"] for call in fake.calls[::2]]
    assert asked == ["variable:6379", "head:6379", "auto"]


def test_a_cluster_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay(running=False, error=ConnectionError("gone")))
    with pytest.raises(InputError, match=r"cannot be reached at head:1 .gone"), cluster("head:1"):
        pass


# What the other process does.


class OddError(Exception):
    """Cannot be sent to another process, as many exceptions of libraries."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


def odd() -> NoReturn:
    raise OddError("left", "right")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def error_of(do: Callable[[], object]) -> dict[str, str]:
    try:
        do()
    except Exception as error:  # noqa: BLE001 (it is what is looked at)
        notes = "\n".join(getattr(error, "__notes__", []))
        return {"kind": type(error).__name__, "text": str(error), "notes": notes}
    return {"kind": "", "text": "nothing was raised", "notes": ""}


def kill_one(folder: Path) -> dict[str, object]:
    told: list[Progress] = []
    ahead = []
    out = folder / "killed"

    def watched() -> Iterator[Passage]:
        for row, passage in enumerate(passages(COUNT)):
            if row % 10 == 0:
                finished = len(list((out / "finished").glob("s-*.json")))
                ahead.append(row // 10 + 1 - finished)
            yield passage

    encode_shards_ray(
        watched(),
        partial(make_encode, folder / "killed.log", folder / "killed.mark"),
        out,
        settings=SETTINGS,
        options=TWO,
        chunk_size=4,
        total=COUNT,
        progress=told.append,
    )
    return {"progress": [asdict(one) for one in told], "ahead": max(ahead)}


def build_twice(folder: Path) -> dict[str, object]:
    """The first build fails in its second shard."""
    make = partial(failing, partial(throw, OSError("out of paper")), "passage 13.")
    engine = partial(encode_shards_ray, options=ONE)
    stopped = error_of(lambda: indexed(folder / "index", make, engine=engine))
    told: list[Progress] = []
    again = partial(failing, die, "passage 3.")
    indexed(folder / "index", again, told, engine=partial(encode_shards_ray, options=TWO))
    return {"stopped": stopped, "reused": max(one.reused for one in told)}


def errors(folder: Path) -> dict[str, dict[str, str]]:
    paper = partial(
        failing, partial(throw, OSError("out of paper")), "passage 23.", folder / "failing.log"
    )
    found = {
        "failing": error_of(lambda: run(folder / "failing", paper)),
        "odd": error_of(lambda: run(folder / "odd", partial(failing, odd, "passage 3."))),
        "unsendable": error_of(lambda: run(folder / "a", partial(print, threading.Lock()))),
        "no room": error_of(lambda: run(folder / "b", make_nothing, RayOptions(gpus=99))),
    }
    run(folder / "failing", partial(failing, die, "passage 3.", folder / "failing.rest"))
    return found


def main(folder: Path) -> None:
    import ray

    said: dict[str, object] = {}
    with cluster("local"):
        said["inside"] = {
            "initialized": ray.is_initialized(),
            "statistics": os.environ.get("RAY_USAGE_STATS_ENABLED"),
        }
        said |= kill_one(folder)
        said["errors"] = errors(folder)
        said["build"] = build_twice(folder)
    said["after"] = {"initialized": ray.is_initialized()}
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
