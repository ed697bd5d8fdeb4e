"""Recordings: playable whatever happens, in real time, with the answer on them; a full disk ends them, not the run."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from camera_fakes import loaded_cv2, picture, read_all, result

from calib.errors import InputError, MissingError, UsageError
from edge.camera.background_sink import BackgroundSink
from edge.camera.sinks import recorder
from edge.camera.sinks.recorder import RESERVE_BYTES, Recorder, ascii_only, drawn, recording_fps, room_for
from edge.camera.sources.registry import open_source

loaded_cv2()

ROOT = Path(__file__).resolve().parents[3]
SIZE = (96, 128)


def noise(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def taken(recorder, results):
    for some in results:
        recorder.process(some)
    recorder.close()


def test_pictures_come_back_with_the_answer_on_them(tmp_path):
    said = []
    recorder = Recorder(tmp_path / "a.mp4", 10.0, notify=said.append)
    taken(recorder, [result(picture(140, SIZE), i, 1000.0 + 0.1 * i) for i in range(20)])
    frames = read_all(open_source(str(tmp_path / "a.mp4")))
    assert len(frames) == 20
    assert frames[0].shape == (*SIZE, 3)
    np.testing.assert_allclose(frames[5][60:].mean(), 140, atol=3)  # below the letters it is the picture
    assert abs(frames[5][:40].mean() - 140) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert "20 frames" in said[0]


def test_the_overlay_shows_names_and_shares():
    shown = drawn(result(picture(140, (240, 320))))
    plain = picture(140, (240, 320))
    assert (shown[100:] == plain[100:]).all()
    top = shown[:30].astype(int).mean(axis=(0, 2))
    assert top[:200].mean() > top[-20:].mean() + 20  # a bar of 84 %
    assert (drawn(result(picture(140, (240, 320)), logits=(9, 0, 0)))[:30] != shown[:30]).any()
    tiny = drawn(result(picture(50, (8, 8))))
    np.testing.assert_array_equal(tiny, picture(50, (8, 8)))
    assert ascii_only("Crème brûlée 猫") == "Creme brulee ?"
    assert ascii_only("a\n\x1b[2J\x00\ud800\u202e") == r"a \x1b[2J\x00\ud800\u202e"


def test_a_video_keeps_the_time(tmp_path):
    """Results at 4 per second in a video of 20 per second last as long as they did."""
    recorder = Recorder(tmp_path / "a.avi", 20.0)
    taken(recorder, [result(picture(20 * i, SIZE), i, 1000.0 + 0.25 * i) for i in range(9)])
    frames = read_all(open_source(str(tmp_path / "a.avi")))
    assert len(frames) == 41
    below = [frame[60:].mean() for frame in frames]
    np.testing.assert_allclose(below, [20 * (i // 5) for i in range(41)], atol=4)
    fast = Recorder(tmp_path / "b.avi", 5.0)
    taken(fast, [result(picture(i, SIZE), i, 1000.0 + 0.01 * i) for i in range(200)])
    assert len(read_all(open_source(str(tmp_path / "b.avi")))) == 11


def test_a_pause_of_the_camera_is_left_out(tmp_path):
    recorder = Recorder(tmp_path / "a.avi", 10.0)
    taken(recorder, [result(picture(9, SIZE), i, t) for i, t in enumerate([1000.0, 1000.1, 1100.0, 1100.1])])
    assert len(read_all(open_source(str(tmp_path / "a.avi")))) == 4


def test_each_result_is_one_frame_when_every_frame_counts(tmp_path):
    recorder = Recorder(tmp_path / "a.avi", 10.0, each=True)
    taken(recorder, [result(picture(i, SIZE), i, 1000.0 + 7.0 * i) for i in range(12)])
    assert len(read_all(open_source(str(tmp_path / "a.avi")))) == 12


def test_a_source_that_changes_its_size_keeps_one_size_in_the_video(tmp_path):
    recorder = Recorder(tmp_path / "a.avi", 10.0, each=True)
    sizes = [SIZE, (48, 64), (200, 100), (97, 129), (1, 1), SIZE]
    taken(recorder, [result(picture(200, size), i) for i, size in enumerate(sizes)])
    frames = read_all(open_source(str(tmp_path / "a.avi")))
    assert [f.shape for f in frames] == [(*SIZE, 3)] * 6
    assert frames[2][60:, :20].mean() < 40  # a narrow picture has black beside it
    assert frames[2][60:, 60:70].mean() > 150


def test_odd_and_tiny_pictures(tmp_path):
    taken(Recorder(tmp_path / "a.mp4", 10.0), [result(picture(99, (65, 67)), i, 1000 + i / 10) for i in range(3)])
    assert read_all(open_source(str(tmp_path / "a.mp4")))[0].shape == (64, 66, 3)


@pytest.mark.parametrize("name", ["a.gif", "a", "a.mp4.txt"])
def test_an_unknown_container(tmp_path, name):
    with pytest.raises(InputError, match=r"unknown container(.|\n)*\.mp4 \.mkv \.avi"):
        Recorder(tmp_path / name, 10.0)


def test_a_recording_that_is_there_is_kept(tmp_path):
    (tmp_path / "a.mp4").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        Recorder(tmp_path / "a.mp4", 10.0)
    with pytest.raises(InputError, match=r"folder of the recording does not exist(.|\n)*mkdir -p"):
        Recorder(tmp_path / "none" / "a.mp4", 10.0)


def test_a_second_recorder_of_one_file_is_refused(tmp_path):
    first, other = Recorder(tmp_path / "a.mp4", 10.0), Recorder(tmp_path / "b.mp4", 10.0)
    with pytest.raises(UsageError, match=r"another process is recording to this file(.|\n)*choose another name"):
        Recorder(tmp_path / "a.mp4", 10.0)
    taken(first, [result(picture(140, SIZE), i, 1000.0 + 0.1 * i) for i in range(5)])
    assert len(read_all(open_source(str(tmp_path / "a.mp4")))) == 5, "the first goes on"
    other.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    with pytest.raises(UsageError, match="exists already"):
        Recorder(tmp_path / "a.mp4", 10.0)


def test_what_a_killed_recorder_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".a.partial.mp4").write_bytes(b"half")
    taken(Recorder(tmp_path / "a.mp4", 10.0), [result(picture(140, SIZE), i, 1000.0 + 0.1 * i) for i in range(3)])
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_disk_that_is_full_from_the_start(tmp_path):
    with pytest.raises(MissingError, match=r"disk full(.|\n)*1 MB free(.|\n)*free space"):
        Recorder(tmp_path / "a.mp4", 10.0, free_bytes=lambda _path: 1_000_000)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_ends_the_recording_and_leaves_it_playable(tmp_path):
    """The sink is called on as before; the message says why; the video holds what was recorded until then."""
    said, room, seconds = [], iter([RESERVE_BYTES * 2] * 11), iter(range(1000))
    done = threading.Event()

    def free(_path):
        left = next(room, RESERVE_BYTES - 1)
        if left < RESERVE_BYTES:
            done.set()
        return left

    recorder = Recorder(tmp_path / "a.mp4", 10.0, each=True, notify=said.append, clock=lambda: next(seconds), free_bytes=free)
    sink = BackgroundSink("recording", recorder.process, recorder.close, block=True, notify=said.append)
    for i in range(40):
        sink(result(noise(i), i))
    assert done.wait(30)
    sink.close()
    sink.close()
    assert len(read_all(open_source(str(tmp_path / "a.mp4")))) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    (message,) = [text for text in said if "disk full" in text]
    assert message.startswith("recording: disk full: the recording ends here")
    assert "inference continues without it" in message
    assert isinstance(sink.failure, MissingError)


def limited(tmp_path, limit, code):
    """Run code in a process whose files may not grow beyond `limit` bytes, which is what a full disk looks like to FFmpeg."""
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.path[:0] = [{str(ROOT / "tests" / "support")!r}, {str(ROOT / "tests" / "edge" / "camera")!r}]
from pathlib import Path
from test_recorder import *
path = Path({str(tmp_path / "a.mp4")!r})
{code}
"""
    return subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_largest_file_that_is_allowed_is_room_too(tmp_path):
    run = limited(
        tmp_path,
        RESERVE_BYTES + 400_000,
        "recorder = Recorder(path, 10.0, each=True, clock=iter(range(10**6)).__next__)\n"
        "sink = BackgroundSink('recording', recorder.process, recorder.close, block=True, notify=print)\n"
        "for i in range(60): sink(result(noise(i, (240, 320)), i))\n"
        "sink.close()",
    )
    assert "recording: disk full" in run.stdout, run.stderr
    assert 3 < len(read_all(open_source(str(tmp_path / "a.mp4")))) < 60


def test_what_could_not_be_written_is_no_recording(tmp_path):
    """FFmpeg does not tell: the file is looked at before it gets its name."""
    run = limited(
        tmp_path,
        100_000,
        "recorder = Recorder(path, 10.0, each=True, free_bytes=lambda _path: 10**12)\n"
        "sink = BackgroundSink('recording', recorder.process, recorder.close, block=True, notify=print)\n"
        "for i in range(60): sink(result(noise(i, (240, 320)), i))\n"
        "sink.close()",
    )
    assert "not playable and was removed" in run.stdout, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_room_is_that_of_the_disk(tmp_path):
    import shutil

    assert room_for(tmp_path / "a.mp4") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_a_codec_that_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(recorder.CODECS, ".mp4", "ZZZZ")
    recording = Recorder(tmp_path / "a.mp4", 10.0)
    with pytest.raises(MissingError, match=r"cannot be started(.|\n)*codec ZZZZ"):
        recording.process(result(picture(1, SIZE)))
    recording.close()
    assert list(tmp_path.iterdir()) == []


def test_rates_of_recordings():
    assert recording_fps(30.0, None) == 30.0
    assert recording_fps(None, None) == 25.0
    assert recording_fps(240.0, None) == 60.0
    assert recording_fps(30.0, 5.0) == 5.0


class Work:
    """Remembers; may be slow or fail."""

    def __init__(self, *, fails=False):
        self.seen, self.ended, self.fails = [], 0, fails
        self.go = threading.Event()

    def process(self, some):
        self.go.wait(60)
        if self.fails:
            raise OSError("the disk is gone")
        self.seen.append(some.number)

    def close(self):
        self.ended += 1


def test_slow_work_is_skipped_and_never_waited_for():
    work = Work()
    sink = BackgroundSink("slow", work.process, work.close, capacity=2)
    for i in range(100):
        sink(result(picture(), i))
    assert sink.skipped >= 97
    work.go.set()
    sink.close()
    assert len(work.seen) == 100 - sink.skipped
    assert work.ended == 1


def test_work_that_each_result_is_for_is_waited_for():
    work = Work()
    work.go.set()
    sink = BackgroundSink("each", work.process, work.close, capacity=1, block=True)
    for i in range(50):
        sink(result(picture(), i))
    sink.close()
    assert work.seen == list(range(50))
    assert sink.skipped == 0


def test_work_that_fails_is_told_once_and_left():
    said, work = [], Work(fails=True)
    work.go.set()
    sink = BackgroundSink("work", work.process, work.close, block=True, notify=said.append)
    for i in range(20):
        sink(result(picture(), i))
    sink.close()
    assert said == ["work: OSError: the disk is gone\n  inference continues without it"]
    assert work.ended == 1


def test_work_that_hangs_does_not_hold_up_the_end():
    said, work = [], Work()
    sink = BackgroundSink("work", work.process, work.close, notify=said.append, close_timeout_s=0.05)
    sink(result(picture()))
    sink.close()
    assert "did not finish within 0.05 s" in said[0]
    work.go.set()
