"""Steps of a build with another function in the place of the one that does their work, for experiments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from edge.pipeline.steps import calibrate, engine, quantize, type_fp16

Work = Callable[..., None]
WORKS = {
    "calibrate": (calibrate, "calibrate_model"),
    "quantize": (quantize, "quantize_model"),
    "type_fp16": (type_fp16, "type_model"),
    "engine": (engine, "build_engine"),
}
"""Step -> module and name of the function that does its work."""


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """A name of a module is another thing in this block."""
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def in_place_of(step: str, work: Work) -> contextlib.AbstractContextManager[None]:
    """The work of a step is another in this block: work(honest work, *its arguments, advance=...)."""
    module, function = WORKS[step]
    honest = getattr(module, function)
    return replaced(module, function, lambda *arguments: work(honest, *arguments[:-1], advance=arguments[-1]))
