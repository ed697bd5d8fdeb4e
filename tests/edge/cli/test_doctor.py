"""`ufovit doctor`: its output for libraries that are installed, missing, or fail to load. Oracle: pip's metadata."""

import re
import sys
import types
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec

import pytest

from edge.cli import run

LIBRARIES = {  # the name that doctor uses -> the module that it imports, and what installs it
    "openvino": ("openvino", "pip install 'ufovit-edge[openvino]'"),
    "OpenCV": ("cv2", "pip install 'ufovit-edge[camera]', or on a Jetson JetPack's own"),
    "OpenCV with GStreamer": ("cv2", "pip install 'ufovit-edge[camera]', or on a Jetson JetPack's own"),
    "cryptography": ("cryptography", "pip install 'ufovit-edge[sign]'"),
    "pycuda": ("pycuda", "pip install 'ufovit-edge[pycuda]'"),
    "cuda-python": ("cuda", "pip install 'ufovit-edge[cuda]'"),
}


INSTALLED = {d.name for d in distributions()}.__contains__


@pytest.fixture
def rows(capsys, monkeypatch):
    """rows() -> name of a row -> (works, version, why), and everything that was printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def read():
        assert run(["doctor"]) == 0
        text = capsys.readouterr().out
        cells = [[cell.strip() for cell in re.split("[│┃|]", line)[1:5]] for line in text.splitlines()]
        return {name: tuple(rest) for name, *rest in (row for row in cells if len(row) == 4)}, text

    return read


def hide(monkeypatch, module):
    """Make a package missing, whatever of it is imported already."""
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_named_with_the_command_that_installs_it(rows, monkeypatch, library):
    module, install = LIBRARIES[library]
    hide(monkeypatch, module)
    found, text = rows()
    assert found[library][0] == "no"
    assert "not installed" in found[library][2]
    assert f"{library} would work after: {install}" in text
    others = {name for name in LIBRARIES if LIBRARIES[name][0] != module}
    assert others <= found.keys(), "one that is missing hides no other"


@pytest.mark.parametrize(
    ("library", "module", "distribution"),
    [
        ("openvino", "openvino", "openvino"),
        ("OpenCV", "cv2", "opencv-python-headless"),
        ("cryptography", "cryptography", "cryptography"),
        ("cuda-python", "cuda", next(filter(INSTALLED, ("cuda-python", "cuda-bindings")), "cuda-bindings")),
    ],
)
def test_a_library_that_is_there(rows, library, module, distribution):
    if find_spec(module) is None:
        pytest.skip(f"{distribution} is not installed")
    found, text = rows()
    works, number, _ = found[library]
    assert works == "yes"
    assert number == version(distribution)
    assert f"{library} would work after" not in text


@pytest.mark.parametrize(("says", "works"), [("YES (1.20.3)", "yes"), ("NO", "no")])
def test_whether_opencv_has_gstreamer(rows, monkeypatch, says, works):
    cv2 = types.ModuleType("cv2")
    cv2.__version__, cv2.__file__ = "4.10.0", "/usr/lib/cv2.so"
    cv2.getBuildInformation = lambda: f"  Video I/O:\n    GStreamer:   {says}\n"
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    found, text = rows()
    assert found["OpenCV"][0] == "yes"
    assert found["OpenCV with GStreamer"][0] == works
    assert ("pip uninstall opencv-python-headless" in text) == (works == "no")


def test_jetpacks_opencv_tells_its_version_itself(rows, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    cv2 = types.ModuleType("cv2")
    cv2.__version__, cv2.__file__ = "4.8.0-jetpack", "/usr/lib/cv2.so"
    cv2.getBuildInformation = lambda: "    GStreamer:   YES (1.20.3)\n"
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    monkeypatch.setattr("engines.hardware.version", absent)
    found, _ = rows()
    assert found["OpenCV"][:2] == ("yes", "4.8.0-jetpack")


def test_pycuda_without_a_driver_is_not_called_missing(rows, monkeypatch):
    """pycuda links to libcuda.so.1: its import fails with ImportError, and no pip command fixes that."""

    class Finder:
        def find_spec(self, name, _path=None, _target=None):
            if name.partition(".")[0] == "pycuda":
                raise ImportError("libcuda.so.1: cannot open shared object file")

    for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    found, text = rows()
    assert found["pycuda"][0] == "no"
    assert "no NVIDIA driver" in found["pycuda"][2]
    assert "pycuda would work after" not in text
