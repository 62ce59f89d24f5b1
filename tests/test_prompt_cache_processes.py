"""Real processes that fill one cache folder at the same time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

# Imports once, then splits: importing is nearly all that such a process does.
FAMILY = """
import os, sys, time
from pathlib import Path
import numpy as np
from epic_retrieval import EpicEncoder
from epic_retrieval.prompt_cache import PromptCache

model, cache, *outs = map(Path, sys.argv[1:])
start = time.time() + 0.2
for out in outs:
    if os.fork() == 0:
        encoder = EpicEncoder.from_pretrained(model, device="cpu", cache=PromptCache(cache))
        time.sleep(max(0.0, start - time.time()))
        np.save(out, encoder.encode_queries(["what is a fern", "why"], "web-search", "epic"))
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in outs))
"""


def test_processes_share_a_folder(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    cache = tmp_path / "prompts"
    outs = [tmp_path / f"{number}.npy" for number in range(3)]
    subprocess.run(
        [sys.executable, "-c", FAMILY, tiny_encoder_folder, cache, *outs],
        cwd=ROOT,
        # One thread: a pool of threads does not survive a fork.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    first, *others = [np.load(out) for out in outs]
    for other in others:
        np.testing.assert_array_equal(first, other)
    names = sorted(path.suffix for path in cache.iterdir())
    assert names == [".safetensors"] * 2, "two prompts, and nothing half-written"
