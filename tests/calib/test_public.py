import subprocess
import sys
from pathlib import Path

import pytest

import calib

HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "cv2", "onnx", "onnxruntime", "numpy", "scipy")


def loaded_by(code):
    listing = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", listing], check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import calib, calib.errors, calib.files, calib.artifact, calib.calibration_table") <= {"numpy"}
    assert loaded_by("import calib") == set()


def test_importing_collect_does_not_load_onnxruntime():
    assert loaded_by("import calib.collect, calib.qdq_writer, calib.lint") == {"numpy", "onnx"}


@pytest.mark.parametrize("name", calib.__all__)
def test_every_public_name_is_there(name):
    assert getattr(calib, name).__doc__


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing"):
        calib.nothing  # noqa: B018  # the access is the test


def test_the_readme_example_runs(tiny_path, images, monkeypatch):
    monkeypatch.chdir(tiny_path.parent)
    tiny_path.rename("model.onnx")
    readme = (Path(calib.__file__).parent / "README.md").read_text()
    example = readme.split("```python")[1].split("```")[0]
    exec(example, {"batches": [images], "digest": "d"})
    assert Path("model.int8.onnx").stat().st_size > 1000
