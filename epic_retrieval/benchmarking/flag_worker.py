"""FlagEmbedding's FlagICLModel behind standard input and output, for another interpreter.

Runs where FlagEmbedding is installed and this package need not be, so it imports nothing of it. The
first argument is JSON: the model's folder, instruction, demonstrations, threads. Each line of input
is {"texts": [...], "at_once": n}; the answer is {"wall": s, "core": s, "vectors": [[...]]}.
"""

import json
import sys
import time
from importlib import import_module
from importlib.metadata import version
from typing import Any


def main() -> None:
    """Answer until input ends."""
    # Libraries print to stdout, where the answers go.
    answers, sys.stdout = sys.stdout, sys.stderr
    flag: Any = import_module("FlagEmbedding")
    import torch

    given: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    model = flag.FlagICLModel(
        given["folder"],
        query_instruction_for_retrieval=given["instruction"],
        query_instruction_format="<instruct>{}\n<query>{}",
        examples_for_task=given["examples"],
        use_fp16=False,
        devices=given["device"],
    )

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer({"version": version("FlagEmbedding")})
    for line in sys.stdin:
        asked = json.loads(line)
        texts, at_once = asked["texts"], asked["at_once"]
        wall, core = time.perf_counter(), time.process_time()
        vectors = [
            row
            for first in range(0, len(texts), at_once)
            for row in model.encode_queries(texts[first : first + at_once], batch_size=at_once)
        ]
        spent = {"wall": time.perf_counter() - wall, "core": time.process_time() - core}
        answer({**spent, "vectors": [row.tolist() for row in vectors]})


if __name__ == "__main__":
    main()
