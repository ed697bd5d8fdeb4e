"""Render the report of a build folder: one HTML file that opens offline, without scripts, with inline figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jinja2

from edge.report import certificate_plot, certificate_text, gallery, plots, range_tables, summary_text
from edge.report.inputs import Evidence, gather
from edge.report.svg import draw
from edge.stability.float_formats import FP16
from edge.tasks.report_parts import Block, Span, Value
from engines.build_folder.folder import BuildFolder

LISTED_FALLBACKS = 20
LISTED_XNORMS = 12


def render(build: BuildFolder, advance: Callable[[float], None]) -> str:
    """Render the report of a finished build as HTML; equal artifacts give equal text.

    The build holds manifest, export record, drift and answers, for "int8" the calibration table, and for "fp16" and "int8" the
    XNorm certificate. `advance` is called with the share done, 0 to 1. Raises ArtifactError when an artifact is missing,
    malformed, altered or of another build.
    """
    evidence = gather(build)
    advance(0.3)
    context = {**_verdict(evidence), **_precision(evidence), **_xnorm(evidence), **_layers(evidence)}
    advance(0.6)
    context |= _ranges(evidence)
    context |= {"provenance": summary_text.provenance(evidence), "build": summary_text.build_facts(evidence)}
    advance(0.9)
    text = _environment().get_template("template.html").render(context, export=evidence.export)
    advance(1.0)
    return text


def _environment() -> jinja2.Environment:
    """Names and reasons come from files: everything is escaped except the figures made here."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = summary_text.plain
    environment.globals["draw"] = draw
    tests: dict[str, Any] = environment.tests
    for kind in (Value, Span, *get_args(Block)):
        tests[kind.__name__.lower()] = partial(_is_a, kind)
    return environment


def _is_a(kind: type, part: object) -> bool:
    return isinstance(part, kind)


def _verdict(evidence: Evidence) -> dict[str, Any]:
    """The verdict, and the task's part of the report."""
    manifest, drift, pictures = evidence.manifest, evidence.drift, evidence.pictures
    kept = None if pictures is None else pictures.indices
    answers = evidence.task.report(drift, evidence.sides, kept, summary_text.judged(manifest, drift))
    return {
        "manifest": manifest,
        "drift": drift,
        "random_weights": manifest.random_weights or drift.random_weights,
        "answers": answers,
        "figures": (*answers.figures, *summary_text.common_figures(evidence, answers.truth)),
        "interval_plot": answers.budgeted and plots.interval(answers.budgeted, drift.budget_points, drift.verdict),
        "pictures": gallery.shown_pictures(pictures),
    }


def _precision(evidence: Evidence) -> dict[str, Any]:
    receipt = evidence.manifest.receipt
    return {
        "receipt": receipt,
        "precision_plot": plots.precisions(receipt),
        "fallbacks": receipt.fallbacks[:LISTED_FALLBACKS],
        "more_fallbacks": receipt.fallbacks[LISTED_FALLBACKS:],
    }


def _xnorm(evidence: Evidence) -> dict[str, Any]:
    """Whether every XNorm is stable in 16 bits; only None without a certificate."""
    certificate = evidence.certificate
    if certificate is None:
        return {"certificate": None}
    rows, sites = certificate_text.site_rows(certificate), certificate.sites
    return {
        "certificate": certificate,
        "fp16": FP16,
        "xnorm_headline": certificate_text.headline(certificate),
        "xnorm_plot": certificate_plot.sums(certificate),
        "xnorm_panels": len(certificate_plot.panels(certificate)),
        "xnorm_bounded": sum(site.bound_sum_sq is not None for site in sites),
        "xnorm_folded": sum(bool(site.fold) for site in sites),
        "xnorm_int8": certificate_text.int8_loss(sites) if "int8" in certificate.precisions else "",
        "xnorm_rows": rows[:LISTED_XNORMS],
        "more_xnorm_rows": rows[LISTED_XNORMS:],
    }


def _layers(evidence: Evidence) -> dict[str, Any]:
    """Which layers the error comes from; only None without `attribution.json`."""
    attribution = evidence.attribution
    if attribution is None or not attribution.layers:
        return {"attribution": None}
    return {
        "attribution": attribution,
        "layers_plot": plots.layer_errors(attribution),
        "worst_layers": plots.worst_layers(attribution),
        "cap_db": plots.CAP_DB,
    }


def _ranges(evidence: Evidence) -> dict[str, Any]:
    table, order = evidence.table, evidence.order
    if table is None or not order:
        return {"table": table, "ranges_plot": None, "blocks": []}
    axis, groups = range_tables.Axis.of(table), range_tables.groups(order)
    return {
        "table": table,
        "proven": sum(scale.source == "proof" for scale in table.tensors.values()),
        "ranges_plot": range_tables.overview(table, order),
        "axis": axis,
        "blocks": [(title, range_tables.block_rows(title, tensors, table, axis)) for title, tensors in groups],
    }
