"""The one door to Ray: imports it late, connects to a cluster, and knows how much it has.

Knows nothing of what is done there.
"""

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from epic_retrieval.errors import InputError, MissingExtraError

_STATISTICS = "RAY_USAGE_STATS_ENABLED"


@dataclass(frozen=True)
class RayOptions:
    """Of the workers.

    Args:
        workers: How many; None takes as many as the cluster has room for now.
        cpus: Cores for each of them; may be a part of one. Also the threads that torch takes.
        gpus: GPUs for each of them; may be a part of one. With 0 they see none.
        address: Of a running cluster ("10.0.0.1:6379", or "auto" for one on this machine); None
            takes the one that RAY_ADDRESS names, or starts one here for as long as it is needed.
            Whether a cluster wants a token is between the user and Ray (RAY_AUTH_MODE).

    Raises:
        InputError: They are not as described.
    """

    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers is {self.workers}: expected at least 1, or None.")
        if not (self.cpus >= 0 and self.gpus >= 0 and self.cpus + self.gpus > 0):
            raise InputError(
                f"A worker shall have {self.cpus} cores and {self.gpus} GPUs: expected 0 or more "
                "of each, and some of one."
            )


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster, as `RayOptions` describes; one that is started here ends here.

    Raises:
        InputError: It cannot be started or reached.
        MissingExtraError: Ray is not installed.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield
        return
    # Left to itself, Ray looks for minutes for a cluster that once was on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    chosen = os.environ.get(_STATISTICS)
    os.environ.setdefault(_STATISTICS, "0")
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, RuntimeError, ValueError) as error:
        # The reason, such as a token that is missing, ends what Ray says of the cause.
        cause = str(error.__cause__ or "").strip().splitlines()[-1:]
        reason = shorten("; ".join([str(error), *cause]), 700)
        raise InputError(
            f"Ray cannot be {'started' if address == 'local' else f'reached at {address}'} "
            f"({reason}). Check the address, or leave it out to use this machine alone."
        ) from error
    finally:
        if chosen is None:
            del os.environ[_STATISTICS]
    try:
        yield
    finally:
        ray.shutdown()


def load_ray() -> Any:  # noqa: ANN401 (a module)
    """The module `ray`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(
            f'Encoding on a cluster needs Ray ({error}): pip install "epic-retrieval[ray]"'
        ) from error


def workers_of(options: RayOptions) -> int:
    """How many workers to start; call it inside `cluster`.

    Raises:
        InputError: There is no room for one.
    """
    if options.workers is not None:
        return options.workers
    resources = load_ray().cluster_resources()
    needs = {"CPU": options.cpus, "GPU": options.gpus}
    count = min(int(resources.get(name, 0) // need) for name, need in needs.items() if need > 0)
    if count < 1:
        raise InputError(
            f"There is no room for a worker: {room(options)}. Ask for less, or say how many "
            "workers you want if the cluster grows by itself."
        )
    return count


def room(options: RayOptions) -> str:
    """What workers need and what there is, for messages."""
    ray = load_ray()
    return (
        f"each needs {options.cpus:g} cores and {options.gpus:g} GPUs; of "
        f"{_text(ray.cluster_resources())} in the cluster {_text(ray.available_resources())} are "
        "free"
    )


def _text(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs"
