"""Hardware detection from files with real contents. Oracles: the files, and Python's platform module."""

import platform

import pytest

from engines import hardware

CPUINFO = {
    "x86": ("processor\t: 0\nmodel name\t: AMD EPYC 7763\n\nprocessor\t: 1\nmodel name\t: AMD EPYC 7763\n", "AMD EPYC 7763"),
    "Raspberry Pi": ("processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 5 Model B\n", "Raspberry Pi 5 Model B"),
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_DEVICE_TREE", tmp_path / "model")
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    return tmp_path


@pytest.mark.parametrize("machine", CPUINFO)
def test_the_processor_has_its_kernel_name(files, machine):
    text, name = CPUINFO[machine]
    (files / "cpuinfo").write_text(text)
    assert hardware.processor() == name


def test_a_jetson_is_named_by_its_module(files):
    (files / "cpuinfo").write_text(CPUINFO["x86"][0])
    (files / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert hardware.processor() == "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.mark.parametrize("text", [None, "processor\t: 0\n"])
def test_a_processor_without_a_name(files, monkeypatch, text):
    if text is not None:
        (files / "cpuinfo").write_text(text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert hardware.processor() == "unknown"
    monkeypatch.setattr(platform, "processor", lambda: "riscv64")
    assert hardware.processor() == "riscv64"


def test_the_load(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (1.5, 9, 9))
    assert hardware.load_average() == 1.5

    def refuse():
        raise OSError

    monkeypatch.setattr("os.getloadavg", refuse)
    assert hardware.load_average() is None


def test_the_system():
    assert hardware.system().startswith(f"{platform.system()} {platform.release()}")
    assert hardware.system().endswith(f"Python {platform.python_version()}")


def test_versions_of_installed_and_missing_distributions():
    import numpy

    assert hardware.versions("numpy", "no-such-distribution") == {"numpy": numpy.__version__, "no-such-distribution": ""}
