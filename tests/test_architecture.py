"""Who may import whom, and what library code never does. Reads sources, runs almost nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "epic_retrieval": ROOT / "epic_retrieval",
    "haystack_epic": ROOT / "integrations" / "haystack_epic",
    "langchain_epic": ROOT / "integrations" / "langchain_epic",
    "llama_index_epic": ROOT / "integrations" / "llama_index_epic",
    "sentence_transformers_epic": ROOT / "integrations" / "sentence_transformers_epic",
    "epic_training": ROOT / "training" / "epic_training",
}
INTEGRATIONS = {
    "haystack_epic",
    "langchain_epic",
    "llama_index_epic",
    "sentence_transformers_epic",
}

# A part imports from its own line and the lines above it.
LINES = (
    {"errors", "tasks", "method", "pooling", "projector", "index", "storage"},
    {
        "prompt",
        "tokenization",
        "backbone",
        "packed",
        "linear",
        "int8_file",
        "prefix",
        "checkpoint",
        "checkpoint_config",
        "checkpoint_foreign",
        "stdlib_docs",
    },
    {"prompt_cache", "batching", "query_batcher", "encoder", "pool", "shared"},
    {"analysis", "benchmarking", "demonstrations", "evaluation", "epic_training"} | INTEGRATIONS,
    {"cli"},
)
LINE_OF = {part: number for number, line in enumerate(LINES) for part in line}
# Neighbours on this line do not know each other.
STRANGERS = LINES[3]
# These speak to the library as a user does.
USES_PUBLIC_NAMES = INTEGRATIONS | {"cli"}

Imported = tuple[str, str | None]  # module, name taken from it


def modules() -> list[tuple[str, Path]]:
    found = []
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            found.append((".".join((package, *inner)).removesuffix(".__init__"), path))
    return found


MODULES = modules()
IDS = [name for name, _ in MODULES]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(tree: ast.AST) -> Iterator[Imported]:
    """Every import of a file, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def part_of(module: str) -> str:
    """`epic_retrieval.index.build` is of the part `index`, `langchain_epic.x` of itself."""
    first, *rest = module.split(".")
    return rest[0] if first == "epic_retrieval" and rest else first


def is_ours(module: str) -> bool:
    return module.split(".")[0] in SOURCES


@pytest.mark.parametrize(("name", "path"), MODULES, ids=IDS)
def test_imports_point_down(name: str, path: Path) -> None:
    part = part_of(name)
    if part == "epic_retrieval":
        return  # the front door names everything
    assert part in LINE_OF, f"{part} has no place in LINES: give it one"
    for module, taken in imports_of(tree_of(path)):
        if module == "epic_retrieval":
            assert part in USES_PUBLIC_NAMES, f"{name} must import from the module itself"
        elif is_ours(module):
            other = part_of(module)
            assert LINE_OF[other] <= LINE_OF[part], f"{name} imports {module} ({taken}), above it"
            assert part == other or not {part, other} <= STRANGERS, f"{name} imports {module}"


@pytest.mark.parametrize(("name", "path"), MODULES, ids=IDS)
def test_integrations_use_public_names_only(name: str, path: Path) -> None:
    if part_of(name) not in INTEGRATIONS:
        return
    import epic_retrieval

    for module, taken in imports_of(tree_of(path)):
        if module.split(".")[0] == "epic_retrieval":
            assert module == "epic_retrieval", f"{name} reaches into {module}"
            assert taken in epic_retrieval.__all__, f"{taken} is not public"


def test_nothing_imports_the_benchmarks() -> None:
    for name, path in MODULES:
        for module, _ in imports_of(tree_of(path)):
            assert module.split(".")[0] not in {"benchmarks", "tests"}, name


def test_the_index_knows_no_model() -> None:
    for name, path in MODULES:
        if part_of(name) == "index":
            heads = {module.split(".")[0] for module, _ in imports_of(tree_of(path))}
            assert not heads & {"torch", "transformers", "peft", "tokenizers"}, name


@pytest.mark.parametrize("path", [p for _, p in MODULES if p.name == "__init__.py"], ids=str)
def test_init_files_hold_imports_only(path: Path) -> None:
    front_door = path == SOURCES["epic_retrieval"] / "__init__.py"
    for node in tree_of(path).body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
                continue
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                continue
            case _:
                # The front door loads its names on first use, and that takes a few lines.
                assert front_door, f"line {node.lineno}"


PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def sins_of(tree: ast.AST, *, may_print: bool) -> Iterator[str]:
    for module, _ in imports_of(tree):
        if module.split(".")[0] in PICKLES:
            yield f"imports {module}"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")) if not may_print:
                yield f"line {node.lineno}: print"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save")):
                yield f"line {node.lineno}: torch.load and torch.save pickle"
            case ast.keyword(arg="trust_remote_code" | "allow_pickle", value=ast.Constant(True)):
                yield f"line {node.lineno}: {node.arg}=True"
            case _:
                pass


@pytest.mark.parametrize(("name", "path"), MODULES, ids=IDS)
def test_library_code_does_not(name: str, path: Path) -> None:
    assert not list(sins_of(tree_of(path), may_print=part_of(name) == "cli"))


@pytest.mark.parametrize("statement", ["import epic_retrieval", "import epic_retrieval.cli"])
def test_importing_is_light(statement: str) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'faiss', 'langchain_core', 'pyarrow'}"
    code = f"{statement}; import sys; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_loads() -> None:
    import epic_retrieval

    assert sorted(epic_retrieval._HOMES) == sorted(set(epic_retrieval.__all__) - {"__version__"})
    for name in epic_retrieval.__all__:
        assert getattr(epic_retrieval, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        epic_retrieval.no_such_name  # noqa: B018 (the access is the test)
