"""The README.md of a trained checkpoint: on what, how long, and how well it does.

Knows nothing of training; everything comes in as data.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from epic_retrieval.int8_file import INT8_NAME
from epic_training.development import DRAWS, MOST_PAIRS, SHOWN, DevelopmentScore

# What a stage adds to other instructions.
_LATER = {"instructions": "", "text": ", half of the demonstrations as text", "projector": ""}


def write_model_card(
    folder: Path,
    config: Mapping[str, Any],
    metas: Mapping[str, Mapping[str, Any]],
    log: Mapping[str, Sequence[Mapping[str, float]]],
    scores: Sequence[DevelopmentScore],
) -> None:
    """Write `README.md` into a checkpoint folder.

    Args:
        folder: of the checkpoint.
        config: of the training.
        metas: per data set, its meta.json.
        log: records of the stages, such as "distil" and "contrastive", each with step and seconds.
        scores: of the development splits.
    """
    training = config["contrastive"]
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = "8 bits" if (folder / INT8_NAME).is_file() else "float16"
    number = 3 + sum(stage in config for stage in ("prompts", "second", "kinds"))
    end = ";" if set(_LATER) & set(config) else "."
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    card = f"""---
license: apache-2.0
language: en
pipeline_tag: feature-extraction
---
# epic-mini

A small English text encoder ({shape["num_hidden_layers"]} layers, {shape["hidden_size"]} wide,
{weights:.1f} MB in {stored}) that reads demonstrations as vectors (EPIC). It exists so that
everything in epic-retrieval runs at once, without a network; on a real task a larger model does
better. It knows English only, and of that what the data below hold. Texts are cut at
{config["max_length"]} tokens.

{_start(config, log)}
{number}. {training["steps"]} steps of EPIC contrastive training of all weights,
   batch {training["batch"]} ({_minutes(log["contrastive"])}):
   up to {training["max_demonstrations"]} demonstrations a prompt,
   drawn per group ({training["groups"]} groups a batch), temperature {training["temperature"]},
   loss of the plain query weighted {training["plain_weight"]}{_beside(training)}{end}
{_later_stages(config, log, number + 1)}
All decisions are in `epic_config.json`. The batches of stage {number} also include passages to be
found by a few words that were cut out of them (`crop` in the configuration).

## Development splits

nDCG@10 of finding a held-out query's passage among the held-out passages of its data set (at most
{MOST_PAIRS}); instruction alone, and with {SHOWN} demonstrations from the training split as vectors
(mean of {DRAWS} draws, lowest and highest). These queries were never trained on; the domains were,
and passages that other queries share.
For test splits of other tasks, beside other models, see the project's README.

| data set | pairs | instruction alone | with demonstrations |
|---|---|---|---|
{_score_rows(scores)}

## Data

{_used(config, number)}{_data_rows(metas)}

{_others(config)}
"""
    (folder / "README.md").write_text(card, encoding="utf-8")
    rows = [score.__dict__ for score in scores]
    (folder / "development.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _start(config: Mapping[str, Any], log: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The first two stages."""
    if "inherit" in config:
        taught, kept = config["distil"], config["inherit"]["layers"]
        layers = f"{len(kept)} of its layers (from 0: {', '.join(map(str, kept))})"
        recipe = "bundled-shown" if "kinds" in config else "bundled-inherited"
        return f"""Trained with `training/configs/{recipe}.yaml`:

1. it begins as the teacher: {layers},
   with causal attention, and one layer more in which the end token takes the mean of all;
2. {taught["steps"]} steps of distillation, {taught["batch"]} texts each, from step
   {taught["bare"]} on half of them behind an instruction
   ({_minutes(log["distil"])}){_made(config["teacher"])};{_again(config, log)}"""
    if "teacher" in config:
        taught = config["distil"]
        return f"""Trained with `training/configs/bundled-distilled.yaml`:

1. token embeddings: each token's vector by the teacher, fitted with one weight each so that their
   means over texts come close to the teacher's vectors; the decoder starts as that mean;
2. {taught["steps"]} steps of distillation, {taught["batch"]} texts each, half of them behind an
   instruction ({_minutes(log["distil"])}){_made(config["teacher"])};"""
    shape = config["pretrain"]
    return f"""Trained from nothing on a two-core CPU, with `training/configs/bundled.yaml`:

1. token embeddings from co-occurrence statistics (PMI, truncated SVD);
2. {shape["steps"]} steps of next-token prediction, {shape["batch"]} x
   {shape["length"]} tokens each ({_minutes(log["pretrain"])});"""


def _again(config: Mapping[str, Any], log: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    return _prompts(config, log) + _second(config, log) + _kinds(config, log)


def _prompts(config: Mapping[str, Any], log: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    if "prompts" not in config:
        return ""
    chosen = config["distil"] | config["prompts"]
    steps, tokens = chosen["steps"], max(chosen["shown_tokens"])
    return f"""
3. {steps} steps more ({_minutes(log["prompts"])}),
   {chosen["behind"]:.0%} of the texts behind prompts: a third each behind an instruction,
   up to {chosen["shown"]} demonstrations as vectors, up to {chosen["textual"]} as text
   of up to {tokens} tokens a side; {chosen["long"]:.0%} of the others have 64 tokens or more;"""


def _second(config: Mapping[str, Any], log: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    if "second" not in config:
        return ""
    chosen = config["second"]
    written = sum(one["share"] for one in chosen["written"].values())
    number, minutes = 3 + ("prompts" in config), _minutes(log["second"])
    return f"""
{number}. {chosen["steps"]} steps more ({minutes}), towards what two teachers say together,
   the first and {chosen["model"]}, of {chosen["texts"]:,} of the texts
   and, {written:.0%} of those of a step, of what was written for training
   ({", ".join(chosen["written"])});
   what was written as query and passage is drawn to each other;"""


def _kinds(config: Mapping[str, Any], log: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    if "kinds" not in config:
        return ""
    chosen = config["kinds"]
    step, names = chosen["step"], ", ".join(chosen["shown"])
    own, opening = chosen["experts"]["steps"], step.get("opening", 0)
    number, minutes = 3 + ("prompts" in config) + ("second" in config), _minutes(log["kinds"])
    settled = ""
    if "settled" in config:
        again, took = config["settled"], _minutes(log["settled"])
        changes = f"{again['strength']} times that change in place of {chosen['strength']}"
        settled = f"""
   and {again["steps"]} steps again ({took}), with {changes};"""
    return f"""
{number}. {chosen["steps"]} steps more ({minutes}), in which demonstrations say what a text becomes:
   {len(chosen["shown"])} kinds of pairs ({names});
   behind demonstrations of a kind, a text's aim is what an expert makes of it, a copy
   of the model so far that {own} steps of pairs of this kind alone have trained;
   {chosen["strength"]} times its change is the aim;
   {step["texts"]} texts a step, each behind every kind; from step {opening} on beside
   what the stage before did;{settled}"""


def _used(config: Mapping[str, Any], number: int) -> str:
    """How much of the data was drawn from."""
    if not config.get("pairs"):
        return ""
    return (
        f"At most {config['pairs']:,} pairs of each were used from stage {number} on;"
        " `teacher.shares` in\n`epic_config.json` says of which share the texts were distilled.\n\n"
    )


def _made(teacher: Mapping[str, Any]) -> str:
    made = ""
    if teacher.get("sentences"):
        made += f";\n   {teacher['sentences']:,} of the texts are sentences of the others"
    if teacher.get("long"):
        made += f";\n   {teacher['long']:,} more are neighbouring passages put together"
    if teacher.get("families"):
        made += (
            f";\n   {teacher['families']:,} sentences come with {teacher['variants']} made of them"
            " by rules: words replaced, moved, left out, joined"
        )
    return made


def _beside(training: Mapping[str, Any]) -> str:
    return _replayed(training) + _mixed(training)


def _replayed(training: Mapping[str, Any]) -> str:
    if not training.get("replay"):
        return ""
    return f";\n   every step repeats the stage before, its loss weighted {training['replay']}"


def _mixed(training: Mapping[str, Any]) -> str:
    if not training.get("mixed"):
        return ""
    return (
        f";\n   {training['mixed']:.0%} of the batches want two things of the same kind of text,"
        " and only demonstrations\n   tell which"
    )


def _others(config: Mapping[str, Any]) -> str:
    """What beside the data had a part."""
    if "teacher" not in config:
        return "Nothing else was used; no other model's outputs, no test set."
    if "inherit" in config:
        return (
            f"The teacher is the model in the package `{config['teacher']['package']}`,"
            " all-MiniLM-L6-v2 (Apache-2.0):\nthese weights began as its own, and were trained on"
            f" its vectors of these texts{_and_second(config)}. No test set was used."
        )
    return (
        f"The teacher, used in training only, is the model in the package"
        f" `{config['teacher']['package']}`: its\nvectors of these texts, and the English pieces of"
        " its vocabulary. No test set was used."
    )


def _and_second(config: Mapping[str, Any]) -> str:
    if "second" not in config:
        return ""
    return f", and on those\nof {config['second']['model']} (Apache-2.0)"


def _later_stages(
    config: Mapping[str, Any], log: Mapping[str, Sequence[Mapping[str, float]]], first: int
) -> str:
    lines = []
    for number, stage in enumerate((name for name in _LATER if name in config), start=first):
        chosen = config[stage]
        if stage == "projector":
            lines.append(
                f"{number}. {chosen['steps']} steps of the projector alone"
                f" ({_minutes(log.get(stage, []))}), {chosen['mixed']:.0%} of them mixed."
            )
            continue
        lines.append(
            f"{number}. {chosen['steps']} steps more ({_minutes(log.get(stage, []))}),"
            f" {1 - chosen['own']:.0%} of the batches behind the\n   instruction of some other task"
            f"{_LATER[stage]}."
        )
    return "\n".join(lines) + "\n" if lines else ""


def _minutes(records: Sequence[Mapping[str, float]]) -> str:
    """How long a stage took; the clock restarts where a run was resumed."""
    seconds = [record["seconds"] for record in records]
    ends = [now for now, after in pairwise([*seconds, -1.0]) if after < now]
    minutes = max(1, round(sum(ends) / 60))
    return "1 minute" if minutes == 1 else f"{minutes} minutes"


def _score_rows(scores: Sequence[DevelopmentScore]) -> str:
    if not scores:
        return "| no data set has held-out pairs | | | |"
    rows = [
        f"| {s.name} | {s.pairs} | {s.none:.3f} | {np.mean(s.shown):.3f}"
        f" ({min(s.shown):.3f} to {max(s.shown):.3f}) |"
        for s in scores
    ]
    none = np.mean([s.none for s in scores])
    epic = np.mean([np.mean(s.shown) for s in scores])
    return "\n".join([*rows, f"| **mean** | | **{none:.3f}** | **{epic:.3f}** |"])


def _data_rows(metas: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"- {name}: {meta['pairs']:,} pairs, {meta.get('licence', 'licence in its own meta.json')}"
        for name, meta in metas.items()
    ]
    return "\n".join(rows)
