"""What an installation holds: every module, every file that the packages read, and the mark that their types may be used."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("calib", "engines", "edge")
MODEL_CARD = "edge/assets/README.md"


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_packages(tmp_path):
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], check=True, capture_output=True, cwd=source, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    installed = {name for name in zipfile.ZipFile(wheel).namelist() if name.split("/")[0] in PACKAGES}
    files = {str(p.relative_to(source)) for package in PACKAGES for p in (source / package).rglob("*") if p.is_file()}
    assert installed == {name for name in files if not name.endswith(".md") or name == MODEL_CARD}
    assert {f"{package}/py.typed" for package in PACKAGES} <= installed
