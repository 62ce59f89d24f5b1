"""`epic_config.json`: what a checkpoint folder says about how its model encodes.

Knows nothing of weights.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.method import Method
from epic_retrieval.prompt import MODES, Mode, Template, check_mode
from epic_retrieval.storage import write_atomically

CONFIG_NAME = "epic_config.json"
_FORMAT = 1


@dataclass(frozen=True)
class EpicConfig:
    """Everything beside the weights that decides a vector.

    Attributes:
        template: the wording of prompts.
        bos_token_id: id that starts a sequence, or None.
        eos_token_id: id that ends it and whose state is the embedding.
        max_length: most tokens of a text, end token included, the prompt not.
        modes: what the model was trained for, best first; the encoder's default mode is the first
            that the task allows.
        base_model: hub id or folder that a LoRA adapter belongs to; None: weights lie here.
        instruct_demonstration_passages: encode the passages of demonstrations with the instruction
            too, as Eq. 3 says literally, and not as the task's passages are encoded.
        method: what becomes of demonstrations in mode "epic", and of a text's states.
        training: how the model was trained, for the record (decisions on gradients, draws,
            loss and batches); nothing reads it when encoding.

    Raises:
        InputError: naming the entry that has a wrong type or value.
    """

    template: Template
    bos_token_id: int | None
    eos_token_id: int
    max_length: int = 512
    modes: tuple[Mode, ...] = ("none",)
    base_model: str | None = None
    instruct_demonstration_passages: bool = False
    method: Method = field(default_factory=Method)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry, low in (("bos_token_id", 0), ("eos_token_id", 0), ("max_length", 2)):
            value = getattr(self, entry)
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
            if not fits and not (entry == "bos_token_id" and value is None):
                raise InputError(f"{entry} is {value!r}; expected a whole number from {low}")
        if not self.modes:
            raise InputError(f"modes is empty; expected some of {', '.join(MODES)}")
        if not isinstance(self.base_model, str | None):
            raise InputError(f"base_model is {self.base_model!r}; expected a hub id or folder")

    def save(self, folder: Path) -> None:
        """Write `epic_config.json` into `folder`."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
        write_atomically(folder / CONFIG_NAME, (text + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "EpicConfig":
        """Read `epic_config.json` from `folder`.

        Raises:
            CheckpointError: naming the file and what is wrong with it.
        """
        path = folder / CONFIG_NAME
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            if state.pop("format") != _FORMAT:
                raise CheckpointError(
                    f"{path} has another format than {_FORMAT}; upgrade epic-retrieval to read it"
                )
            unknown = set(state) - {known.name for known in fields(cls)}
            if unknown:
                raise CheckpointError(f"{path} has unknown entries {sorted(unknown)}; remove them")
            state["template"] = Template(**state["template"])
            state["method"] = Method(**state.get("method", {}))
            state["modes"] = tuple(check_mode(mode) for mode in state["modes"])
            return cls(**state)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        except (KeyError, TypeError, AttributeError, InputError) as error:
            raise CheckpointError(
                f"{path} is not an EPIC configuration ({error!r}); save the model again with"
                " EpicEncoder.save_pretrained"
            ) from error
