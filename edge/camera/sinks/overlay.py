"""Draws the answer onto a picture, for recordings."""

from __future__ import annotations

import unicodedata

from edge.camera.frame import Result
from edge.camera.opencv import load_cv2, to_bgr
from edge.images.preprocess import Uint8

_SMALLEST = 64  # pixels: a picture smaller than this has no room for letters


def drawn(result: Result) -> Uint8:
    """A copy of the frame as BGR, with what the task draws, its lines with their bars, and rate and age below."""
    cv2 = load_cv2()
    picture = to_bgr(result.frame.pixels)
    height, width = picture.shape[:2]
    if min(height, width) < _SMALLEST:
        return picture
    scale = max(0.35, min(height, width) / 800.0)
    line, thickness = max(12, round(34 * scale)), max(1, round(2 * scale))
    latency = result.latency
    result.answer.draw(picture)
    lines = [(f"{line.name} {line.short}".rstrip(), line.share or 0.0) for line in result.answer.lines()]
    lines.append((f"{result.fps:.0f}/s, age {latency.age_ms:.0f} ms", 0.0))
    for row, (text, share) in enumerate(lines):
        top = row * line
        if top + line > height:
            break
        picture[top : top + line] = picture[top : top + line] // 3
        picture[top + 1 : top + line - 1, : round(share * width)] += 60  # at most 85 before: no overflow
        at = (line // 4, top + round(0.75 * line))
        cv2.putText(picture, ascii_only(text), at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return picture


def ascii_only(text: str) -> str:
    """Text in the characters of OpenCV's font: accents are dropped, other characters become `?`."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode("ascii")
