"""A training run: from a configuration to a folder that `EpicEncoder.from_pretrained` loads.

One process, or several started by torchrun or accelerate: all read the same batches and draw the
same demonstrations, and each computes its share. Everything random is a function of seed and step,
so a run that was killed goes on as if it had not been. How a loss is made is `step`'s business.
"""

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType

from epic_retrieval.checkpoint import load_tokenizer, save_checkpoint
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.errors import EpicError, InputError
from epic_retrieval.prompt import Mode
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.storage import cache_folder
from epic_training.batch import Batch, tokenise
from epic_training.config import TrainConfig
from epic_training.data import (
    BatchPlan,
    TrainingSet,
    describe_mix,
    load_mix,
    open_mix,
    render,
)
from epic_training.development import SHOWN, DevelopmentScore, score_sets, summarise
from epic_training.memory import checkpoint_layers
from epic_training.model import base_path, build_checkpoint, precision_of, template_of
from epic_training.optimization import adamw, load_state, save_state, set_rate
from epic_training.run_folder import RunFolder
from epic_training.step import ContrastiveStep

logger = logging.getLogger(__name__)

_SCALED_ON = 64  # texts whose states a new projector is scaled on


def train(config: TrainConfig, out: str | Path) -> Path:
    """Train, or go on where an earlier call with the same configuration stopped.

    Args:
        config: see `TrainConfig` and `load_config`.
        out: folder for everything that is made: `checkpoint/` (the result) and `best/` (the best
            on the development splits), each with its `scores.json`; `log.jsonl`, `curves.png`,
            TensorBoard's events, `config.yaml`, `run.json`, `state.safetensors`.

    Returns:
        The result's folder: `best/` where the run was scored on the way, else `checkpoint/`.

    Raises:
        InputError: for data or settings that cannot be used, or `out` of another configuration.
        EpicError: when the loss is no longer finite; the batch is saved in `out`.
    """
    return _Trainer(config, Path(out)).run()


def dry_run(config: TrainConfig) -> str:
    """What `train` would train on: the mix, batches, token counts, an example per data set.

    Reads the data, and of the model its tokenizer only.

    Raises:
        InputError, CheckpointError: as `train`.
    """
    sets, plan = _data(config)
    tokenizer, base = load_tokenizer(base_path(config))
    template = template_of(config, base)
    return render(describe_mix(sets, plan, tokenizer, template, config.max_length))


def _data(config: TrainConfig) -> tuple[list[TrainingSet], BatchPlan]:
    sets = open_mix(load_mix(config.mix, config.data), cache_folder() / "training")
    every = config.run.evaluate_every
    if every and not any(len(one.development) for one in sets):
        raise InputError(
            f"run.evaluate_every is {every}, but no data set holds rows out; set"
            f" development_percent in {config.mix}, or evaluate_every: 0"
        )
    return sets, BatchPlan(sets, config.batches.size, config.batches.negatives, config.run.seed)


def _accelerator(precision: str) -> Accelerator:
    try:
        accelerator = Accelerator(
            # Without a GPU accelerate takes several processes for as many that are alone.
            cpu="LOCAL_RANK" in os.environ and not torch.accelerator.is_available(),
            mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision],
            # Which parameters a step uses depends on its draws: without any demonstration, not g.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:  # no GPU for float16; another precision in this process before
        raise InputError(f"memory.precision {precision!r} cannot be had here: {error}") from error
    _check_parallelism(accelerator.distributed_type)
    return accelerator


def _check_parallelism(kind: DistributedType) -> None:
    """Refuse to spread one model over processes.

    Their parts would be put together at every forward pass, by all processes at once; but how many
    passes a process makes depends on which queries and prompts fall to it.
    """
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError(
            f"accelerate is set to {kind.value}, which spreads a model over processes; every"
            " process needs a whole one here. Start with torchrun, or accelerate launch"
            " --multi_gpu; if memory is short, use lora, memory.gradient_cache with fewer"
            " rows_at_once, and memory.checkpoint_layers"
        )


def _check_work(plan: BatchPlan, world: int) -> None:
    """Refuse batches that leave a process without work, for which DDP would wait for ever."""
    for share in plan.shares:
        if share.size < world:
            raise InputError(
                f"data set {share.name!r} gives batches of {share.size} rows for {world} processes;"
                " start fewer, or raise batches.size, or remove the data set"
            )


class _Trainer:
    """What a run holds together."""

    def __init__(self, config: TrainConfig, out: Path) -> None:
        self.config = config
        self.accelerator = _accelerator(precision_of(config))
        self.main = self.accelerator.is_main_process
        with self.accelerator.main_process_first():  # the others find the data read
            self.sets, self.plan = _data(config)
        self.folder = RunFolder(out, config.to_dict(), write=self.main)
        world = self.accelerator.num_processes
        _check_work(self.plan, world)
        # Gathering states must not mix with the wrapper's own messages: a group of its own.
        group = torch.distributed.new_group() if world > 1 else None
        self.checkpoint = build_checkpoint(
            config, self.accelerator.device, self.plan(0).positives[:_SCALED_ON]
        )
        self.step = ContrastiveStep(
            self.checkpoint,
            config.step_config(),
            rank=self.accelerator.process_index,
            world=world,
            group=group,
        )
        if config.memory.checkpoint_layers:
            checkpoint_layers(self.checkpoint.backbone.model)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.step, self._optimizer())

    def run(self) -> Path:
        """Train to the end."""
        steps = self.config.optimizer.steps
        first = load_state(self.folder.state, self.step, self.optimizer)
        with self.folder.logging(first, steps) as log:
            self.wrapped.train()
            for number, batch in self._batches(first, steps):
                started = time.perf_counter()
                parts = self._one(number, batch)
                if (number + 1) % self.config.run.log_every == 0 or number + 1 == steps:
                    seconds = time.perf_counter() - started
                    log.step(number + 1, {**parts, **self._speed(len(batch), seconds)}, batch.name)
                self._keep(number + 1, steps, log)
        return self.folder.finished()

    def _one(self, number: int, batch: Batch) -> dict[str, float]:
        """One optimisation step; what it reports."""
        settings = self.config.optimizer
        set_rate(self.optimizer, number, settings.warmup, settings.steps)
        # Dropout differs between processes, draws do not.
        torch.manual_seed(_seed(self.config, number, self.accelerator.process_index))
        rng = np.random.default_rng([self.config.run.seed, number])
        loss, parts = self.wrapped(batch, rng)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(
            self.wrapped.parameters(), settings.max_gradient_norm
        )
        names = sorted(parts)
        stacked = torch.stack([parts[name].float().to(loss.device) for name in names])
        values = self.accelerator.reduce(stacked, "mean").tolist()
        report = dict(zip(names, values, strict=True)) | {"gradient_norm": float(norm)}
        self._check_finite(number, batch, report)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return report | {"learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _check_finite(self, number: int, batch: Batch, report: dict[str, float]) -> None:
        # In half precision the scaler skips steps whose gradients overflow.
        watched = ["loss"] if precision_of(self.config) == "float16" else ["loss", "gradient_norm"]
        if all(np.isfinite(report[name]) for name in watched):
            return
        saved = self.folder.save_batch(number, batch, report)
        raise EpicError(
            f"step {number + 1}: loss {report['loss']}, gradient norm {report['gradient_norm']};"
            f" nothing was updated. The batch is in {saved}. The same command would meet it again:"
            " lower the learning rate, or use bfloat16 or float32, and train into another folder"
        )

    def _keep(self, done: int, steps: int, log: Any) -> None:  # noqa: ANN401 (a Log)
        """Save and score when it is time to."""
        run = self.config.run
        scored = run.evaluate_every and done % run.evaluate_every == 0
        if scored or done == steps:
            scores = self._scores()
            if scores:
                log.scores(done, scores)
            self._save(scores, final=done == steps, improved=log.improved(scores))
        if done % run.save_every == 0 or done == steps or scored:
            save_state(self.folder.state, done, self.step, self.optimizer, write=self.main)

    def _scores(self) -> list[DevelopmentScore]:
        """Development scores; every process computes them, as none may wait for long."""
        mode: Mode = self.config.step_config().mode
        self.wrapped.eval()
        encoder = EpicEncoder(self.checkpoint, PromptCache(None))
        shown = self.config.demonstrations
        scores = score_sets(
            encoder,
            self.sets,
            mode,
            self.config.run.development_pairs,
            shown=min(SHOWN, shown.most),
            tokens=shown.tokens,
        )
        self.wrapped.train()
        return scores

    def _save(self, scores: list[DevelopmentScore], *, final: bool, improved: bool) -> None:
        if self.main:
            checkpoint = self.checkpoint
            if scores and checkpoint.config.modes[0] != "none" and not summarise(scores).helped():
                shown = [mode for mode in checkpoint.config.modes if mode != "none"]
                config = replace(checkpoint.config, modes=("none", *shown))
                checkpoint = replace(checkpoint, config=config)
            if improved:
                self.folder.save("best", lambda folder: save_checkpoint(checkpoint, folder), scores)
            if final:
                self.folder.save(
                    "checkpoint", lambda folder: save_checkpoint(checkpoint, folder), scores
                )
        self.accelerator.wait_for_everyone()

    def _optimizer(self) -> torch.optim.AdamW:
        settings = self.config.optimizer
        own = list(self.step.model.parameters())
        known = {id(parameter) for parameter in own}
        new = [p for p in self.step.parameters() if id(p) not in known]
        rate = settings.learning_rate
        groups = [(own, rate), (new, settings.projector_learning_rate or rate)]
        return adamw(groups, settings.weight_decay, settings.betas)

    def _batch(self, step: int) -> Batch:
        own = self.checkpoint.config
        return tokenise(self.plan(step), self.checkpoint.tokenizer, own.template, own.max_length)

    def _batches(self, first: int, steps: int) -> Iterator[tuple[int, Batch]]:
        """Batches in order, some of them tokenised ahead."""
        workers = self.config.batches.workers
        if workers == 0:
            yield from ((step, self._batch(step)) for step in range(first, steps))
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="batches") as pool:
            ahead = [pool.submit(self._batch, s) for s in range(first, min(first + workers, steps))]
            for step in range(first, steps):
                batch = ahead.pop(0).result()
                if step + workers < steps:
                    ahead.append(pool.submit(self._batch, step + workers))
                yield step, batch

    def _speed(self, queries: int, seconds: float) -> dict[str, float]:
        speed = {"queries_per_second": queries / seconds}
        if torch.cuda.is_available():
            speed["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return speed


def _seed(config: TrainConfig, step: int, process: int) -> int:
    return int(np.random.SeedSequence([config.run.seed, step, process]).generate_state(1)[0])
