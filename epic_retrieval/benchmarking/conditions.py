"""The conditions of a benchmark: data, read from YAML, checked before anything runs.

Knows nothing of models and times.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from epic_retrieval.errors import InputError
from epic_retrieval.tasks.files import parse_document, read_document

PARTS = ("stages", "batches", "arrivals", "cold", "rivals", "costs", "scaling")
RIVALS = (
    "no-prompt",
    "instruction",
    "text-shared",
    "epic-shared",
    "epic-rerun",
    "text-rerun",
    "text-transformers",
    "text-flagembedding",
    "sentence-transformers",
)
_ANSWER_WAYS = ("sleep", "compute")


@dataclass(frozen=True)
class Answering:
    """The stand-in for a language model that answers.

    Attributes:
        way: "sleep" waits, as for a model elsewhere; "compute" keeps a core busy.
        first_ms: milliseconds until the first token, whatever the prompt.
        ms_per_token: milliseconds more for each token of the prompt.
    """

    way: str = "sleep"
    first_ms: float = 20.0
    ms_per_token: float = 0.02


@dataclass(frozen=True)
class Scaling:
    """What is varied one at a time; an empty list leaves a curve out."""

    demonstrations: tuple[int, ...] = (0, 1, 3, 5, 8)
    demonstration_tokens: tuple[int, ...] = (25, 50, 100, 200)
    query_tokens: tuple[int, ...] = (8, 16, 32, 64, 128)
    corpus: tuple[int, ...] = (1_000, 10_000, 100_000)
    batch: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Conditions:
    """What is measured.

    Attributes:
        tasks: built-in tasks or files; with a folder of demonstrations, names of its files.
        k: numbers of demonstrations.
        batches: queries that arrive together.
        queries: how many different queries there are.
        rounds: how often all of them are asked, after a warm-up.
        slow_rounds: the same for conditions that run the whole prompt for each query.
        top: passages in the prompt of the language model.
        rates: of arrivals, as shares of what one query after the other reaches.
        requests: arrivals in each open-loop run.
        rivals: names out of `RIVALS`.
        single: queries that rivals encode one by one.
        only: parts out of `PARTS`, in their order.
        answering: the stand-in for a language model.
        scaling: the curves.
        seed: of every draw.
    """

    tasks: tuple[str, ...] = ("python-docs",)
    k: tuple[int, ...] = (0, 1, 3, 5, 8)
    batches: tuple[int, ...] = (1, 8, 64)
    queries: int = 64
    rounds: int = 5
    slow_rounds: int = 3
    top: int = 5
    rates: tuple[float, ...] = (0.3, 0.7, 0.95, 2.0)
    requests: int = 200
    rivals: tuple[str, ...] = RIVALS
    single: int = 16
    only: tuple[str, ...] = PARTS
    answering: Answering = field(default_factory=Answering)
    scaling: Scaling = field(default_factory=Scaling)
    seed: int = 0

    def __post_init__(self) -> None:
        _known("rivals", self.rivals, RIVALS)
        _known("only", self.only, PARTS)
        _known("answering.way", (self.answering.way,), _ANSWER_WAYS)
        for name in ("queries", "rounds", "slow_rounds", "top", "requests", "single"):
            _at_least(name, (getattr(self, name),), 1)
        _at_least("k", self.k, 0)
        _at_least("batches", self.batches, 1)
        _at_least("rates", self.rates, 0.01)
        _at_least("answering", (self.answering.first_ms, self.answering.ms_per_token), 0)
        _at_least("scaling.demonstrations", self.scaling.demonstrations, 0)
        for name in ("demonstration_tokens", "query_tokens", "corpus", "batch"):
            _at_least(f"scaling.{name}", getattr(self.scaling, name), 1)
        for name in ("tasks", "k", "batches", "only"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; expected at least one entry")

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """From a YAML or JSON file; None takes the conditions that come with the package.

        Raises:
            InputError: the file cannot be read, a key is unknown, or a value is impossible.
        """
        if path is None:
            home = files("epic_retrieval") / "data" / "benchmarks" / "rag.yaml"
            return cls.from_dict(parse_document(home.read_bytes(), ".yaml"))
        try:
            return cls.from_dict(read_document(path))
        except InputError as error:
            text = str(error)
            raise InputError(text if str(path) in text else f"{path}: {text}") from None

    @classmethod
    def from_dict(cls, given: object) -> Self:
        """From plain data; what is left out has its default."""
        values = _fields_of(cls, given, "")
        if "answering" in values:
            values["answering"] = Answering(
                **_fields_of(Answering, values["answering"], "answering.")
            )
        if "scaling" in values:
            values["scaling"] = Scaling(**_fields_of(Scaling, values["scaling"], "scaling."))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `from_dict` reads it."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def with_options(self, **given: Any) -> Self:  # noqa: ANN401 (of any field)
        """The same with some fields replaced; None leaves one as it is."""
        return replace(self, **{key: value for key, value in given.items() if value is not None})


def _fields_of(kind: type, given: object, where: str) -> dict[str, Any]:
    """The entries of a mapping by field, lists as tuples, each of the default's type."""
    if not isinstance(given, Mapping):
        raise InputError(f"{where or 'conditions'}: expected names and values, got {given!r}")
    known = {one.name: one for one in fields(kind)}
    if unknown := sorted(set(map(str, given)) - set(known)):
        raise InputError(
            f"unknown condition {where}{unknown[0]}; expected some of {', '.join(known)}"
        )
    defaults = kind()
    return {
        str(name): _typed(f"{where}{name}", value, getattr(defaults, str(name)))
        for name, value in given.items()
    }


def _typed(name: str, value: object, default: object) -> object:
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple):
            raise InputError(f"{name} is {value!r}; expected a list")
        one: object = default[0]
        return tuple(_typed(name, entry, one) for entry in value)
    wanted: tuple[type, ...]
    match default:
        case int():
            wanted = (int,)
        case float():
            wanted = (int, float)
        case str():
            wanted = (str,)
        case _:
            return value
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise InputError(f"{name} is {value!r}; expected {wanted[-1].__name__}")
    return value


def _known(name: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for one in given:
        if one not in known:
            raise InputError(f"{name}: {one!r} is unknown; expected some of {', '.join(known)}")


def _at_least(name: str, given: tuple[float, ...], least: float) -> None:
    for one in given:
        if one < least:
            raise InputError(f"{name} is {one}; expected at least {least}")


def _plain(value: Any) -> Any:  # noqa: ANN401 (JSON)
    match value:
        case dict():
            return {key: _plain(one) for key, one in value.items()}
        case tuple():
            return [_plain(one) for one in value]
        case _:
            return value
