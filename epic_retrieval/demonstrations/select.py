"""From labelled queries and an encoder to a task with demonstrations that help, or none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from epic_retrieval.demonstrations.candidates import (
    STRATEGIES,
    Candidate,
    Strategy,
    Vectors,
    candidates,
)
from epic_retrieval.demonstrations.choose import Choice, Setting, choose
from epic_retrieval.demonstrations.scoring import EncoderScorer, model_fingerprint
from epic_retrieval.demonstrations.split import Split
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.prompt import Mode, query_prompt
from epic_retrieval.tasks import Demonstration, Task

MOST_TOKENS = 256  # of a demonstration's query, and of its passage, as in bge-en-icl
_MOST_POOL = 5000  # pairs that strategies look at


@dataclass(frozen=True)
class SelectionSettings:
    """What to try, and how to decide.

    Attributes:
        strategies: see `candidates`.
        counts: numbers of demonstrations.
        draws: of the strategy "random".
        seed: of draws and of the bootstrap.
        modes: what may become of demonstrations; none given: the best that shows some among those
            that the model was trained for.
        most_tokens: a pair with a longer query or passage is not shown.
        keep: keep the demonstrations also where they may not help.
        confidence: of the interval that decides, between 0 and 1.

    Raises:
        InputError: for a number out of range; strategies and modes are checked when used.
    """

    strategies: tuple[Strategy, ...] = STRATEGIES
    counts: tuple[int, ...] = (5,)
    draws: int = 3
    seed: int = 42
    modes: tuple[Mode, ...] = ()
    most_tokens: int = MOST_TOKENS
    keep: bool = False
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.most_tokens < 1 or not 0 < self.confidence < 1:
            raise InputError(
                f"at most {self.most_tokens} tokens of a text, confidence {self.confidence};"
                " expected at least 1, and a number between 0 and 1"
            )


def select_demonstrations(
    encoder: EpicEncoder,
    task: Task,
    split: Split,
    settings: SelectionSettings | None = None,
    *,
    folder: Path | None = None,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Choice:
    """Choose demonstrations for a task, and decide whether it gets any.

    Args:
        encoder: the model that will use them.
        task: its instruction and kind; demonstrations that it has are not looked at.
        split: of labelled queries, see `split_labelled`.
        settings: what to try; None takes the defaults.
        folder: where unfinished work is kept, to go on after an interruption; None: nowhere.
        batch_size: most texts in a forward pass.
        show_progress: bars on stderr.

    Raises:
        InputError: unusable settings, or too few pairs that are short enough.
        CheckpointError: mode "epic" with a model that cannot read demonstrations as vectors.
    """
    settings = settings or SelectionSettings()
    chosen = settings.modes or (default_mode(encoder),)
    _check_modes(encoder, chosen)
    pool = list(islice(_short(encoder, split.pool, settings.most_tokens), _MOST_POOL))

    def vectors() -> Vectors:
        queries = [pair.query for pair in pool]
        bare = task.without_demonstrations()
        return encoder.encode_queries(queries, bare, "none", batch_size=batch_size)

    found = candidates(
        pool,
        vectors,
        strategies=settings.strategies,
        counts=settings.counts,
        draws=settings.draws,
        seed=settings.seed,
        modes=chosen,
    )
    _check_room(encoder, task, found)
    development = split.development
    score = EncoderScorer(
        encoder, development, folder, batch_size=batch_size, show_progress=show_progress
    )
    score.prepare(task)
    setting = Setting(
        queries=len(development.queries),
        choosing=development.choosing,
        passages=len(development.passages),
        model=_bare_name(encoder.name),
        fingerprint=model_fingerprint(encoder),
    )
    with tqdm(total=len(found), unit="candidate", disable=not show_progress) as bar:
        return choose(
            task,
            found,
            score,
            setting,
            keep=settings.keep,
            confidence=settings.confidence,
            seed=settings.seed,
            tried=bar.update,
        )


def default_mode(encoder: EpicEncoder) -> Mode:
    """The first mode with demonstrations that the checkpoint was trained for; else "text"."""
    return next((mode for mode in encoder.checkpoint.config.modes if mode != "none"), "text")


def _check_modes(encoder: EpicEncoder, modes: Sequence[Mode]) -> None:
    if "none" in modes:
        raise InputError('mode "none" shows no demonstrations; expected epic or text')
    if "epic" not in modes:
        return
    if not encoder.reads_vectors:
        raise CheckpointError(
            f"{encoder.name} has no projector, so it cannot read demonstrations as vectors; choose"
            " them for mode text"
        )
    if not encoder.checkpoint.config.method.needs_demonstrations:
        raise CheckpointError(
            f"{encoder.name} was trained with learned vectors in place of demonstrations: there are"
            " none to choose for mode epic"
        )


def _short(
    encoder: EpicEncoder, pool: Sequence[Demonstration], most: int
) -> Iterator[Demonstration]:
    cut = encoder.checkpoint.tokenizer.cut
    for pair in pool:
        if cut(pair.query, most) == pair.query and cut(pair.passage, most) == pair.passage:
            yield pair


def _check_room(encoder: EpicEncoder, task: Task, found: Sequence[Candidate]) -> None:
    """Find a prompt that does not fit the model before anything is encoded."""
    checkpoint = encoder.checkpoint
    limit = checkpoint.backbone.max_positions - checkpoint.config.max_length
    for one in found:
        if one.mode == "text":
            shown = task.with_demonstrations(one.demonstrations)
            prompt = query_prompt(checkpoint.config.template, shown, "text")
            length = len(checkpoint.tokenizer.start_ids(prompt))
            if length > limit:
                raise InputError(
                    f"the prompt of {one.label} takes {length} tokens, but the model has room for"
                    f" {limit} before a text; show fewer or shorter ones, or use mode epic"
                )


def _bare_name(name: str) -> str:
    """Without the folders of this machine, which say nothing elsewhere."""
    return Path(name).name if Path(name).is_dir() else name
