import io
import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from epic_retrieval import EpicEncoder, PassageIndex, load_task
from epic_retrieval.cli import demo
from epic_retrieval.cli.app import app
from epic_retrieval.cli.demo import QUESTIONS, TASK
from epic_retrieval.cli.latency import CONDITIONS, measure
from epic_retrieval.index._workplace import workplace
from epic_retrieval.stdlib_docs import stdlib_passages, stdlib_summaries, words_of

SOURCE = '''
"""A module that shows what is taken."""

def wait(timeout=None, *, check: bool = True):
    """Wait for the end, at most `timeout` seconds.

    An example:
        wait(3)
    """

def _private():
    """Nobody outside should read this one."""

def short():
    """Too short."""

class Thing(Base):
    """A thing with a constructor."""
    def __init__(self, size, colour="red"): pass
    @classmethod
    def make(cls, size):
        """Make a thing of a given size."""
        def inner():
            """A function in a function is nobody's."""
    async def fetch(self):
        """Fetch what the thing stands for."""
    def again(self):
        """Fetch what the thing stands for."""
'''


def test_passages_of_a_source_file(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text(SOURCE)
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text('"""The package itself, as a passage."""')
    (tmp_path / "json" / "_hidden.py").write_text('"""A private module of the package."""')
    (tmp_path / "json" / "tests").mkdir()
    (tmp_path / "json" / "tests" / "case.py").write_text('"""Tests are not documentation."""')
    (tmp_path / "not_of_the_library.py").write_text('"""Some other module lies here."""')
    (tmp_path / "string.py").write_text("this is (no Python")
    found = {passage.id: passage for passage in stdlib_passages(tmp_path)}
    assert {key: passage.title for key, passage in found.items()} == {
        "json": "json",
        "queue": "queue",
        "queue.wait": "queue.wait(timeout=None, *, check: bool=True)",
        "queue.Thing": "queue.Thing(size, colour='red')",
        "queue.Thing.make": "queue.Thing.make(size)",
        "queue.Thing.fetch": "queue.Thing.fetch()",
    }
    assert found["queue.wait"].text.splitlines()[-2:] == ["An example:", "    wait(3)"]


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        ('__all__ = ["one", "Three"]', {"one", "Three", "Three.method"}),
        ('__all__ = ["one"]\n__all__ += ("two",)', {"one", "two"}),
        ('__all__ = []\n__all__.append("one")\n__all__.extend(["two"])', {"one", "two"}),
        ("__all__ = [name for name in dir()]", {"one", "two", "Three", "Three.method"}),
        ('__all__ = ["one"]\n__all__.extend(found())', {"one", "two", "Three", "Three.method"}),
    ],
)
def test_what_a_module_does_not_list_is_not_public(
    tmp_path: Path, listed: str, kept: set[str]
) -> None:
    (tmp_path / "queue.py").write_text(
        f'''"""A module with a list of names."""\n{listed}\n'''
        '''def one(): """The first of the functions."""\n'''
        '''def two(): """The second of the functions."""\n'''
        '''class Three:\n    """A class with a method."""\n'''
        '''    def method(self): """The method of the class."""\n'''
    )
    assert {passage.id for passage in stdlib_passages(tmp_path)} == {
        "queue",
        *(f"queue.{name}" for name in kept),
    }


def test_summaries_have_words_and_the_first_paragraph(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text(SOURCE)
    found = {passage.id: passage for passage in stdlib_summaries(tmp_path)}
    assert list(found) == [passage.id for passage in stdlib_passages(tmp_path)]
    assert found["queue.wait"].title == "queue wait"
    assert found["queue.wait"].text == "Wait for the end, at most `timeout` seconds."
    assert words_of("csv.DictReader.fetch_all") == "csv Dict Reader fetch all"


def test_passages_of_this_python() -> None:
    found = {passage.id: passage for passage in stdlib_passages()}
    assert len(found) > 3000
    assert len({passage.text for passage in found.values()}) == len(found)
    assert found["subprocess.Popen.wait"].title == "subprocess.Popen.wait(timeout=None)"
    assert max(len(passage.text) for passage in found.values()) <= 1200
    assert not [key for key in found if key.startswith(("test.", "idlelib", "_"))]


def test_questions_are_not_the_tasks_own_demonstrations() -> None:
    shown = {one.query.casefold() for one in load_task(TASK).demonstrations}
    assert not shown & {question.casefold() for question in QUESTIONS}


def test_latency_has_a_row_per_condition(tiny_encoder_folder: Path) -> None:
    task = load_task(TASK).with_demonstrations(load_task(TASK).demonstrations[:1])
    results = measure(
        lambda: EpicEncoder.from_pretrained(tiny_encoder_folder), task, ["a", "b"], seconds=0
    )
    assert tuple(result.condition for result in results) == CONDITIONS
    assert all(result.query_ms > 0 for result in results)
    plain, text, epic, text_again, epic_again = results
    assert plain.prompt_tokens < epic.prompt_tokens < text.prompt_tokens
    assert text.prepare_ms is not None
    assert (text_again.prepare_ms, epic_again.prepare_ms) == (None, None)


@pytest.fixture
def _small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of one module: reading and encoding all of Python's takes a while."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "queue.py").write_text(SOURCE)
    known = sysconfig.get_path
    monkeypatch.setattr(
        sysconfig, "get_path", lambda name: str(library) if name == "stdlib" else known(name)
    )
    monkeypatch.setenv("EPIC_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("_small_library")
def test_demo_waits_for_who_builds_its_index(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_LOOK_AGAIN", 0.05)
    encoder = EpicEncoder.from_pretrained(tiny_encoder_folder)
    console = Console(file=io.StringIO(), width=200)
    demo._open_index(encoder, Console(file=io.StringIO())).close()
    (folder,) = (tmp_path / "demo").iterdir()
    shutil.rmtree(folder)
    with ThreadPoolExecutor(1) as pool, workplace(folder, overwrite=True):
        coming = pool.submit(demo._open_index, encoder, console)
        while "waiting until it is done" not in console.file.getvalue():  # type: ignore[attr-defined]
            assert not coming.done()
        # More than one look.
        with pytest.raises(TimeoutError):
            coming.result(timeout=0.2)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "set EPIC_CACHE_DIR" in said
    assert said.count("waiting") == 1
    assert said.index("waiting") < said.index("Encoding")
    with coming.result() as index:
        assert len(index) == 5


@pytest.mark.usefixtures("_small_library")
def test_demo_answers_the_questions_it_is_given(tiny_encoder_folder: Path) -> None:
    command = ["demo", "--model", str(tiny_encoder_folder)]
    asked = CliRunner().invoke(app, [*command, "wait for it", "make a thing"])
    assert asked.exit_code == 0, asked.output
    assert "\nwait for it\n" in asked.stdout
    assert "\nmake a thing\n" in asked.stdout
    assert asked.stdout.count("\n  0.") + asked.stdout.count("\n -0.") == 3 * 2
    assert QUESTIONS[0] not in asked.stdout
    assert "medians of this run" not in asked.stdout
    empty = CliRunner().invoke(app, [*command, "wait for it", " "])
    assert empty.exit_code != 0
    assert "a question is empty" in str(empty.exception) + empty.output


@pytest.mark.usefixtures("_small_library")
def test_demo_builds_once_and_answers(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    command = ["demo", "--model", str(tiny_encoder_folder), "--seconds", "0.1"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    for question in QUESTIONS:
        assert question in first.stdout
    assert first.stdout.count("\n  0.") + first.stdout.count("\n -0.") == 3 * len(QUESTIONS)
    assert "demonstrations as vectors (EPIC)" in first.stdout
    (folder,) = (tmp_path / "demo").iterdir()
    with PassageIndex.open(folder) as index:
        built = index.manifest

    second = CliRunner().invoke(app, command)
    assert second.exit_code == 0, second.output
    with PassageIndex.open(folder) as index:
        assert index.manifest == built

    (folder / "vectors.faiss").write_bytes(b"damaged")
    third = CliRunner().invoke(app, command)
    assert third.exit_code == 0, third.output
    with PassageIndex.open(folder) as index:
        assert index.manifest.files == built.files
