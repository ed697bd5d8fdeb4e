"""Values that `fuzz.py` gives to options and writes into files: none of them is sensible everywhere."""

from typing import Any

MARKER = "code-ran"
"""What a payload in a pickle writes into the working folder."""
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202eexe [/b] ![x](http://x/) <img src=x>"
NUMBERS = (
    *("-1", "0", "1", "2", "3.5", "nan", "inf", "-inf", "1e400", "1" + 30 * "0", "9" * 5000),
    *("x", "", "0x10", "\uff11", "1_0", "1,2", "1,1,1", "32"),
)
TEXTS = (
    *("", " ", "x" * 5000, HOSTILE, "\udcff", "../..", "--", "-", "%s%n", "*", "[", "a,b", "auto", "\u6728", "\n"),
    f"'; touch {MARKER}",
)
PATHS = (
    *("", ".", "..", "missing", "missing/deep", "fifo", "loop", "photos", "list.csv", "key.pem", "tiny.safetensors", "x" * 300),
    *("out", "out/manifest.json", "net.onnx", "images.npy", HOSTILE, "\udcff"),
)
"""Relative only: commands write to some of them."""
SOURCES = (
    *("", "99", "-1", "csi://x", "csi://99", "http://", "http://[", "rtsp://a:b@127.0.0.1:1/x", "photos", "photos/ant", "fifo"),
    *("synthetic://x", "synthetic://?size=0x0", "synthetic://?size=99999x1", "synthetic://?fps=nan", "synthetic://?frames=-1"),
    *("synthetic://?empty=1&frames=300", "synthetic://?resize=1&frames=9", "synthetic://?lose=1", "synthetic://?a=%00"),
    *("list.csv", "/dev/zero", "file:///etc/passwd", "out/engine.onnx", "/dev/video0?size=1x1&size=2x2", HOSTILE, "\udcff"),
)
_JSON_NUMBERS = (None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**400, -(2**63))
_JSON_TEXTS = ("", HOSTILE, "\ud800", "x" * 100_000, "../../etc/passwd", "/dev/zero", "a\0b", "nan")
JSON_VALUES: tuple[Any, ...] = (*_JSON_NUMBERS, *_JSON_TEXTS, [], {}, [[]], [None] * 1000, {"": {}})
