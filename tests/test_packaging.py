"""What a user gets from `pip install`: the wheel's contents, and that they work away from here."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "epic_retrieval",
    "epic_training",
    "haystack_epic",
    "langchain_epic",
    "llama_index_epic",
    "sentence_transformers_epic",
)


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Runs a command away from the checkout; returns stdout. Fails with its stderr."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files; what the wheel depends on comes from this environment."""
    target = tmp_path_factory.mktemp("site")
    uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps")
    run(*uv, "--python", sys.executable, "--target", target, wheel, cwd=target)
    return target


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {*PACKAGES, wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    assert not [name for name in names if "__pycache__" in name or "/test" in name]


def test_wheel_holds_types_data_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    for folder in (ROOT / "epic_retrieval" / "data", ROOT / "epic_retrieval" / "models"):
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in names


def test_wheel_holds_every_module_of_the_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for home in (ROOT, ROOT / "integrations", ROOT / "training"):
        for package in PACKAGES:
            for path in (home / package).rglob("*.py"):
                assert path.relative_to(home).as_posix() in names


def test_installed_packages_import(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib\nfor n in sys.argv[1:]: print(importlib.import_module(n).__file__)"
    )
    lines = run(sys.executable, "-P", "-c", code, *PACKAGES, cwd=tmp_path, path=installed)
    for package, line in zip(PACKAGES, lines.split(), strict=True):
        assert Path(line) == installed / package / "__init__.py"


def test_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    epic = installed / "bin" / "epic"
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(epic, "--version", cwd=tmp_path, path=installed).strip() == f"epic {stated}"
    assert "web-search" in run(epic, "tasks", cwd=tmp_path, path=installed)
