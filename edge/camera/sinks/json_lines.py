"""`--json`: one JSON object per line for programs. `type` is "start" first, "result" for each answer, "summary" last.

start     model, precision, target, engine_sha256, verdict (of the build), runner, ran_on, source, random_weights, and
          fields of the task: labels of a classification
result    number, frame           results before this one; frames of the source before this one
          time                    ISO 8601, UTC, when the answer was complete
          width, height           of the picture, pixels
          ...                     the answer, as the task has it: of a classification
                                  top: [{index, label, probability}], most probable first
          latency_ms              {capture, preprocess, inference, postprocess, age}
          dropped, fps            so far; results per second over the last seconds
summary   ended, seconds, given, results, dropped, bad, not_finite, lost, reconnected, fps
          latency_ms              {part: {p50, p95, p99, max}}
          error                   a sentence, null if the source ended cleanly
          audit                   {compared, agreed, skipped, saved}, null without --audit
"""

import json
from dataclasses import asdict
from datetime import datetime, timezone
from typing import IO, Any

from edge.camera.frame import Result
from edge.camera.loop import Summary


def result_fields(result: Result, now: datetime) -> dict[str, Any]:
    """The fields of a result's line."""
    height, width = result.frame.pixels.shape[:2]
    return {
        "type": "result",
        "number": result.number,
        "frame": result.frame.number,
        "time": now.isoformat(timespec="milliseconds"),
        "width": width,
        "height": height,
        **result.answer.json_fields(),
        "latency_ms": {name.removesuffix("_ms"): round(value, 3) for name, value in asdict(result.latency).items()},
        "dropped": result.dropped,
        "fps": round(result.fps, 2),
    }


def summary_fields(summary: Summary, audit: dict[str, int] | None) -> dict[str, Any]:
    """The fields of the last line."""
    fields = {name: value for name, value in vars(summary).items() if name not in ("latency", "error")}
    latency = {
        part.removesuffix("_ms"): {name.removesuffix("_ms"): round(value, 3) for name, value in asdict(values).items()}
        for part, values in summary.latency.items()
    }
    error = None if summary.error is None else str(summary.error)
    rounded = {"seconds": round(summary.seconds, 3), "fps": round(summary.fps, 2)}
    return {"type": "summary", **fields, **rounded, "latency_ms": latency, "error": error, "audit": audit}


class JsonLines:
    """Writes each result to a stream. Raises BrokenPipeError when its reader is gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def process(self, result: Result) -> None:
        """Write one result."""
        self.write(result_fields(result, datetime.now(timezone.utc)))

    def write(self, fields: dict[str, Any]) -> None:
        """Write one line and flush."""
        self._stream.write(json.dumps(fields, allow_nan=False) + "\n")
        self._stream.flush()
