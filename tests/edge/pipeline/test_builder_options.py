"""What TensorRT is told beyond the graph: ranges, which target takes what, the timing cache on the disk. Oracle: hashlib."""

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from calib.errors import InputError, MissingError
from edge.pipeline.builder_options import DEFAULT_BUILDER, BuilderRequest
from engines import hardware
from engines.build_spec import BuilderOptions
from engines.targets import TARGETS

ORIN, DESKTOP, RTX, CPU = (TARGETS[name] for name in ("orin-nano", "desktop", "rtx", "cpu"))
EVERYTHING = {
    "optimization_level": 4,
    "workspace_mib": 3,
    "version_compatible": True,
    "hardware_compatibility": "ampere_plus",
    "timing_cache": Path("x"),
    "pin_timing_cache": True,
}
FLAGS = dict(
    zip(
        EVERYTHING,
        ("--optimization-level", "--workspace", "--version-compatible", "--hardware-compatibility", "--timing-cache",
         "--pin-timing-cache"),
        strict=True,
    )
)  # fmt: skip


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "gpus", lambda: (hardware.Gpu("a GPU", "8.6"),))
    return tmp_path / "build" / "model-int8-desktop"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimization_level": -1}, "optimization level"),
        ({"optimization_level": 6}, "0 to 5"),
        ({"workspace_mib": 0}, "workspace"),
        ({"workspace_mib": -5}, "workspace"),
        ({"hardware_compatibility": "all"}, "none, ampere_plus, same_compute_capability"),
        ({"hardware_compatibility": "AMPERE_PLUS"}, "unknown hardware compatibility"),
    ],
)
def test_values_out_of_range_are_refused_at_once(options, says):
    with pytest.raises(InputError, match=says):
        BuilderRequest(**options)


def test_options_in_the_units_of_the_builder(out):
    made = BuilderRequest(2, 3, True, "same_compute_capability").options(DESKTOP, out)
    assert made == BuilderOptions(2, 3 * 1024 * 1024, True, "same_compute_capability", timing_cache=b"")
    assert DEFAULT_BUILDER.options(RTX, out) == BuilderOptions()
    assert DEFAULT_BUILDER.options(CPU, out) == BuilderOptions()


@pytest.mark.parametrize("name", EVERYTHING)
def test_only_targets_that_know_an_option_take_it(out, name):
    request = replace(DEFAULT_BUILDER, **{name: EVERYTHING[name]})
    torch = replace(RTX, backend="torch_trt")
    refusing = [CPU] if name == "optimization_level" else [CPU, RTX, torch, replace(DESKTOP, backend="torch_trt")]
    for target in refusing:
        with pytest.raises(InputError, match=rf"(?s)target {target.name} does not support.*found: {FLAGS[name]}") as caught:
            request.options(target, out)
        assert ("allowed: --optimization-level" in str(caught.value)) == (target is not CPU)
    for target in {RTX.name: RTX, "torch": torch, ORIN.name: ORIN, DESKTOP.name: DESKTOP}.values():
        if target not in refusing and name != "pin_timing_cache":
            request.options(target, out)


def test_all_that_a_target_does_not_have_is_named(out):
    with pytest.raises(InputError) as caught:
        BuilderRequest(**EVERYTHING).options(CPU, out)
    assert [flag for flag in FLAGS.values() if flag not in str(caught.value)] == []


def test_the_timing_cache_lies_beside_the_build_folders_one_for_each_target(out):
    assert DEFAULT_BUILDER.cache(DESKTOP, out).path == out.parent / "timing-desktop.cache"
    assert DEFAULT_BUILDER.cache(ORIN, out).path == out.parent / "timing-orin-nano.cache"
    assert BuilderRequest(timing_cache=Path("mine")).cache(ORIN, out).path == Path("mine")


def test_what_a_build_measures_is_there_for_the_next(out):
    assert DEFAULT_BUILDER.options(DESKTOP, out).timing_cache == b"", "the first build starts an empty one"
    DEFAULT_BUILDER.cache(DESKTOP, out).write(b"measured")
    assert DEFAULT_BUILDER.options(DESKTOP, out).timing_cache == b"measured"
    assert DEFAULT_BUILDER.options(ORIN, out).timing_cache == b"", "of another target"
    DEFAULT_BUILDER.cache(DESKTOP, out).write(b"measured and more")
    assert DEFAULT_BUILDER.options(DESKTOP, out.parent / "another build").timing_cache == b"measured and more"
    assert [p.name for p in out.parent.iterdir()] == ["timing-desktop.cache"]


def test_a_backend_without_a_cache_leaves_none(out):
    DEFAULT_BUILDER.cache(RTX, out).write(None)
    assert not out.parent.exists()


def test_a_pinned_cache_is_there_and_stays_as_it_is(out):
    pinned = BuilderRequest(pin_timing_cache=True)
    with pytest.raises(InputError, match=r"(?s)no timing cache to pin.*timing-desktop\.cache.*once without --pin-timing-cache"):
        pinned.options(DESKTOP, out)
    DEFAULT_BUILDER.cache(DESKTOP, out).write(b"measured")
    options = pinned.options(DESKTOP, out)
    assert (options.timing_cache, options.pin_timing_cache) == (b"measured", True)
    pinned.cache(DESKTOP, out).write(b"something else")
    assert pinned.cache(DESKTOP, out).path.read_bytes() == b"measured"
    pinned.cache(DESKTOP, out).path.write_bytes(b"")
    with pytest.raises(InputError, match="no timing cache to pin"):
        pinned.options(DESKTOP, out)


def test_a_cache_that_cannot_be_read_or_written(out, monkeypatch):
    cache = out.parent / "timing-desktop.cache"
    cache.parent.mkdir()
    cache.write_bytes(b"measured")

    def deny(*_arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", deny)
        with pytest.raises(InputError, match=r"(?s)file cannot be read.*Permission denied"):
            DEFAULT_BUILDER.options(DESKTOP, out)

    def fill(_path, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(MissingError, match="disk full"):
            DEFAULT_BUILDER.cache(DESKTOP, out).write(b"measured and more")
    assert cache.read_bytes() == b"measured"
    assert [p.name for p in cache.parent.iterdir()] == [cache.name]


def test_a_folder_for_a_cache_is_refused(out):
    with pytest.raises(InputError, match="not a regular file"):
        BuilderRequest(timing_cache=out.parent.parent).options(DESKTOP, out)


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "timing_cache"])
def test_every_option_decides_about_the_engine(out, name):
    changed = replace(DEFAULT_BUILDER, **{name: EVERYTHING[name]})
    assert changed.as_json(DESKTOP, out) != DEFAULT_BUILDER.as_json(DESKTOP, out)


def test_a_cache_decides_only_where_it_is_pinned(out):
    pinned, before = BuilderRequest(pin_timing_cache=True), DEFAULT_BUILDER.as_json(DESKTOP, out)
    DEFAULT_BUILDER.cache(DESKTOP, out).write(b"measured")
    assert DEFAULT_BUILDER.as_json(DESKTOP, out) == before, "or no build would ever be reused"
    assert pinned.as_json(DESKTOP, out)["timing_cache"] == hashlib.sha256(b"measured").hexdigest()
    first = pinned.as_json(DESKTOP, out)
    DEFAULT_BUILDER.cache(DESKTOP, out).write(b"measured and more")
    assert pinned.as_json(DESKTOP, out) != first


def test_the_gpu_decides_only_where_the_engine_is_for_it(out, monkeypatch):
    requests = {target.name: DEFAULT_BUILDER.as_json(target, out) for target in (DESKTOP, RTX, CPU)}
    monkeypatch.setattr(hardware, "gpus", lambda: (hardware.Gpu("another GPU", "8.9"),))
    again = {target.name: DEFAULT_BUILDER.as_json(target, out) for target in (DESKTOP, RTX, CPU)}
    assert [name for name in requests if requests[name] != again[name]] == ["desktop"]
