"""Kinds of likeness that demonstrations show, and what a text is to become where one is shown.

To an encoder whose aim demonstrations never change they are noise, and it learns to overlook them.
So here they change it. For every kind a linear map of the teacher's space is fitted to pairs of
that kind; behind demonstrations of a kind, any text's aim is the map of its plain aim. The same
texts stand behind several kinds in a step, under one instruction, so that nothing but
demonstrations says which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Piece, Vectors, build_prompt
from epic_training.encoding import RowEncoder
from epic_training.pairs import Pair, TokenColumn, TokenisedPairs, open_pairs
from epic_training.second import texts_of, training_pairs
from epic_training.step import Parts
from epic_training.teacher import Teacher, order_of

_RANK = 64  # of what a map adds
_RATE = 1e-3
_DECAY = 0.05
_BATCH = 128
_EPOCHS = 40
_PATIENCE = 5  # epochs without a better score on held-out pairs
_HELD_OUT = 8  # one pair in so many
_TEMPERATURE = 0.05
_FEWEST = 2  # kinds of a step


@dataclass(frozen=True)
class Kind:
    """A kind of likeness.

    Attributes:
        name: of the kind.
        pairs: of the data sets that show it.
        symmetric: passages stand behind the instruction too.
        matrix: (d, d), by which a plain aim is multiplied from the right.
        drawn: the aim is instead the one that is drawn to what belongs to a text.
    """

    name: str
    pairs: Sequence[TokenisedPairs]
    symmetric: bool
    matrix: Tensor
    drawn: bool = False


@dataclass(frozen=True)
class ShownConfig:
    """What a step shows.

    Attributes:
        texts: per step, each behind every kind of the step.
        at_once: kinds per step.
        opening: so many steps come first in which all kinds of `first` are shown, and no others:
            few that differ much are told apart sooner than many.
        first: names of kinds.
        always: after that, names of kinds that are among those of every step.
        without: after that, names of kinds that are in no step.
        most: demonstrations of a prompt, at most.
        max_tokens: a text is cut here.
        demonstration_tokens: a demonstration's query, and its passage, is cut here.
        rows_at_once: rows per forward pass.
        apart: weight of the distance of `told_apart`.
    """

    texts: int = 8
    at_once: int = 8
    opening: int = 0
    first: Sequence[str] = ()
    always: Sequence[str] = ()
    without: Sequence[str] = ()
    most: int = 5
    max_tokens: int = 48
    demonstration_tokens: int = 48
    rows_at_once: int = 16
    apart: float = 10.0


class ShownKinds(nn.Module):
    """The loss of texts behind demonstrations, a function of a step's number and the seed alone.

    Args:
        checkpoint: the student, in memory.
        kinds: at least `at_once`.
        texts: n tokenised texts.
        plain: (n, d) aims of texts as they are.
        drawn: (n, d) aims that hold what belongs to a text.
        weights: (n,) how often a text is drawn, in all 1.
        instructions: what stands before demonstrations and texts, one per step.
        config: of a step.
        seed: of all draws.
        end: id that every row ends in.

    Raises:
        InputError: for more or fewer kinds or texts than there are, or unknown ones.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kinds: Sequence[Kind],
        texts: TokenColumn,
        plain: Tensor,
        drawn: Tensor,
        weights: NDArray[np.float64],
        instructions: Sequence[str],
        config: ShownConfig,
        *,
        seed: int,
        end: int = 2,
    ) -> None:
        super().__init__()
        _check(config, [kind.name for kind in kinds], int(np.count_nonzero(weights)))
        assert checkpoint.projector is not None  # noqa: S101  (the pipeline makes one)
        self.model, self.projector = checkpoint.backbone.model, checkpoint.projector
        self.checkpoint, self.config = checkpoint, config
        self._kinds, self._texts, self._instructions = kinds, texts, instructions
        self._plain, self._drawn = plain, drawn
        usable = weights * (np.diff(texts.ends, prepend=0) > 0)
        self._weights = usable / usable.sum()
        self._seed, self._end = seed, end
        self._rows = RowEncoder(checkpoint, config.rows_at_once, cached=False)

    def forward(self, step: int) -> tuple[Tensor, Parts]:
        """A scalar, and what to log; `read` is the share of `told_apart`."""
        config = self.config
        rng = np.random.default_rng([self._seed, step, 1])
        chosen = rng.choice(len(self._weights), size=config.texts, replace=False, p=self._weights)
        rows = [[*self._texts[int(i)][: config.max_tokens].tolist(), self._end] for i in chosen]
        if step < config.opening:
            kinds = [kind for kind in self._kinds if kind.name in config.first]
        else:
            kinds = [kind for kind in self._kinds if kind.name in config.always]
            others = [k for k in self._kinds if k.name not in {*config.always, *config.without}]
            more = rng.choice(len(others), size=config.at_once - len(kinds), replace=False)
            kinds += [others[int(i)] for i in more]
        template = self.checkpoint.config.template
        instruction = self._instructions[int(rng.integers(len(self._instructions)))]
        states = []
        for shown in self._demonstrations(kinds, instruction, rng):
            prompt = self._rows.embed(build_prompt(template, instruction, shown))
            states.append(self._rows.encode(rows, self._rows.behind(prompt)))
        device = self.checkpoint.backbone.device
        aims = torch.stack([self._aims(kind, chosen).to(device) for kind in kinds])
        found = torch.stack(states)
        cosine = functional.cosine_similarity(found.float(), aims, dim=2).mean()
        difference, read = told_apart(found, aims)
        parts = {"shown_cosine": cosine.detach(), "read": read}
        return 1 - cosine + config.apart * difference, parts

    def _aims(self, kind: Kind, rows: NDArray[np.int64]) -> Tensor:
        """(m, d) of length 1."""
        aims = self._drawn[rows] if kind.drawn else self._plain[rows] @ kind.matrix
        return functional.normalize(aims, dim=1)

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


def _check(config: ShownConfig, names: Sequence[str], texts: int) -> None:
    for field in ("first", "always", "without"):
        unknown = sorted(set(getattr(config, field)) - set(names))
        if unknown:
            known = ", ".join(names)
            raise InputError(f"{field} names {', '.join(unknown)}; expected some of {known}")
    most = len(set(names) - set(config.without))
    fewest = max(_FEWEST, len(set(config.always)))
    if not fewest <= config.at_once <= most:
        raise InputError(
            f"at_once is {config.at_once}; expected {fewest} to {most}: so many kinds there are,"
            " and only side by side are they told apart"
        )
    if config.opening and len(set(config.first)) < _FEWEST:
        raise InputError(f"first names {len(config.first)} kind(s); expected {_FEWEST} or more")
    if config.texts > texts:
        raise InputError(f"texts is {config.texts}; expected at most {texts}, all that there are")


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


def make_kinds(config: Mapping[str, Any], folders: Mapping[str, Path], out: Path) -> list[Kind]:
    """The kinds of a configuration, their maps fitted or read from `out`.

    Args:
        config: of the whole training; of `kinds` is used `shown`: name to `of` (data sets),
            `pairs` (of each, at most), `keep` and `strength` (see `fitted_map`), or `drawn`.
        folders: of the data sets.
        out: folder with the tokenised data sets; the maps come to lie in it.
    """
    file = out / "maps.safetensors"
    shown = config["kinds"]["shown"]
    if not file.is_file():
        partial = file.with_suffix(".partial")
        save_file(_maps(config, folders), partial)
        partial.replace(file)
    maps = load_file(file)
    found = []
    for name, settings in shown.items():
        symmetric = _symmetric(config, settings["of"])
        pairs = [open_pairs(out / "tokens" / one, "train") for one in settings["of"]]
        found.append(Kind(name, pairs, symmetric, maps[name], settings.get("drawn", False)))
    return found


def _symmetric(config: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(config["data"][name].get("symmetric", False) for name in names)


def _maps(config: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Tensor]:
    teacher = Teacher(config["teacher"]["package"])
    limit = config["teacher"]["max_tokens"]
    rows: dict[str, list[Pair]] = {}
    for name, settings in config["kinds"]["shown"].items():
        rows[name] = [
            pair
            for one in settings["of"]
            for pair in _some(folders[one], config["dev_percent"], settings["pairs"])
        ]
    texts = sorted({text for pairs in rows.values() for text in texts_of(pairs)})
    number = {text: i for i, text in enumerate(texts)}
    vectors = torch.cat(
        [
            teacher.encode(texts[start : start + 1024], limit)
            for start in tqdm(range(0, len(texts), 1024), desc="kinds")
        ]
    )
    maps = {}
    for name, settings in config["kinds"]["shown"].items():
        if settings.get("drawn"):
            maps[name] = torch.eye(vectors.shape[1])
            continue
        pairs = rows[name]
        maps[name] = fitted_map(
            vectors,
            torch.tensor([number[pair.query] for pair in pairs]),
            torch.tensor([number[pair.positive] for pair in pairs]),
            torch.tensor([number[pair.negative] if pair.negative else -1 for pair in pairs]),
            symmetric=_symmetric(config, settings["of"]),
            keep=settings.get("keep", 5.0),
            strength=settings.get("strength", 1.0),
            seed=config["seed"],
        )
    return maps


def _some(folder: Path, dev_percent: float, most: int) -> list[Pair]:
    return sorted(training_pairs(folder, dev_percent), key=lambda pair: order_of(pair.query))[:most]


def fitted_map(
    vectors: Tensor,
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    symmetric: bool,
    keep: float,
    strength: float = 1.0,
    seed: int = 42,
) -> Tensor:
    """(d, d), the identity plus what brings the texts of a pair nearer to each other.

    Fitted by InfoNCE over batches of pairs and their hard negatives, until held-out pairs gain no
    more.

    Args:
        vectors: (n, d) of length 1.
        queries: (m,) rows of them.
        positives: (m,) the passages that belong to them.
        negatives: (m,) hard negatives; -1: none.
        symmetric: passages are mapped too.
        keep: weight of the mean squared change of any text.
        strength: what is added is multiplied by this in the end.
        seed: of draws.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(queries))
    held_out, known = order[::_HELD_OUT], np.delete(order, np.s_[::_HELD_OUT])
    generator = torch.Generator().manual_seed(seed)
    width = vectors.shape[1]
    left = (torch.randn(width, _RANK, generator=generator) * 0.05).requires_grad_()
    right = torch.zeros(_RANK, width, requires_grad=True)
    optimizer = torch.optim.AdamW([left, right], _RATE, weight_decay=_DECAY)

    def mapped(rows: Tensor) -> Tensor:
        return functional.normalize(vectors[rows] + vectors[rows] @ left @ right, dim=1)

    def loss(rows: NDArray[np.int64]) -> Tensor:
        hard = negatives[rows]
        passages = torch.cat([positives[rows], hard[hard >= 0]])
        found = mapped(passages) if symmetric else vectors[passages]
        scores = mapped(queries[rows]) @ found.T / _TEMPERATURE
        return functional.cross_entropy(scores, torch.arange(len(rows)))

    best, waited, kept = float("inf"), 0, torch.zeros(width, width)
    for _ in range(_EPOCHS):
        rng.shuffle(known)
        for start in range(0, len(known), _BATCH):
            any_text = torch.from_numpy(rng.integers(len(vectors), size=2 * _BATCH))
            change = (mapped(any_text) - vectors[any_text]).square().sum(dim=1).mean()
            optimizer.zero_grad()
            (loss(known[start : start + _BATCH]) + keep * change).backward()
            optimizer.step()
        with torch.no_grad():
            score = float(loss(held_out[: 2 * _BATCH]))
        waited += 1
        if score < best:
            best, waited, kept = score, 0, (left @ right).detach().clone()
        if waited == _PATIENCE:
            break
    return torch.eye(width) + strength * kept
