"""Trains the model that the package carries, from nothing, in one command.

    python -m epic_training.bundled training/configs/bundled.yaml --data DATA --out runs/bundled

Tokenizer, a start, EPIC contrastive training. The start is language-model pretraining, or where the
configuration names a teacher, distillation (`distilled`). Every stage resumes where it was stopped.
The finished checkpoint lies in OUT/checkpoint, in float16, or in 8 bits where it inherits the
teacher's layers.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, Qwen3Config, Qwen3Model

from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint import Checkpoint, save_checkpoint
from epic_retrieval.checkpoint_config import EpicConfig
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.projector import Projector
from epic_retrieval.prompt import TEMPLATES, Mode
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.tasks import Task, builtin_tasks
from epic_retrieval.tokenization import TextTokenizer
from epic_training.batches import BatchMaker, Source
from epic_training.development import score_development
from epic_training.distil import DistilConfig
from epic_training.distilled import (
    STAGES,
    Lessons,
    distil,
    distillation,
    distilled_start,
    second_start,
)
from epic_training.experts import Kind
from epic_training.kinds import (
    ShownConfig,
    ShownKinds,
    expert_aims,
    make_kinds,
    shown_texts,
)
from epic_training.made import data_folders
from epic_training.model_card import write_model_card
from epic_training.objective import Objective
from epic_training.pairs import open_pairs, read_pairs, tokenise_pairs
from epic_training.pretrain import PretrainConfig, cooccurrence_embeddings, pretrain
from epic_training.stages import SCHEDULE, run_stage
from epic_training.static_embeddings import start_unnoticed
from epic_training.step import ContrastiveStep, Parts, StepConfig
from epic_training.teacher import teacher_folder
from epic_training.tokenizer import save_tokenizer, train_tokenizer
from epic_training.vocabulary import wordpiece_tokenizer

logger = logging.getLogger(__name__)

_PAD, _BOS, _EOS = 0, 1, 2
_SHOWING = ("kinds", "settled")
_LATER_STAGES = ("instructions", "text", "projector")
Folders = Mapping[str, Path]  # of the data sets, by name
Loss = Callable[[int], tuple[Tensor, Parts]]  # of a step, by its number


def prepare_tokenizer(config: dict[str, Any], folders: Folders, out: Path) -> Tokenizer:
    """Make the tokenizer, unless `out` has it already."""
    file = out / "tokenizer" / "tokenizer.json"
    if not file.is_file():
        save_tokenizer(_new_tokenizer(config, folders), file.parent)
    return Tokenizer.from_file(str(file))


def prepare_tokens(
    config: dict[str, Any], folders: Folders, out: Path, tokenizer: Tokenizer
) -> None:
    """Tokenise every dataset, unless `out` has it already."""
    for name in tqdm(config["data"], desc="tokenising"):
        tokenise_pairs(
            folders[name],
            out / "tokens" / name,
            tokenizer,
            max_tokens=config["max_tokens"],
            dev_percent=config["dev_percent"],
            most=config.get("pairs"),
        )


def _new_tokenizer(config: dict[str, Any], folders: Folders) -> Tokenizer:
    if "teacher" in config:
        return wordpiece_tokenizer(teacher_folder(config["teacher"]["package"]))
    return train_tokenizer(_tokenizer_texts(config, folders), config["tokenizer"]["vocabulary"])


def _tokenizer_texts(config: dict[str, Any], folders: Folders) -> Iterator[str]:
    for name in config["data"]:
        every = 1 if name in config["tokenizer"]["whole"] else config["tokenizer"]["every"]
        for number, pair in enumerate(read_pairs(folders[name] / "pairs.jsonl.gz")):
            if number % every == 0:
                yield pair.query
                yield pair.positive


def running_text(config: dict[str, Any], out: Path) -> NDArray[np.int32]:
    """(tokens,) the training pairs as documents `BOS query positive EOS` in random order."""
    rng = np.random.default_rng(config["seed"])
    documents = []
    for name, settings in config["data"].items():
        pairs = open_pairs(out / "tokens" / name, "train")
        for index in range(len(pairs)):
            if rng.random() < settings.get("lm", 1.0):
                parts: list[Any] = [[_BOS], pairs.query[index], pairs.positive[index], [_EOS]]
                documents.append(np.concatenate(parts).astype(np.int32))
    return np.concatenate([documents[i] for i in rng.permutation(len(documents))])


def pretrained_model(config: dict[str, Any], out: Path) -> tuple[PreTrainedModel, list[Any]]:
    """The language model and its log, trained or read from `out`."""
    torch.manual_seed(config["seed"])
    vocabulary = config["tokenizer"]["vocabulary"]
    model = Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            **config["model"],
            tie_word_embeddings=True,
            pad_token_id=_PAD,
            bos_token_id=_BOS,
            eos_token_id=_EOS,
        )
    )
    ids = running_text(config, out)
    if not (out / "pretrain.safetensors").is_file():
        embeddings = cooccurrence_embeddings(ids, vocabulary, config["model"]["hidden_size"])
        with torch.no_grad():
            table: Any = model.get_input_embeddings()
            table.weight.copy_(embeddings)
            table.weight[_PAD] = 0
    settings = PretrainConfig(seed=config["seed"], **config["pretrain"])
    return model, pretrain(model, ids, settings, out)


def sources(config: dict[str, Any], out: Path) -> list[Source]:
    """The contrastive mix: every dataset, and crops of those that have passages."""
    mix = []
    for name, settings in config["data"].items():
        if not settings["weight"]:
            continue
        pairs = open_pairs(out / "tokens" / name, "train")
        task = Task(name, settings["instruction"], symmetric=settings.get("symmetric", False))
        mix.append(Source(task, pairs, settings["weight"]))
        if settings.get("crop"):
            crop = Task(f"{name}-crop", "Given a few words, retrieve the passage they come from")
            mix.append(Source(crop, pairs, settings["crop"], crop=True))
    return mix


def new_checkpoint(config: dict[str, Any], out: Path, model: PreTrainedModel) -> Checkpoint:
    """The model with the tokenizer of `out` and a new projector."""
    hf = AutoTokenizer.from_pretrained(out / "tokenizer")
    tokenizer = TextTokenizer(hf, bos_id=_BOS, eos_id=_EOS)
    backbone = Backbone(model)
    torch.manual_seed(config["seed"])
    projector = Projector(backbone.dimension).to(backbone.device)
    with_text = {"text", "prompts"} & set(config)
    modes: tuple[Mode, ...] = ("epic", "none", "text") if with_text else ("epic", "none")
    epic_config = EpicConfig(
        TEMPLATES["epic"], _BOS, _EOS, config["max_length"], modes, training=config
    )
    return Checkpoint("epic-mini", backbone, tokenizer, projector, epic_config)


def instructions_of(config: Mapping[str, Any]) -> list[str]:
    """Those of the built-in tasks and of the data sets that batches are made of, each once."""
    own = {one["instruction"] for one in config["data"].values() if one["weight"]}
    return sorted(own | {task.instruction for task in builtin_tasks().values()})


def start_projector(
    checkpoint: Checkpoint, rows: Sequence[Sequence[int]], noticed: float | None = None
) -> None:
    """Scale the projector to the token embeddings, by the states of a few texts.

    Args:
        checkpoint: changed in place.
        rows: tokens of texts.
        noticed: as in `start_unnoticed`, where the decoder started as a static embedder.
    """
    backbone, projector = checkpoint.backbone, checkpoint.projector
    assert projector is not None  # noqa: S101  (this pipeline makes one)
    with torch.no_grad():
        states = backbone.encode([[_BOS, *row] for row in rows])
    projector.scale_to(states, backbone.embedding_rms())
    if noticed is not None:
        start_unnoticed(projector, backbone.model, _BOS, noticed)


def shown_kinds(
    config: dict[str, Any],
    kinds: Sequence[Kind],
    checkpoint: Checkpoint,
    lessons: Lessons,
    out: Path,
    stage: str = "kinds",
) -> tuple[Loss, ShownKinds]:
    """The loss of the stage `kinds`: texts behind demonstrations, and distillation as before.

    The latter after the stage's opening. Trains the experts first, where `out` lacks their aims.
    The stage `settled` does the same but for what it says.
    """
    chosen = dict(config["kinds"])
    if stage == "settled":
        step = chosen["step"] | {"opening": 0} | config[stage].get("step", {})
        chosen |= config[stage] | {"step": step}
    settings, strength = ShownConfig(**chosen["step"]), chosen["strength"]
    limit, seed = settings.max_tokens, config["seed"]
    texts = shown_texts(lessons.texts, lessons.queries, kinds, chosen["texts"], limit, seed)
    kept = lessons.texts, lessons.targets, lessons.queries
    aims = expert_aims(config, kinds, checkpoint, kept, texts, out, strength)
    seed += _SHOWING.index(stage)
    known = instructions_of(config)
    shown = ShownKinds(checkpoint, kinds, texts, aims, known, settings, seed=seed, end=_EOS)
    rest = distillation(config, checkpoint, lessons, known, 0, stage)
    weight = chosen["weight"]

    def compute(step: int) -> tuple[Tensor, Parts]:
        loss, parts = shown(step)
        if step < settings.opening:
            return weight * loss, parts
        other, found = rest(step)
        return weight * loss + other, found | parts

    return compute, shown


def train_contrastive(
    config: dict[str, Any], out: Path, checkpoint: Checkpoint, replay: Loss | None = None
) -> None:
    """EPIC training of the whole model; resumes from `out`.

    First every data set with its own instruction, or, with `own` below 1, some batches with that of
    a built-in task; then, where the configuration has them, two shorter stages: `instructions`, in
    which most batches get the instruction of some built-in task instead, since a model that saw one
    instruction per data set is thrown off course by any other; and `text`, which also shows
    demonstrations as text, so that mode "text" works at all; `projector`, in which nothing else
    learns.

    Args:
        config: of the whole training.
        out: folder of states and logs.
        checkpoint: trained in place.
        replay: a loss that every step repeats beside its own, weighted `replay`, so that what was
            distilled is not forgotten.
    """
    chosen = dict(config["contrastive"])
    batch, decay = chosen.pop("batch"), chosen.pop("weight_decay")
    own, weight = chosen.pop("own", 1.0), chosen.pop("replay", 0.0)
    mixed = chosen.pop("mixed", 0.0)
    chosen.pop("replayed", None)
    plan = {key: chosen.pop(key) for key in SCHEDULE if key in chosen}
    limits = {key: chosen.pop(key) for key in ("negatives", "query_tokens", "passage_tokens")}
    objective = Objective(**{one.name: chosen.pop(one.name) for one in fields(Objective)})
    settings = StepConfig(objective=objective, **chosen)
    pool = sorted({task.instruction for task in builtin_tasks().values()})
    make_batch = BatchMaker(
        sources(config, out),
        batch,
        seed=config["seed"],
        end=_EOS,
        own=own,
        instructions=pool if own < 1 else (),
        mixed=mixed,
        **limits,
    )
    step_loss = ContrastiveStep(checkpoint, settings)
    backbone = checkpoint.backbone
    if "teacher" not in config:
        start_projector(checkpoint, make_batch(0).positives[:64])
    repeated = None if replay is None or not weight else (replay, weight)
    compute = contrast(make_batch, step_loss, repeated)
    run_stage("contrastive", plan, decay, compute, step_loss, out)
    for number, stage in enumerate(_LATER_STAGES, start=1):
        if stage in config:
            later = dict(config[stage])
            own, text_share = later.pop("own"), later.pop("text_share", 0.0)
            varied = replace(
                make_batch,
                instructions=pool,
                own=own,
                seed=config["seed"] + number,
                mixed=later.pop("mixed", mixed),
            )
            changed = replace(settings, text_share=text_share)
            if stage == "projector":
                changed = replace(changed, plain_weight=0.0)
                backbone.model.requires_grad_(False)
            shown = ContrastiveStep(checkpoint, changed)
            run_stage(stage, later, decay, contrast(varied, shown, repeated), shown, out)
    backbone.model.eval()


def contrast(
    make_batch: BatchMaker, step_loss: ContrastiveStep, replay: tuple[Loss, float] | None
) -> Loss:
    """From the number of a step to its loss."""

    def compute(step: int) -> tuple[Tensor, Parts]:
        rng = np.random.default_rng([make_batch.seed, step])
        batch = make_batch(step)
        loss, parts = step_loss(batch, rng)
        if batch.kinds:
            parts = {f"mixed_{name}": value for name, value in parts.items()}
        if replay is None:
            return loss, parts
        repeated, weight = replay
        again, found = repeated(step + 1_000_000 * make_batch.seed)  # other texts than before
        return loss + weight * again, parts | found

    return compute


def main(
    config: Annotated[Path, typer.Argument(help="YAML file, as training/configs/bundled.yaml")],
    data: Annotated[Path, typer.Option(help="folder of datasets (pairs.jsonl.gz in each)")],
    out: Annotated[Path, typer.Option(help="folder for everything that is made")],
) -> None:
    """Train the bundled model; run again after an interruption to go on."""
    logging.basicConfig(level=logging.INFO)
    settings = _complete(read_recipe(config))
    out.mkdir(parents=True, exist_ok=True)
    folders = data_folders(settings, data, out)
    tokenizer = prepare_tokenizer(settings, folders, out)
    prepare_tokens(settings, folders, out, tokenizer)
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    replay = None
    if "teacher" in settings:
        model, lessons = distilled_start(settings, folders, out, tokenizer)
        checkpoint = new_checkpoint(settings, out, model.to(device))
        known = instructions_of(settings)
        first = [[*lessons.texts[i].tolist(), _EOS] for i in range(min(64, len(lessons.texts)))]
        start_projector(checkpoint, first, settings["distil"].get("noticed"))
        shown = settings["distil"].get("shown", 0)
        last = "distil"
        for stage in STAGES:
            if stage in settings and stage not in _SHOWING:
                last = stage
                if stage == "second":
                    lessons = second_start(settings, folders, lessons, out, tokenizer)
                loss = distillation(settings, checkpoint, lessons, known, shown, stage)
                distil(settings, loss, out, stage)
        if "kinds" in settings:
            kinds = make_kinds(settings, out)
            shown_kinds(settings, kinds, checkpoint, lessons, out)  # trains the experts
            # Vectors that were noise so far are overlooked so well that nothing is learned of them.
            assert checkpoint.projector is not None  # noqa: S101  (this pipeline makes one)
            checkpoint.projector.load_state_dict(Projector(lessons.targets.shape[1]).state_dict())
            start_projector(checkpoint, first)
            for stage in _SHOWING:
                if stage in settings:
                    replay, module = shown_kinds(settings, kinds, checkpoint, lessons, out, stage)
                    plan = {key: value for key, value in settings[stage].items() if key in SCHEDULE}
                    run_stage(stage, plan, 0.0, replay, module, out)
        else:
            changes = settings["contrastive"].get("replayed", {})
            replay = distillation(settings, checkpoint, lessons, known, shown, last, **changes)
    else:
        model, _ = pretrained_model(settings, out)
        checkpoint = new_checkpoint(settings, out, model.to(device))
    train_contrastive(settings, out, checkpoint, replay)
    assert checkpoint.projector is not None  # noqa: S101
    checkpoint.projector.half()
    rounded = "inherit" in settings  # as wide as the teacher, it would be too large otherwise
    if not rounded:
        checkpoint.backbone.model.half()
    save_checkpoint(checkpoint, out / "checkpoint", rounded=rounded)
    describe(settings, folders, out)
    logger.info("saved %s", out / "checkpoint")


def read_recipe(file: Path) -> dict[str, Any]:
    """A recipe; one that `extends` another in its folder is that one but for what it says.

    What is null in it is left out.
    """
    recipe: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    if "extends" not in recipe:
        return recipe
    base = read_recipe(file.parent / recipe.pop("extends"))
    return _merged(base, recipe)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in changes.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            found[key] = _merged(base[key], value)
        else:
            found[key] = value
    return found


def _complete(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with both stages' defaults spelled out, so that the checkpoint records them."""
    complete = dict(config)
    start = ("distil", DistilConfig) if "teacher" in config else ("pretrain", PretrainConfig)
    stages: list[tuple[str, Any]] = [start, ("contrastive", StepConfig), ("contrastive", Objective)]
    for stage, settings in stages:
        defaults = {field.name: field.default for field in fields(settings)}
        defaults.pop("seed", None)  # one seed, at the top, for all stages
        known = {name: value for name, value in defaults.items() if value is not MISSING}
        complete[stage] = known | complete[stage]
    return complete


def describe(config: dict[str, Any], folders: Folders, out: Path) -> None:
    """Score the saved checkpoint on the development splits, choose its default mode by them.

    Mode "epic" is the default unless demonstrations lower the mean score.
    """
    folder = out / "checkpoint"
    encoder = EpicEncoder.from_pretrained(folder, cache=PromptCache(None))
    scores = score_development(encoder, folders, config["data"], config["dev_percent"])
    if sum(float(np.mean(score.shown)) - score.none for score in scores) < 0:
        found = EpicConfig.load(folder)
        replace(found, modes=("none", "epic", *found.modes[2:])).save(folder)
    metas = {
        name: json.loads((folders[name] / "meta.json").read_text(encoding="utf-8"))
        for name in config["data"]
    }
    log = {}
    if "pretrain" in config:
        log["pretrain"] = json.loads((out / "pretrain.json").read_text(encoding="utf-8"))
    for stage in (*STAGES, "contrastive", *_LATER_STAGES):
        file = out / f"{stage}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        log[stage] = [json.loads(line) for line in lines]
    write_model_card(folder, config, metas, log, scores)


if __name__ == "__main__":
    typer.run(main)
