"""What is compared: an encoder in one mode, or a rival. Each becomes a model of mteb per task.

Knows nothing of data sets beyond mteb's metadata, and nothing of results.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mteb.abstasks import AbsTask

from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.evaluation.encoder import MtebEncoder
from epic_retrieval.evaluation.instructions import Instructions
from epic_retrieval.evaluation.memory import VectorMemory
from epic_retrieval.evaluation.metadata import keyed, result_key
from epic_retrieval.prompt import Mode
from epic_retrieval.storage import digest_of
from epic_retrieval.tasks import Task

_SHORT = 16


class System(Protocol):
    """Something that is evaluated."""

    @property
    def label(self) -> str:
        """What tables call it."""
        ...

    @property
    def batch_size(self) -> int:
        """Most texts of a forward pass, where nobody chose."""
        ...

    def can(self, task: AbsTask) -> bool:
        """Whether it can do this kind of task."""
        ...

    def check(self, tasks: Sequence[AbsTask]) -> None:
        """Raise now what would be raised in the middle of these tasks."""
        ...

    def model_for(self, task: AbsTask) -> Any:  # noqa: ANN401 (one of mteb's protocols)
        """A model of mteb whose metadata name everything that decides the score."""
        ...

    def described(self, task: AbsTask) -> Mapping[str, object]:
        """What a record of this task says of the system."""
        ...


class EpicSystem:
    """An encoder in one mode.

    Args:
        encoder: the loaded model.
        mode: how demonstrations enter.
        instructions: tasks and demonstrations.
        memory: of the encoder, for its other modes.
    """

    # Packed rows on a CPU, and memory on a GPU, bound a pass by tokens.
    batch_size = 512

    def __init__(
        self,
        encoder: EpicEncoder,
        mode: Mode,
        instructions: Instructions,
        memory: VectorMemory | None = None,
    ) -> None:
        self._model = MtebEncoder(encoder, mode, instructions, show_progress=None, memory=memory)
        self._meta = self._model.mteb_model_meta
        name = encoder.name.rstrip("/").rsplit("/", 1)[-1]
        precision = _precision(encoder)
        shown = name if precision == "float32" else f"{name}, {precision}"
        self.label = f"{shown}, {mode}"

    def can(self, task: AbsTask) -> bool:
        """Anything that is text."""
        return task.metadata.modalities == ["text"]

    def check(self, tasks: Sequence[AbsTask]) -> None:
        """Compute all prompts, after a look at which tasks have no demonstrations.

        Raises:
            InputError: naming all tasks without demonstrations where the mode needs them; or a
                prompt that does not fit the model.
            CheckpointError: mode "epic" with a model that has no projector.
        """
        encoder, mode = self._model.model, self._model.mode
        if mode == "epic" and not encoder.reads_vectors:
            raise CheckpointError(
                f"{encoder.name} has no projector, so it cannot be evaluated in mode epic; choose"
                " --mode none or --mode text"
            )
        if mode == "text" or (
            mode == "epic" and encoder.checkpoint.config.method.needs_demonstrations
        ):
            bare = [t.metadata.name for t in tasks if not self._task(t).demonstrations]
            if bare:
                raise InputError(
                    f"mode {mode} needs demonstrations, and these tasks have none:"
                    f" {', '.join(bare)}; give --demonstrations a folder with a file for each, or"
                    " choose --mode none"
                )
        for task in tasks:
            encoder.prepare(self._task(task), mode)

    def model_for(self, task: AbsTask) -> MtebEncoder:
        """The encoder, under the key of this task's demonstrations and data."""
        model = self._model
        data = task.metadata.dataset["revision"]
        key = result_key(model.model, self._task(task), model.mode, data)
        model.mteb_model_meta = keyed(self._meta, key, mode=model.mode)
        return model

    def described(self, task: AbsTask) -> Mapping[str, object]:
        """Mode, fingerprint of the passage side, and the task as queries are read with it."""
        model, found = self._model, self._task(task)
        shown = [one.to_dict() for one in found.demonstrations] if model.mode != "none" else []
        return {
            "model": self._meta.name,
            "fingerprint": model.model.passage_fingerprint(),
            "precision": _precision(model.model),
            "mode": model.mode,
            "instruction": found.instruction,
            "symmetric": found.symmetric,
            "demonstrations": shown,
            "demonstrations_fingerprint": digest_of(shown)[:_SHORT] if shown else None,
        }

    def _task(self, task: AbsTask) -> Task:
        return self._model.instructions.task_for(task.metadata)


def _precision(encoder: EpicEncoder) -> str:
    return encoder.checkpoint.backbone.precision.removeprefix("torch.")
