"""Runs in other processes: killed and gone on with, and two at once.

Run as a module it is one of two processes that train together.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from accelerate import DistributedType
from safetensors.torch import load_file
from typer.testing import CliRunner

from epic_retrieval import InputError
from epic_retrieval.cli.app import app
from epic_training.run import _check_parallelism, train
from tests.conftest import ROOT
from tests.training.runs import configured, losses, records, write_toy_run

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LONG = ["optimizer.steps=30", "run.save_every=3", "lora={rank: 4, alpha: 8, dropout: 0.1}"]
# Nine queries: the processes' shares differ.
UNEVEN = ["batches.size=9", "demonstrations.groups=3"]
TOGETHER = {
    "group": UNEVEN,
    "sample": [*UNEVEN, "demonstrations.prompts=sample", "memory.gradient_cache=false"],
    "mixed": [
        *UNEVEN,
        "lora={rank: 4, alpha: 8}",
        "demonstrations.text_share=0.5",
        "loss.plain_weight=0.5",
        "batches.workers=2",
    ],
    # Fewer prompts than processes; what they show falls to either.
    "two": ["batches.size=2", "demonstrations.groups=2", "method.pooling=latent"],
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy")).parent


def start(toy: Path, log: IO[str], *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {"EPIC_CACHE_DIR": str(toy / "cache")},
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )


def long_run(toy: Path, out: Path) -> list[str]:
    settings = [part for setting in LONG for part in ("--set", setting)]
    return ["train", str(toy / "config.yaml"), "--out", str(out), *settings]


@pytest.fixture(scope="module")
def killed(toy: Path) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    with (toy / "killed.txt").open("w") as log:
        process = start(toy, log, "-m", "epic_retrieval.cli", *long_run(toy, toy / "killed"))
        yield toy / "killed", process
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def two(toy: Path) -> Iterator["subprocess.Popen[str]"]:
    with (toy / "two.txt").open("w") as log:
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        apart = ("--redirects", "3", "--log-dir", str(toy / "logs"))
        module = "tests.training.test_run_processes"
        process = start(toy, log, *launch, *apart, "-m", module, str(toy))
        yield process
        process.terminate()
        process.wait()


# Asked for by the first test, so that both start at once.
@pytest.mark.usefixtures("killed", "two")
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    killed: tuple[Path, "subprocess.Popen[str]"], toy: Path
) -> None:
    """To the last bit, with dropout, and g's weights too."""
    out, process = killed
    whole = train(configured(toy, *LONG), toy / "whole")
    expected = losses(toy / "whole")
    started = time.monotonic()
    while not (out / "state.safetensors").is_file():
        assert process.poll() is None, (toy / "killed.txt").read_text()
        assert time.monotonic() - started < 120
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = int(load_file(out / "state.safetensors")["step"])
    before = [record for record in records(out) if "loss" in record]
    assert 0 < done <= len(before) < 30, "it was killed in the middle"
    result = CliRunner().invoke(app, long_run(toy, out))
    assert result.exit_code == 0, result.output
    assert losses(out) == expected
    assert len({record["step"] for record in before}) == len(before)
    assert [record["gradient_norm"] for record in records(out)] == [
        record["gradient_norm"] for record in records(toy / "whole")
    ]
    for name in ("adapter_model.safetensors", "projector.safetensors"):
        assert (out / "checkpoint" / name).read_bytes() == (whole / name).read_bytes()


def test_two_processes_train_as_one(two: "subprocess.Popen[str]", toy: Path) -> None:
    for name, settings in TOGETHER.items():
        train(configured(toy, *settings, mix="both.yaml"), toy / "one" / name)
    assert two.wait(timeout=180) == 0, [
        path.read_text() for path in (toy / "logs").rglob("stderr.log")
    ]
    for name in TOGETHER:
        one, both = toy / "one" / name, toy / "two" / name
        np.testing.assert_allclose(losses(both), losses(one), rtol=1e-5, err_msg=name)
        pairs = [
            (mine, theirs)
            for mine, theirs in zip(records(both), records(one), strict=True)
            if "loss" in mine
        ]
        for entry in ("gradient_norm", "demonstrations", "negatives", "learning_rate"):
            found, expected = (
                [record[entry] for record in side] for side in zip(*pairs, strict=True)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=f"{name}, {entry}")
        names = {path.name for path in (one / "best").iterdir()}
        assert {path.name for path in (both / "best").iterdir()} == names
        for path in (one / "best").glob("*.safetensors"):
            expected_weights, found_weights = load_file(path), load_file(both / "best" / path.name)
            for key, weights in expected_weights.items():
                np.testing.assert_allclose(found_weights[key], weights, atol=1e-4, err_msg=key)
    first, second = (
        "".join(path.read_text() for path in (toy / "logs").glob(f"*/attempt_0/{rank}/stderr.log"))
        for rank in (0, 1)
    )
    assert "training (nDCG@10" in first
    assert "step" not in second, "only one process shows its progress"


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_model_in_parts_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=f"set to {kind}, which spreads .*gradient_cache"):
        _check_parallelism(DistributedType[kind])


@pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU"])
def test_whole_models_in_every_process_are_not(kind: str) -> None:
    _check_parallelism(DistributedType[kind])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for given, chosen in TOGETHER.items():
        train(configured(folder, *chosen, mix="both.yaml"), folder / "two" / given)
