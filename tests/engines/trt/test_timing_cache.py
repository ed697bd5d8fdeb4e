"""The timing cache file, and builds that a pinned cache rejects. Oracle: hashlib. Without TensorRT."""

import hashlib

import pytest

from calib.errors import ArtifactError, BackendError
from engines.build_spec import BuilderOptions
from engines.trt.timing_cache import TimingCache, check_pin


def test_a_cache_starts_empty_and_holds_what_was_written(tmp_path):
    cache = TimingCache(tmp_path / "timing.cache")
    assert cache.read() == b""
    cache.write(None)
    assert not cache.path.exists()
    cache.write(b"measured")
    assert cache.read() == b"measured"
    assert cache.pinned_sha256() is None, "every build adds to it"


def test_a_pinned_cache_must_exist_and_is_never_written(tmp_path):
    pinned = TimingCache(tmp_path / "timing.cache", pinned=True)
    assert pinned.pinned_sha256() is None
    with pytest.raises(ArtifactError, match=r"(?s)no timing cache to pin.*timing\.cache.*once without --pin-timing-cache"):
        pinned.read()
    pinned.path.write_bytes(b"measured")
    pinned.write(b"something else")
    assert pinned.read() == b"measured"
    assert pinned.pinned_sha256() == hashlib.sha256(b"measured").hexdigest()


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a regular file"):
        TimingCache(tmp_path).read()


@pytest.mark.parametrize(
    ("pin", "measured", "enforced", "rejected"),
    [
        (True, b"pinned", False, False),
        (True, b"pinned and more", False, True),
        (True, None, False, True),
        (True, b"pinned and more", True, False),  # TensorRT itself would have ended the build
        (False, b"pinned and more", False, False),
    ],
)
def test_timings_despite_the_pin_are_rejected(pin, measured, enforced, rejected):
    options = BuilderOptions(timing_cache=b"pinned", pin_timing_cache=pin)
    if rejected:
        with pytest.raises(BackendError, match=hashlib.sha256(measured or b"").hexdigest()[:16]):
            check_pin(options, measured, enforced=enforced)
    else:
        check_pin(options, measured, enforced=enforced)
