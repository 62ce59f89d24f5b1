"""The documentation of Python's standard library on this machine, as passages.

Sources are parsed, never imported. Knows nothing of encoders or indexes.
"""

import ast
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from epic_retrieval.index import Passage

_MAX_CHARS = 1200
_MIN_CHARS = 20
# Games, installers, and what Python keeps for itself or is about to drop.
_SKIPPED_MODULES = {
    "antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "this",
    "turtledemo",
}  # fmt: skip
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
# Modules whose documented source has a private name.
_PUBLIC_NAMES = {"_collections_abc": "collections.abc", "_pydatetime": "datetime",
                 "_pydecimal": "decimal", "_pyio": "io"}  # fmt: skip

_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def stdlib_passages(stdlib: Path | None = None) -> Iterator[Passage]:
    """Yields a passage for each documented public module, class, function and method.

    What a module leaves out of its `__all__` is not public.

    Args:
        stdlib: folder of the standard library's sources; this interpreter's by default.

    Yields:
        Passages such as id `subprocess.Popen.wait`, title `subprocess.Popen.wait(timeout=None)`,
        text the docstring's first 1200 characters; each text once, ids unique, sorted by file.
    """
    seen_texts: set[str] = set()
    seen_ids: set[str] = set()
    for name, node in stdlib_definitions(stdlib):
        text = inspect.cleandoc(ast.get_docstring(node) or "")[:_MAX_CHARS].rstrip()
        if len(text) < _MIN_CHARS or text in seen_texts or name in seen_ids:
            continue
        seen_texts.add(text)
        seen_ids.add(name)
        yield Passage(id=name, title=name + _signature(node), text=text)


def stdlib_summaries(stdlib: Path | None = None) -> Iterator[Passage]:
    """Yields the same passages, each with what a small encoder needs of it to find it.

    Signatures and details drown what a docstring says first: with them all-MiniLM-L6-v2 finds
    fewer answers (benchmarks/stdlib_questions.py --whole).
    """
    yield from map(summary, stdlib_passages(stdlib))


def summary(passage: Passage) -> Passage:
    """Id `shutil.copytree`, title `shutil copytree`, text the docstring's first paragraph."""
    first, *_ = passage.text.split("\n\n")
    return Passage(id=passage.id, title=words_of(passage.id), text=first)


def words_of(name: str) -> str:
    """`shutil copytree` from `shutil.copytree`, `csv Dict Reader` from `csv.DictReader`."""
    return " ".join(_CAMEL_CASE.sub(" ", name).replace(".", " ").replace("_", " ").split())


def stdlib_definitions(stdlib: Path | None = None) -> Iterator[tuple[str, Documented]]:
    """Dotted name and syntax tree of everything public, documented or not, sorted by file.

    Args:
        stdlib: folder of the standard library's sources; this interpreter's by default.
    """
    for module, path in _sources(stdlib or Path(sysconfig.get_path("stdlib"))):
        tree = _parse(path)
        public = _listed(tree)
        for name, node in _walk(module, tree):
            own = name.removeprefix(module).removeprefix(".").partition(".")[0]
            if not own or public is None or own in public:
                yield name, node


def _sources(stdlib: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every source file that belongs to a public module."""
    for path in sorted(stdlib.rglob("*.py")):
        *folders, stem = path.relative_to(stdlib).with_suffix("").parts
        parts = folders if stem == "__init__" else [*folders, stem]
        if not parts or _SKIPPED_FOLDERS & set(parts):
            continue
        top = parts[0]
        if top not in sys.stdlib_module_names or top in _SKIPPED_MODULES:
            continue
        name = _PUBLIC_NAMES.get(".".join(parts), ".".join(parts))
        if not any(part.startswith("_") for part in name.split(".")):
            yield name, path


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in somebody else's source
        try:
            return ast.parse(path.read_bytes())
        except SyntaxError:  # a fixture for a tool's own tests
            return ast.Module(body=[], type_ignores=[])


def _listed(module: ast.Module) -> set[str] | None:
    """The names in a module's `__all__`; None without one, or where it is computed."""
    values: list[ast.expr] = []
    for node in ast.walk(module):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=value)
                | ast.AugAssign(target=ast.Name(id="__all__"), value=value)
            ):
                values.append(value)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="__all__"), attr="append"), args=[value]
            ):
                values.append(ast.List(elts=[value]))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="__all__")), args=[value]):
                values.append(value)
    try:
        return {name for value in values for name in ast.literal_eval(value)} if values else None
    except ValueError:
        return None


def _walk(name: str, node: Documented) -> Iterator[tuple[str, Documented]]:
    """The node itself and, below modules and classes, what has a public name."""
    yield name, node
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(
                child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and not child.name.startswith("_"):
                yield from _walk(f"{name}.{child.name}", child)


def _signature(node: Documented) -> str:
    """`(timeout=None)` for a function or a class with a constructor, else nothing."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            arguments = ast.unparse(node.args)
        case ast.ClassDef():
            inits = [
                n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"
            ]
            if not inits:
                return ""
            arguments = ast.unparse(inits[0].args)
        case _:
            return ""
    first, _, rest = arguments.partition(", ")
    return f"({rest if first in {'self', 'cls'} else arguments})"
