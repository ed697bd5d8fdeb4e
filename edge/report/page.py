"""Render the report of a build folder: one HTML file that opens offline, without scripts, with inline figures.

The template calls the functions of this room for the figures and sentences of each section.
"""

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, get_args

import jinja2

from calib.printable import printable
from edge.report import (
    certificate_plot,
    certificate_text,
    gallery,
    network_drawing,
    network_words,
    plots,
    range_tables,
    step_plot,
)
from edge.report.inputs import gather
from edge.report.svg import draw
from edge.stability.float_formats import FP16
from edge.stability.kind_summaries import summarize_kinds
from edge.tasks.report_parts import Block, Value
from engines.build_folder import file_names
from engines.build_folder.folder import BuildFolder


def render(build: BuildFolder, advance: Callable[[float], None]) -> str:
    """Render the report of a finished build as HTML; equal artifacts give equal text.

    The build holds manifest, export record, drift and answers, for "int8" the calibration table, and for "fp16" and "int8" the
    certificates. `advance` is called with the share done, 0 to 1. Raises ArtifactError when an artifact is missing,
    malformed, altered or of another build.
    """
    inputs = gather(build)
    advance(0.3)
    manifest, drift, pictures = inputs.manifest, inputs.drift, inputs.pictures
    judged = f"{manifest.precision.upper()} {'engine' if drift.engine.sha256 == manifest.engine.sha256 else 'graph'}"
    answers = inputs.task.report(drift, inputs.sides, None if pictures is None else pictures.indices, judged)
    advance(0.5)
    context = {**vars(inputs), "answers": answers, "shown_pictures": gallery.shown_pictures(pictures)}
    text = _environment().get_template("report/template.html").render(context)
    advance(1.0)
    return text


def _environment() -> jinja2.Environment:
    """Names and reasons come from files: everything is escaped except the figures made here, hidden characters in both."""
    loader = jinja2.FileSystemLoader(Path(__file__).parents[1])  # `edge`, whose tasks have templates too
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=lambda value: type(value)(printable(value)) if isinstance(value, str) else value,  # Markup stays Markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    modules = (certificate_plot, certificate_text, file_names, network_drawing, network_words, plots, range_tables, step_plot)
    environment.globals |= {module.__name__.rpartition(".")[2]: module for module in modules}
    environment.globals |= {"draw": draw, "fp16": FP16, "kinds": summarize_kinds}
    environment.filters["file_name"] = lambda path: PurePath(path).name
    tests: dict[str, Any] = environment.tests
    for kind in (Value, *get_args(Block)):
        tests[kind.__name__.lower()] = lambda part, kind=kind: isinstance(part, kind)
    return environment
