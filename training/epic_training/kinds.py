"""Kinds of likeness that demonstrations show, and what a text is to become where one is shown.

To an encoder whose aim demonstrations never change they are noise, and it learns to overlook them.
So here they change it: behind demonstrations of a kind, a text's aim is what an expert of this kind
makes of it (`experts`). The same texts stand behind every kind in a step, under one instruction, so
that nothing but demonstrations says which.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Piece, Vectors, build_prompt
from epic_training.encoding import RowEncoder
from epic_training.experts import Kind, Likeness, LikenessConfig, vectors_of
from epic_training.pairs import TokenColumn, open_pairs
from epic_training.stages import SCHEDULE, run_stage
from epic_training.step import Parts

_FEWEST = 2  # kinds


@dataclass(frozen=True)
class ShownConfig:
    """What a step shows.

    Attributes:
        texts: per step, each behind every kind.
        opening: so many steps come first with nothing beside: what is overlooked gets little
            gradient, and any other aim drowns it.
        most: demonstrations of a prompt, at most.
        max_tokens: a text is cut here.
        demonstration_tokens: a demonstration's query, and its passage, is cut here.
        rows_at_once: rows per forward pass.
        apart: weight of the distance of `told_apart`.
    """

    texts: int = 8
    opening: int = 0
    most: int = 5
    max_tokens: int = 48
    demonstration_tokens: int = 48
    rows_at_once: int = 16
    apart: float = 10.0


class ShownKinds(nn.Module):
    """The loss of texts behind demonstrations, a function of a step's number and the seed alone.

    Args:
        checkpoint: the student, in memory.
        kinds: two or more.
        texts: n tokenised texts, none empty.
        aims: (kinds, n, d) what they are to become.
        instructions: what stands before demonstrations and texts, one per step.
        config: of a step.
        seed: of all draws.
        end: id that every row ends in.

    Raises:
        InputError: for a single kind, or fewer texts than a step takes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kinds: Sequence[Kind],
        texts: TokenColumn,
        aims: Tensor,
        instructions: Sequence[str],
        config: ShownConfig,
        *,
        seed: int,
        end: int = 2,
    ) -> None:
        super().__init__()
        if len(kinds) < _FEWEST:
            raise InputError(
                f"{len(kinds)} kind of likeness is shown; expected {_FEWEST} or more, since only"
                " side by side are they told apart"
            )
        if config.texts > len(texts):
            raise InputError(
                f"texts is {config.texts}; expected at most {len(texts)}, all that there are"
            )
        assert checkpoint.projector is not None  # noqa: S101  (the pipeline makes one)
        self.model, self.projector = checkpoint.backbone.model, checkpoint.projector
        self.checkpoint, self.config = checkpoint, config
        self._kinds, self._texts, self._instructions = kinds, texts, instructions
        self._aims = aims
        self._seed, self._end = seed, end
        self._rows = RowEncoder(checkpoint, config.rows_at_once, cached=False)

    def forward(self, step: int) -> tuple[Tensor, Parts]:
        """A scalar, and what to log; `read` is the share of `told_apart`."""
        config = self.config
        rng = np.random.default_rng([self._seed, step, 1])
        chosen = rng.choice(len(self._texts), size=config.texts, replace=False)
        rows = [[*self._texts[int(i)][: config.max_tokens].tolist(), self._end] for i in chosen]
        template = self.checkpoint.config.template
        instruction = self._instructions[int(rng.integers(len(self._instructions)))]
        states = []
        for shown in self._demonstrations(self._kinds, instruction, rng):
            prompt = self._rows.embed(build_prompt(template, instruction, shown))
            states.append(self._rows.encode(rows, self._rows.behind(prompt)))
        found = torch.stack(states)
        aims = functional.normalize(self._aims[:, chosen].to(found.device), dim=2)
        cosine = functional.cosine_similarity(found.float(), aims, dim=2).mean()
        difference, read = told_apart(found, aims)
        parts = {"shown_cosine": cosine.detach(), "read": read}
        return 1 - cosine + config.apart * difference, parts

    def _demonstrations(
        self, kinds: Sequence[Kind], instruction: str, rng: np.random.Generator
    ) -> list[list[dict[str, Piece]]]:
        """For each kind its demonstrations, encoded as inference does."""
        limit = self.config.demonstration_tokens
        behind: list[list[int]] = []
        alone: list[list[int]] = []
        places: list[list[tuple[int, int, bool]]] = []
        for kind in kinds:
            places.append([])
            for _ in range(int(rng.integers(1, self.config.most + 1))):
                pairs = kind.pairs[int(rng.integers(len(kind.pairs)))]
                row = int(rng.integers(len(pairs)))
                query = [*pairs.query[row][:limit].tolist(), self._end]
                passage = [*pairs.positive[row][:limit].tolist(), self._end]
                side = behind if kind.symmetric else alone
                behind.append(query)
                number = len(behind) - 1
                side.append(passage)
                places[-1].append((number, len(side) - 1, kind.symmetric))
        prompt = self._rows.embed(build_prompt(self.checkpoint.config.template, instruction))
        instructed = self.projector(self._rows.encode(behind, self._rows.behind(prompt)))
        bare = self.projector(self._rows.encode(alone, self._rows.bare)) if alone else instructed
        return [
            [
                {
                    "query": Vectors(instructed[q : q + 1]),
                    "passage": Vectors((instructed if symmetric else bare)[p : p + 1]),
                }
                for q, p, symmetric in shown
            ]
            for shown in places
        ]


def told_apart(states: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
    """How far what demonstrations change is from what they should, and how much of it is there.

    Args:
        states: (k, m, d) of the student, of the same m texts behind each of k kinds.
        aims: (k, m, d) of length 1.

    Returns:
        The squared distance of what sets a text's vectors apart by kind (their difference to their
        mean) from what should, mean over texts and kinds; and the share of what should that it
        holds: 0 where demonstrations are overlooked.
    """
    unit = functional.normalize(states.float(), dim=2)
    found, wanted = unit - unit.mean(dim=0), aims - aims.mean(dim=0)
    distance = (found - wanted).square().sum(dim=2).mean()
    share = (found * wanted).sum() / wanted.square().sum().clamp_min(1e-9)
    return distance, share.detach()


def make_kinds(config: Mapping[str, Any], out: Path) -> list[Kind]:
    """The kinds of a configuration: `kinds.shown`, name to `of` (data sets), `hard`.

    Args:
        config: of the whole training.
        out: folder with the tokenised data sets.
    """
    return [
        Kind(
            name,
            [open_pairs(out / "tokens" / one, "train") for one in settings["of"]],
            all(config["data"][one].get("symmetric", False) for one in settings["of"]),
            settings.get("hard", True),
        )
        for name, settings in config["kinds"]["shown"].items()
    ]


def shown_texts(
    texts: TokenColumn,
    weights: NDArray[np.float64],
    kinds: Sequence[Kind],
    count: int,
    max_tokens: int,
    seed: int,
) -> TokenColumn:
    """Texts to stand behind demonstrations: half of `texts`, half queries of the kinds, cut.

    Args:
        texts: tokenised texts.
        weights: (n,) how often they are drawn.
        kinds: each gives as many.
        count: in all, about.
        max_tokens: where they are cut.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    usable = weights * (np.diff(texts.ends, prepend=0) > 0)
    half = min(count // 2, int(np.count_nonzero(usable)))
    drawn = rng.choice(len(usable), size=half, replace=False, p=usable / usable.sum())
    rows = [texts[int(i)][:max_tokens] for i in drawn]
    for kind in kinds:
        for _ in range(count // 2 // len(kinds)):
            queries = kind.pairs[int(rng.integers(len(kind.pairs)))].query
            row = queries[int(rng.integers(len(queries)))][:max_tokens]
            rows += [row] if len(row) else []
    return TokenColumn(np.concatenate(rows), np.cumsum([len(row) for row in rows]))


def expert_aims(
    config: Mapping[str, Any],
    kinds: Sequence[Kind],
    checkpoint: Checkpoint,
    lessons: tuple[TokenColumn, Tensor, NDArray[np.float64]],
    texts: TokenColumn,
    out: Path,
    strength: float = 1.0,
) -> Tensor:
    """(kinds, n, d) what n texts are to become behind demonstrations of each kind.

    That is what an expert makes of them, which is trained, or read from `out`.

    Args:
        config: of the whole training; `kinds.experts` has the fields of `LikenessConfig` and of a
            stage's plan.
        kinds: in the order of the aims.
        checkpoint: what each expert starts as; not changed.
        lessons: texts that are to stay what they are, (m, d) what they are, (m,) how often they
            are drawn.
        texts: to encode.
        out: folder of the training; each expert's aims come to lie in `experts/` in it.
        strength: what an expert's change of a text is multiplied by.
    """
    folder = out / "experts"
    folder.mkdir(exist_ok=True)
    known = {field.name for field in fields(LikenessConfig)}
    chosen = config["kinds"]["experts"]
    settings = LikenessConfig(**{key: value for key, value in chosen.items() if key in known})
    plan = {key: value for key, value in chosen.items() if key in SCHEDULE}
    limits = settings.max_tokens, settings.rows_at_once
    plain = _kept(folder / "plain.safetensors", lambda: vectors_of(checkpoint, texts, *limits))
    found = []
    for number, kind in enumerate(kinds):

        def made(kind: Kind = kind, seed: int = config["seed"] + number) -> NDArray[np.float16]:
            own = copy.copy(checkpoint.backbone)
            own.model = copy.deepcopy(checkpoint.backbone.model)
            expert = replace(checkpoint, backbone=own)
            loss = Likeness(expert, kind, checkpoint, *lessons, settings, seed=seed)
            run_stage(kind.name, plan, 0.0, loss, loss, folder)
            return vectors_of(expert, texts, *limits)

        aims = _kept(folder / f"{kind.name}-aims.safetensors", made)
        found.append(plain + strength * (aims - plain))
        (folder / f"{kind.name}.safetensors").unlink(missing_ok=True)  # ten times what is needed
    return torch.stack(found)


def _kept(file: Path, make: Callable[[], NDArray[np.float16]]) -> Tensor:
    """(n, d) float32 of a file, which is made where it is missing."""
    if not file.is_file():
        partial = file.with_suffix(".partial")
        save_file({"vectors": torch.from_numpy(make())}, partial)
        partial.replace(file)
    return load_file(file)["vectors"].float()
