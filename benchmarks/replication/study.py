"""Trains the base and the runs, and scores them on unseen tasks under every condition.

A condition is what stands before a query: nothing but the instruction, demonstrations, or ones that
should not help. Knows neither tables nor claims.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.replication.measure import Scorer
from benchmarks.replication.tasks import UnseenTask, unseen_tasks
from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.errors import EpicError, InputError
from epic_retrieval.prompt import Mode
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.storage import digest_of, write_atomically
from epic_training.bundled import instructions_of, new_checkpoint, prepare_tokenizer
from epic_training.config import TrainConfig, load_config
from epic_training.distilled import distil, distillation, distilled_start
from epic_training.made import data_folders
from epic_training.run import train

HERE = Path(__file__).parent
OVERLAYS = HERE.parents[1] / "training" / "configs" / "ablations"
RESULTS = HERE.parent / "results" / "replication.json"
SHOWN = 5
DRAWS = 2
Record = dict[str, Any]


@dataclass(frozen=True)
class Condition:
    """What stands before a query.

    Attributes:
        name: as in the results.
        count: demonstrations.
        draw: seed of their draw.
        spoilt: "swapped" pairs every query with another's passage; "foreign" takes another task's
            demonstrations.
    """

    name: str
    count: int = 0
    draw: int = 0
    spoilt: str = ""


def conditions(regime: str, *, whole: bool, first: bool = True) -> list[Condition]:
    """Those of a regime.

    Args:
        regime: "plain", "text" or "epic".
        whole: add what only the main comparison asks.
        first: and what only the first seed is asked there.
    """
    found = [Condition("none")]
    if regime == "plain":
        return found
    draws = DRAWS if whole else 1
    found += [Condition(f"{SHOWN} shown, draw {n}", SHOWN, n) for n in range(draws)]
    if whole:
        if regime == "epic" and first:
            found += [Condition(f"{count} shown, draw 0", count) for count in (1, 2, 8)]
        found += [Condition(f"{SHOWN} {how}", SHOWN, 0, how) for how in ("swapped", "foreign")]
    return found


class Study:
    """The runs of study.yaml in a folder.

    Args:
        data: folder with train_clean/, train_research/, retrieval/ and so on.
        work: where the base and the runs are kept.
    """

    def __init__(self, data: Path, work: Path) -> None:
        self._data, self._work = data.resolve(), work
        self._plan = yaml.safe_load((HERE / "study.yaml").read_text(encoding="utf-8"))
        self._record: Record = {"results": {}}
        if RESULTS.is_file():
            self._record = json.loads(RESULTS.read_text(encoding="utf-8"))

    def run(self, only: Sequence[str] | None = None) -> None:
        """Train and score what is not finished, seed by seed, so that comparisons come early."""
        for name in only or ():
            if name not in self._plan["runs"]:
                raise InputError(
                    f"{name!r} is no run; expected some of {', '.join(self._plan['runs'])}"
                )
        base = self.base()
        unseen = unseen_tasks(self._data)
        seeds = self._plan["seeds"]
        wanted = [
            (name, seed)
            for number, seed in enumerate(seeds)
            for name, row in self._plan["runs"].items()
            if number < row["seeds"] and (not only or name in only)
        ]
        # The main comparison first, all its seeds.
        wanted.sort(key=lambda one: self._plan["runs"][one[0]]["seeds"] == 1)
        for name, seed in wanted:
            row = self._plan["runs"][name]
            start = enlarged(base, row["larger"]) if "larger" in row else base
            config = self._config(start, row, seed)
            folder = self._work / f"{name}-{seed}-{_digest(config)}"
            done = self._record["results"].setdefault(folder.name, {})
            if done.get("finished"):
                continue
            print(folder.name, file=sys.stderr)
            try:
                self._one(config, folder, unseen, done)
            except EpicError as error:
                print(f"{folder.name}: {error}", file=sys.stderr)

    def base(self) -> Path:
        """Folder of the base that every run starts from; trained on first use."""
        folder = self._work / "base"
        made = folder / "model"
        if not made.is_dir():
            settings = dict(load_yaml(HERE / "base.yaml"))
            folder.mkdir(parents=True, exist_ok=True)
            folders = data_folders(settings, self._data / "train_clean", folder)
            tokenizer = prepare_tokenizer(settings, folders, folder)
            model, lessons = distilled_start(settings, folders, folder, tokenizer)
            checkpoint = new_checkpoint(settings, folder, model)
            loss = distillation(settings, checkpoint, lessons, instructions_of(settings))
            distil(settings, loss, folder)
            whole = LlamaForCausalLM(cast(LlamaConfig, model.config))
            whole.model.load_state_dict(model.state_dict())
            part = folder / "model.partial"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(folder / "tokenizer", part)
            whole.save_pretrained(part)
            part.replace(made)
        log = (folder / "distil.jsonl").read_text(encoding="utf-8").splitlines()
        self._record["base"] = {"distillation": [json.loads(line) for line in log]}
        return made

    def _config(self, base: Path, row: Mapping[str, Any], seed: int) -> TrainConfig:
        overrides = [
            f"base={json.dumps(str(base.resolve()))}",
            f"run.seed={seed}",
            *self._plan["settings"],
        ]
        # The settings of a row of the plan stand last: they are what is special about it.
        special = load_yaml(OVERLAYS / f"{row['overlay']}.yaml")
        overrides += [f"{key}={json.dumps(value)}" for key, value in flat(special).items()]
        overrides += row.get("settings", [])
        return load_config([], overrides, mix=HERE / "study.mix.yaml", data=self._data)

    def _one(
        self, config: TrainConfig, folder: Path, unseen: Sequence[UnseenTask], done: Record
    ) -> None:
        checkpoint = train(config, folder)
        encoder = EpicEncoder.from_pretrained(checkpoint, cache=PromptCache(None))
        scorer = Scorer(encoder)
        cut = partial(encoder.checkpoint.tokenizer.cut, tokens=config.demonstrations.tokens)
        mode: Mode = encoder.checkpoint.config.modes[0]
        shown = next((m for m in encoder.checkpoint.config.modes if m != "none"), mode)
        name, seed = folder.name.rsplit("-", 2)[0], config.run.seed
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        done |= {"seed": seed, "regime": config.regime, "commit": run["commit"]}
        done |= {"development": json.loads((checkpoint / "scores.json").read_text())["mean"]}
        whole = self._plan["runs"].get(name, {}).get("seeds", 1) > 1
        first = seed == self._plan["seeds"][0]
        for condition in conditions(config.regime, whole=whole, first=first):
            scores = done.setdefault("scores", {})
            if condition.name in scores:
                continue
            kind: Mode = shown if condition.count else "none"
            scores[condition.name] = {
                one.task.name: round(self._score(scorer, one, unseen, condition, kind, cut), 3)
                for one in unseen
            }
            self._save()
            mean = sum(scores[condition.name].values()) / len(unseen)
            print(f"  {condition.name}: {mean:.2f}", file=sys.stderr)
        done["finished"] = True
        self._save()

    def _score(
        self,
        scorer: Scorer,
        one: UnseenTask,
        unseen: Sequence[UnseenTask],
        condition: Condition,
        mode: Mode,
        cut: Callable[[str], str],
    ) -> float:
        source = one
        if condition.spoilt == "foreign":
            source = next(other for other in unseen if other.family != one.family)
        pairs = source.draw(condition.draw, condition.count)
        if condition.spoilt == "swapped":
            rolled = [*pairs[1:], *pairs[:1]]
            pairs = [Demonstration(a.query, b.passage) for a, b in zip(pairs, rolled, strict=True)]
        if mode == "text":  # cut as they are in training
            pairs = [Demonstration(cut(a.query), cut(a.passage)) for a in pairs]
        task: Task = one.task.with_demonstrations(pairs) if pairs else one.task
        return scorer.score(one, task, mode)

    def _save(self) -> None:
        self._record |= {
            "command": "python -m benchmarks.replication --data DATA",
            "hardware": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        }
        text = json.dumps(self._record, indent=1, ensure_ascii=False) + "\n"
        write_atomically(RESULTS, text.encode())


@torch.no_grad()
def enlarged(base: Path, factor: float) -> Path:
    """Folder of the same model with token embeddings, and what layers add to them, times `factor`.

    Norms undo it, so its vectors are the same; a step of Adam is smaller beside them.
    """
    made = base.with_name(f"{base.name}-{factor:g}")
    if not made.is_dir():
        model = LlamaForCausalLM.from_pretrained(base)
        decoder: Any = model.model
        decoder.embed_tokens.weight.mul_(factor)
        for layer in decoder.layers:
            layer.self_attn.o_proj.weight.mul_(factor)
            layer.mlp.down_proj.weight.mul_(factor)
        part = base.with_name(f"{made.name}.partial")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(base, part)
        model.save_pretrained(part)
        part.replace(made)
    return made


def load_yaml(path: Path) -> Mapping[str, Any]:
    """A YAML file that holds a mapping."""
    found: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"loss": {"temperature": 1}} as {"loss.temperature": 1}; a template stays whole."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and key != "template":
            found |= {f"{key}.{inner}": one for inner, one in flat(value).items()}
        else:
            found[key] = value
    return found


def _digest(config: TrainConfig) -> str:
    places = ("base", "mix", "data")
    return digest_of({k: v for k, v in config.to_dict().items() if k not in places})[:8]
