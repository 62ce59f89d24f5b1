import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epic_retrieval import EpicEncoder, Task
from epic_retrieval.cli.app import app
from epic_retrieval.cli.lengths import Lengths
from epic_retrieval.index import Passage

run = CliRunner().invoke


@pytest.mark.parametrize("task", [None, Task("twins", "Find twins", symmetric=True)])
def test_what_is_cut_is_counted(
    tiny_encoder_folder: Path, task: Task | None, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = EpicEncoder.from_pretrained(tiny_encoder_folder, device="cpu", max_length=20)
    lengths = Lengths(encoder, task)
    words = [" ".join(["water"] * count) for count in range(1, 40)]
    given = [Passage(str(number), text) for number, text in enumerate(words)]
    assert list(lengths.counting(given)) == given
    # What is appended to a text that is too long changes nothing.
    longer = [f"{text} hills" for text in words]
    one, two = encoder.encode_passages(words, task), encoder.encode_passages(longer, task)
    full = sum((abs(a - b) < 1e-6).all() for a, b in zip(one, two, strict=True))
    # Nor does it where a text fills the room to its last token.
    assert lengths.too_long in {full, full - 1}
    assert lengths.too_long > 5
    lengths.tell()
    assert f"{lengths.too_long} passages are longer than the 19 tokens" in capsys.readouterr().err


def test_commands_say_what_was_cut(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    def written(name: str, text: str) -> str:
        (tmp_path / name).write_text(json.dumps({"id": name, "text": text}) + "\n")
        return str(tmp_path / name)

    long, short = written("long.jsonl", "zebra, 17! " * 400), written("short.jsonl", "a" * 40)
    model, out = ["--model", str(tiny_encoder_folder)], str(tmp_path / "index")
    done = run(app, ["index", "build", short, "--out", out, *model])
    assert done.exit_code == 0, done.output
    assert "longer than" not in done.stderr
    said = "epic: 1 passage is longer than the "
    assert said in run(app, ["index", "add", out, long]).stderr
    assert said in run(app, ["encode", long, "--out", str(tmp_path / "shards"), *model]).stderr
    assert said in run(app, ["index", "build", long, "--out", f"{out}2", *model]).stderr
