"""Runs in other processes: killed and gone on with, and two that train together.

Run as a module it starts these processes, as copies of itself: what they import takes longer than
what they do.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from accelerate import DistributedType
from safetensors.torch import load_file
from typer.testing import CliRunner

from epic_retrieval import InputError
from epic_retrieval.cli.app import app, main
from epic_training.run import _check_parallelism, _check_work, _data, train
from tests.conftest import ROOT
from tests.training.runs import configured, losses, records, write_toy_run

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

STEPS = 24
LONG = [f"optimizer.steps={STEPS}", "run.save_every=3", "lora={rank: 4, alpha: 8, dropout: 0.1}"]
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
    # One query for each process.
    "least": ["batches.size=2", "method.pooling=latent"],
}


def long_run(toy: Path, out: Path) -> list[str]:
    settings = [part for setting in LONG for part in ("--set", setting)]
    return ["train", str(toy / "config.yaml"), "--out", str(out), *settings]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy")).parent


@pytest.fixture(scope="module")
def started(toy: Path) -> Iterator["subprocess.Popen[str]"]:
    """The other processes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.test_run_processes", str(toy)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "EPIC_CACHE_DIR": str(toy / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def whole(started: "subprocess.Popen[str]", toy: Path) -> Path:
    """The same runs in one go and in one process, made while the others start."""
    for name, settings in TOGETHER.items():
        train(configured(toy, *settings, mix="both.yaml"), toy / "one" / name)
    return train(configured(toy, *LONG), toy / "whole")


def wait_for(path: Path, started: "subprocess.Popen[str]") -> None:
    begin = time.monotonic()
    while not path.is_file():
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() - begin < 180
        time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """They take longer than a toy run."""
    with patch("epic_training.curves.draw_curves"):
        yield


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    whole: Path, started: "subprocess.Popen[str]", toy: Path
) -> None:
    """To the last bit, with dropout, and g's weights too."""
    wait_for(toy / "killed.done", started)
    out = toy / "killed"
    done = int(load_file(out / "state.safetensors")["step"])
    before = [record for record in records(out) if "loss" in record]
    assert 0 < done <= len(before) < STEPS, "it was killed in the middle"
    result = CliRunner().invoke(app, long_run(toy, out))
    assert result.exit_code == 0, result.output
    assert losses(out) == losses(toy / "whole")
    norms = [[record["gradient_norm"] for record in records(one)] for one in (out, toy / "whole")]
    assert norms[0] == norms[1]
    for name in ("adapter_model.safetensors", "projector.safetensors"):
        assert (out / "checkpoint" / name).read_bytes() == (whole / name).read_bytes()


def test_two_processes_train_as_one(
    whole: Path, started: "subprocess.Popen[str]", toy: Path
) -> None:
    wait_for(toy / "together.done", started)
    for name in TOGETHER:
        one, two = toy / "one" / name, toy / "two" / name
        np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5, err_msg=name)
        for entry in ("gradient_norm", "demonstrations", "negatives", "learning_rate"):
            found, expected = (
                [record[entry] for record in records(side) if "loss" in record]
                for side in (two, one)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=f"{name}, {entry}")
        files = sorted(path.name for path in (one / "best").iterdir())
        assert sorted(path.name for path in (two / "best").iterdir()) == files
        for path in (one / "best").glob("*.safetensors"):
            found_weights = load_file(two / "best" / path.name)
            for key, weights in load_file(path).items():
                np.testing.assert_allclose(found_weights[key], weights, atol=1e-4, err_msg=key)
    first, second = ((toy / f"{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1))
    assert "training (nDCG@10" in first
    assert "4/4" in first
    assert "step" not in second, "only one process shows its progress"


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_model_in_parts_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=f"set to {kind}, which spreads .*gradient_cache"):
        _check_parallelism(DistributedType[kind])


@pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU"])
def test_a_whole_model_in_every_process_is_not(kind: str) -> None:
    _check_parallelism(DistributedType[kind])


def test_every_process_needs_a_query(toy: Path) -> None:
    _, plan = _data(configured(toy, "batches.size=3"))
    _check_work(plan, 3)
    with pytest.raises(InputError, match="'animals' gives batches of 3 rows for 4 processes"):
        _check_work(plan, 4)


def fork(log: Path, variables: Mapping[str, str], do: Callable[[], object]) -> int:
    """Do something in a copy of this process that writes into `log`; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(variables)
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        do()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 (it goes into the log)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def kill_in_the_middle(toy: Path) -> None:
    sys.argv = ["epic", *long_run(toy, toy / "killed")]
    log, state = toy / "killed.txt", toy / "killed" / "state.safetensors"
    child = fork(log, {}, main)
    while not state.is_file():
        if os.waitpid(child, os.WNOHANG)[0]:
            raise RuntimeError(f"it ended too soon: {log.read_text()}")
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (toy / "killed.done").touch()


def train_together(toy: Path) -> None:
    """As torchrun does, which tells the processes of each other by such variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}

    def all_runs() -> None:
        for name, settings in TOGETHER.items():
            train(configured(toy, *settings, mix="both.yaml"), toy / "two" / name)

    children = [
        fork(toy / f"{rank}.txt", shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, all_runs)
        for rank in range(2)
    ]
    for _ in range(2):
        ended, status = os.wait()
        children.remove(ended)
        if status:
            for child in children:  # would wait for the other
                os.kill(child, signal.SIGKILL)
            said = [(toy / f"{rank}.txt").read_text() for rank in range(2)]
            raise RuntimeError("they failed:\n" + "\n".join(said))
    (toy / "together.done").touch()


if __name__ == "__main__":
    # What the processes would import one by one.
    import peft  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401

    folder = Path(sys.argv[1])
    with patch("epic_training.curves.draw_curves"):
        kill_in_the_middle(folder)
        train_together(folder)
