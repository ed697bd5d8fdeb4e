"""A build folder -> one HTML file that opens offline: nothing is loaded from elsewhere, no script, figures inline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from edge.report import attribution_plot, certificate_plot, certificate_text, gallery, plots, range_tables, summary_text
from edge.report.inputs import Evidence, gather
from edge.report.svg import draw
from edge.stability.float_formats import FP16
from edge.tasks.report_parts import Drawing, Span, Value
from engines.build_folder.folder import BuildFolder

TEMPLATE = "template.html"
LISTED_FALLBACKS = 20
LISTED_XNORMS = 12


def render(build: BuildFolder, advance: Callable[[float], None]) -> str:
    """The report of a finished build as HTML; equal artifacts give equal text.

    Args:
        folder: a build folder with manifest, export record, drift, answers, for "int8" the calibration table, and for "fp16"
            and "int8" the certificate of every XNorm.
        advance: told the share done, 0 to 1.

    Raises InputError when an artifact is missing, malformed, altered or of another build.
    """
    evidence = gather(build)
    advance(0.3)
    context = {**_verdict(evidence), **_precision(evidence), **_xnorm(evidence), **_layers(evidence), **_origin(evidence)}
    advance(0.6)
    context.update(_ranges(evidence))
    advance(0.9)
    text = _environment().get_template(TEMPLATE).render(context)
    advance(1.0)
    return text


def _environment() -> jinja2.Environment:
    """Names and reasons come from files: everything is escaped unless a figure of ours."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = summary_text.plain
    environment.globals["draw"] = _drawn
    tests: dict[str, Any] = environment.tests
    tests |= {kind.__name__.lower(): partial(_is_a, kind) for kind in (Value, Span)}
    return environment


def _is_a(kind: type, part: object) -> bool:
    return isinstance(part, kind)


def _drawn(drawing: Drawing) -> Markup:
    return draw(drawing.name, drawing.size, drawing.alt, drawing.paint)


def _verdict(evidence: Evidence) -> dict[str, Any]:
    """The verdict, and what the task says of the answers."""
    manifest, drift, pictures = evidence.manifest, evidence.drift, evidence.pictures
    kept = None if pictures is None else pictures.indices
    told = evidence.task.report(drift, evidence.sides, kept, summary_text.judged(manifest, drift))
    return {
        "manifest": manifest,
        "drift": drift,
        "random_weights": manifest.random_weights or drift.random_weights,
        "answers": told,
        "figures": (*told.figures, *summary_text.common_figures(evidence, told.truth)),
        "interval_plot": told.budgeted and plots.interval(told.budgeted, drift.budget_points, drift.verdict),
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
    """Whether 16 bits hold every XNorm; without a certificate there is nothing to show."""
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
    """Where the error comes from; nothing without `attribution.json`."""
    found = evidence.attribution
    if found is None or not found.layers:
        return {"attribution": None}
    return {
        "attribution": found,
        "layers_plot": attribution_plot.layer_errors(found),
        "worst_layers": attribution_plot.worst_layers(found),
        "cap_db": attribution_plot.CAP_DB,
    }


def _ranges(evidence: Evidence) -> dict[str, Any]:
    table, order = evidence.table, evidence.order
    if table is None or not order:
        return {"table": table, "ranges_plot": None, "blocks": []}
    axis = range_tables.Axis.of(table)
    return {
        "table": table,
        "proven": sum(scale.source == "proof" for scale in table.tensors.values()),
        "ranges_plot": range_tables.overview(table, order),
        "axis": axis,
        "blocks": [
            (title, range_tables.block_rows(title, tensors, table, axis)) for title, tensors in range_tables.groups(order)
        ],
    }


def _origin(evidence: Evidence) -> dict[str, Any]:
    return {
        "export": evidence.export,
        "provenance": summary_text.provenance(evidence),
        "build": summary_text.build_facts(evidence),
    }
