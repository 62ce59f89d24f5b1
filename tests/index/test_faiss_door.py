"""How FAISS is found: in processes whose search path holds what an installation would hold."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.index.samples import ROOT

LOAD = """
import sys
sys.path[:0] = [sys.argv[1]]
from epic_retrieval.errors import MissingExtraError
from epic_retrieval.index._faiss import load_faiss
try:
    print(load_faiss().IndexFlatIP(2).d)
except MissingExtraError as error:
    print("MissingExtraError:", error)
"""


def distribution(site: Path, name: str) -> None:
    folder = site / f"{name.replace('-', '_')}-1.15.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.15.1\n")


def load(site: Path, *options: str) -> str:
    command = [sys.executable, *options, "-c", LOAD, str(site)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout + done.stderr


def test_importing_the_package_leaves_faiss_out() -> None:
    code = (
        "import sys, epic_retrieval.index\nprint({'faiss', 'torch', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "set()"


def test_one_distribution(tmp_path: Path) -> None:
    assert load(tmp_path, "-W", "error").strip() == "2"


def test_two_distributions_are_told(tmp_path: Path) -> None:
    distribution(tmp_path, "faiss-gpu")
    said = load(tmp_path)
    assert "RuntimeWarning: faiss-cpu and faiss-gpu are installed together" in said
    assert "pip uninstall -y faiss-cpu faiss-gpu" in said
    assert said.startswith("2\n")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no libcudart.so.12')", "no libcudart.so.12"),
        ("raise ImportError('bad file')", "bad file"),
        ("", "it holds no IndexFlatIP"),
    ],
)
def test_broken_installations(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "faiss.py").write_text(code)
    said = load(tmp_path)
    assert f"MissingExtraError: faiss-cpu is installed but cannot be loaded ({message})" in said
    distribution(tmp_path, "faiss-gpu")
    assert f"cannot be loaded ({message}): faiss-cpu and faiss-gpu are installed" in load(tmp_path)


def test_nothing_installed(tmp_path: Path) -> None:
    # Without site-packages; numpy, which is there for certain, comes back by its path.
    site = tmp_path / "site"
    site.mkdir()
    for name in ("numpy", "numpy.libs"):
        found = Path(np.__file__).parents[1] / name
        if found.exists():
            (site / name).symlink_to(found)
    command = [sys.executable, "-S", "-c", LOAD, str(site)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert 'needs FAISS, which is not installed: pip install "epic-retrieval[cpu]"' in done.stdout


def test_gpu_libraries_missing(tmp_path: Path) -> None:
    # Where faiss-gpu is all there is: its own distribution, and a module that fails as it does.
    (tmp_path / "faiss.py").write_text("raise RuntimeError('no libcudart.so.12')")
    distribution(tmp_path, "faiss-gpu")
    hide = (
        "import sys\n"
        "sys.path[:] = [place for place in sys.path if not place.endswith('site-packages')]\n"
    )
    (tmp_path / "numpy").symlink_to(Path(np.__file__).parent)
    libs = Path(np.__file__).parents[1] / "numpy.libs"
    if libs.exists():
        (tmp_path / "numpy.libs").symlink_to(libs)
    command = [sys.executable, "-c", hide + LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "faiss-gpu is installed but cannot be loaded (no libcudart.so.12)" in done.stdout
    assert "CUDA libraries may be missing" in done.stdout
