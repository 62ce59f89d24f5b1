"""How a task's demonstrations were chosen and whether they helped: a record, which decides nothing.

Knows nothing of models, data and statistics; `epic demos select` fills it in.
"""

import math
import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from epic_retrieval.errors import InputError

Outcome = Literal["with", "without"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome of choosing demonstrations on labelled queries.

    The best of several sets of demonstrations was chosen on one part of the queries, and compared
    with the instruction alone on another part, which the choice had not seen.

    Attributes:
        outcome: "with" the demonstrations, or "without" any: the task has none then.
        forced: the demonstrations were kept although the gain may be none.
        mode: what became of the demonstrations that were compared: "epic" or "text".
        strategy: how they were found.
        k: how many they were.
        seed: of the strategy's random draw.
        candidates: how many sets were compared.
        metric: of the two scores.
        score_without: mean over the deciding queries with the instruction alone.
        score_with: the same with the demonstrations.
        gain: the difference.
        interval: of the gain, from a paired bootstrap over queries.
        confidence: of the interval, between 0 and 1.
        queries_choosing: how many queries the best set was chosen on.
        queries_deciding: how many it was compared with none on.
        passages: how many there were to be found.
        model: the encoder's name.
        fingerprint: hex digest of everything of the model that decides a query's vector.

    Raises:
        InputError: naming the field that has a wrong type or value.
    """

    outcome: Outcome
    forced: bool
    mode: str
    strategy: str
    k: int
    seed: int
    candidates: int
    metric: str
    score_without: float
    score_with: float
    gain: float
    interval: tuple[float, float]
    confidence: float
    queries_choosing: int
    queries_deciding: int
    passages: int
    model: str
    fingerprint: str

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.type is float:
                object.__setattr__(self, one.name, _number(one.name, getattr(self, one.name)))
            elif one.type in {int, bool, str}:
                _check(one.name, getattr(self, one.name), one.type)
        if self.outcome not in get_args(Outcome):
            raise InputError(f'outcome is {self.outcome!r}; expected "with" or "without"')
        ends: object = self.interval
        if not isinstance(ends, list | tuple) or len(ends) != 2:
            raise InputError(f"interval is {reprlib.repr(ends)}; expected two numbers")
        low, high = (_number("interval", end) for end in ends)
        object.__setattr__(self, "interval", (low, high))

    def to_dict(self) -> dict[str, object]:
        """Plain data, as a task file holds it."""
        return asdict(self) | {"interval": list(self.interval)}


def _check(name: str, value: object, kind: object) -> None:
    if type(value) is not kind:  # a bool is an int too
        wanted = {int: "a whole number", bool: "true or false", str: "a text"}[kind]  # type: ignore[index]
        raise InputError(f"{name} is {reprlib.repr(value)}; expected {wanted}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {reprlib.repr(value)}; expected a finite number")
    return float(value)
