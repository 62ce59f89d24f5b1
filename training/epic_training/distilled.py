"""From a teacher to a decoder that gives nearly its vectors: the beginning of the bundled model.

Teacher's vectors of the training texts, a decoder that starts with the teacher's layers or as a
static embedder, distillation. Every stage resumes where it was stopped. Knows nothing of
demonstrations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from epic_retrieval.checkpoint import Checkpoint
from epic_training.distil import DistilConfig, Distillation
from epic_training.inherited import inherited_decoder
from epic_training.pairs import TokenColumn
from epic_training.second import second_lessons
from epic_training.stages import SCHEDULE, run_stage
from epic_training.static_embeddings import (
    RESERVED,
    StaticConfig,
    StaticEmbedder,
    fit,
    install,
    sentence_basis,
    zipf_log_weights,
)
from epic_training.teacher import TaughtTexts, Teacher, teach
from epic_training.vocabulary import CONTINUED, teacher_ids

STAGES = ("distil", "prompts", "second", "kinds", "settled")
_PAD, _BOS, _EOS, _UNKNOWN = 0, 1, 2, 3
_TOKENISE_AT_ONCE = 8192


class Lessons:
    """Texts as the student reads them, and what the teacher makes of them.

    Args:
        taught: of `teach`.
        tokenizer: the student's.
        max_tokens: a text is cut here.
        basis: (teacher's width, k) of `sentence_basis`, for a student that starts as a static
            embedder; None for one as wide as the teacher.
        weights: see `Distillation`.
        passages: see `Distillation`.

    Attributes:
        targets: (n, d) float32 in the student's space, whose first coordinates hold no meaning
            where it starts as a static embedder.
        queries: (n,) float64, how often a text is drawn as a query; 0 for `passages`.
    """

    def __init__(
        self,
        taught: TaughtTexts,
        tokenizer: Tokenizer,
        max_tokens: int,
        basis: Tensor | None = None,
        weights: NDArray[np.float64] | None = None,
        passages: NDArray[np.bool_] | None = None,
    ) -> None:
        self.taught, self.weights, self.passages = taught, weights, passages
        self.texts = _tokenised(taught.texts, tokenizer, max_tokens)
        self.targets = torch.from_numpy(taught.vectors.astype(np.float32))
        if basis is not None:
            self.targets = torch.nn.functional.pad(self.targets @ basis, (RESERVED, 0))
        n = len(self.texts)
        even = np.full(n, 1 / n) if weights is None else weights
        self.queries = even if passages is None else even * ~passages


def _tokenised(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> TokenColumn:
    pieces = [
        np.asarray(encoding.ids[:max_tokens], dtype=np.int32)
        for start in range(0, len(texts), _TOKENISE_AT_ONCE)
        for encoding in tokenizer.encode_batch_fast(
            list(texts[start : start + _TOKENISE_AT_ONCE]), add_special_tokens=False
        )
    ]
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return TokenColumn(np.concatenate(pieces), ends)


def distilled_start(
    config: Mapping[str, Any], folders: Mapping[str, Path], out: Path, tokenizer: Tokenizer
) -> tuple[PreTrainedModel, Lessons]:
    """A decoder that gives vectors close to the teacher's, and what it will be taught.

    It starts with the teacher's layers where the configuration says which it is to `inherit`, else
    as a `static` embedder.
    """
    taught = teach(config["teacher"], folders, out / "teacher", config["dev_percent"])
    if "inherit" in config:
        model, lessons = _inherited_start(config, taught, tokenizer)
    else:
        model, lessons = _static_start(config, taught, out, tokenizer)
    if "attention" in config:
        model.set_attn_implementation(config["attention"])
    return model, lessons


def _inherited_start(
    config: Mapping[str, Any], taught: TaughtTexts, tokenizer: Tokenizer
) -> tuple[PreTrainedModel, Lessons]:
    torch.manual_seed(config["seed"])
    teacher = Teacher(config["teacher"]["package"])
    model = inherited_decoder(
        teacher.model,
        teacher_ids(tokenizer, teacher.tokenizer),
        config["inherit"]["layers"],
        config["inherit"]["positions"],
        (_PAD, _BOS, _EOS),
    )
    return model, Lessons(taught, tokenizer, config["distil"]["max_tokens"])


def _static_start(
    config: Mapping[str, Any], taught: TaughtTexts, out: Path, tokenizer: Tokenizer
) -> tuple[PreTrainedModel, Lessons]:
    file = out / "static.safetensors"
    basis = load_file(file)["basis"] if file.is_file() else None
    if basis is None:
        basis = sentence_basis(taught.vectors, config["model"]["hidden_size"] - RESERVED)
    lessons = Lessons(taught, tokenizer, config["distil"]["max_tokens"], basis)
    if not file.is_file():
        made = _static_embedder(config, tokenizer, lessons, basis)
        partial = file.with_suffix(".partial")
        save_file({"basis": basis, **made.state_dict()}, partial)
        partial.replace(file)
    state = load_file(file)
    torch.manual_seed(config["seed"])
    model = LlamaModel(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            **config["model"],
            tie_word_embeddings=True,
            pad_token_id=_PAD,
            bos_token_id=_BOS,
            eos_token_id=_EOS,
        )
    )
    special = [_PAD, _BOS, _EOS, _UNKNOWN]
    size = StaticConfig(**config["static"]).embedding_rms
    install(model, StaticEmbedder(state["vectors"], state["log_weights"]), special, _EOS, size)
    return model, lessons


def _static_embedder(
    config: Mapping[str, Any], tokenizer: Tokenizer, lessons: Lessons, basis: Tensor
) -> StaticEmbedder:
    size = tokenizer.get_vocab_size()
    words = [str(tokenizer.id_to_token(i)).removeprefix(CONTINUED) for i in range(size)]
    vectors = Teacher(config["teacher"]["package"]).encode(words, max_tokens=16) @ basis
    counts = np.bincount(lessons.texts.ids, minlength=size)
    embedder = StaticEmbedder(vectors - vectors.mean(dim=0), zipf_log_weights(counts))
    settings = StaticConfig(seed=config["seed"], **config["static"])
    fit(embedder, lessons.texts, lessons.targets[:, RESERVED:], settings)
    return embedder


def second_start(
    config: Mapping[str, Any],
    folders: Mapping[str, Path],
    lessons: Lessons,
    out: Path,
    tokenizer: Tokenizer,
) -> Lessons:
    """What two teachers make of some of the texts, and of what was written for training."""
    found = second_lessons(config, folders, lessons.taught, out / "second")
    limit = config["distil"]["max_tokens"]
    return Lessons(found.taught, tokenizer, limit, None, found.weights, found.passages)


def distillation(
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    lessons: Lessons,
    instructions: Sequence[str],
    most_shown: int = 0,
    stage: str = "distil",
    **changes: Any,  # noqa: ANN401 (fields of DistilConfig)
) -> Distillation:
    """The loss of the stage `distil`; later ones repeat it, with demonstrations in the prompts.

    The stage `prompts` does what `distil` does but for what it says, with other draws, and `second`
    what `prompts` does.
    """
    known = {field.name for field in fields(DistilConfig)}
    settings: dict[str, Any] = {}
    for one in STAGES[: STAGES.index(stage) + 1]:
        settings |= config.get(one, {})
    chosen = {key: value for key, value in settings.items() if key in known}
    return Distillation(
        checkpoint,
        lessons.texts,
        lessons.targets,
        instructions,
        DistilConfig(**(chosen | changes)),
        seed=config["seed"] + STAGES.index(stage),
        end=_EOS,
        most_shown=most_shown,
        weights=lessons.weights,
        passages=lessons.passages,
    )


def distil(config: Mapping[str, Any], loss: Distillation, out: Path, stage: str = "distil") -> None:
    """Run one of the `STAGES`."""
    plan = {key: value for key, value in config[stage].items() if key in SCHEDULE}
    run_stage(stage, plan, config[stage].get("weight_decay", 0.0), loss, loss, out)
