"""A build folder -> one HTML file that opens offline: nothing is loaded from elsewhere, no script, figures inline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from edge.report import (
    attribution_plot,
    certificate_plot,
    certificate_text,
    gallery,
    metrics_table,
    per_class,
    plots,
    range_tables,
    summary_text,
)
from edge.report.inputs import Evidence, gather
from edge.stability.float_formats import FP16
from edge.tasks.classification.logits import answers

TEMPLATE = "template.html"
LISTED_FALLBACKS = 20
LISTED_XNORMS = 12


def render(folder: Path, advance: Callable[[float], None]) -> str:
    """The report of a finished build as HTML; equal artifacts give equal text.

    Args:
        folder: a build folder with manifest, export record, drift, logits, for "int8" the calibration table, and for "fp16" and
            "int8" the certificate of every XNorm.
        advance: told the share done, 0 to 1.

    Raises InputError when an artifact is missing, malformed, altered or of another build.
    """
    evidence = gather(folder)
    advance(0.3)
    context = {**_verdict(evidence), **_answers(evidence), **_classes(evidence), **_confidence(evidence)}
    context |= {**_precision(evidence), **_xnorm(evidence), **_layers(evidence), **_origin(evidence)}
    advance(0.6)
    context.update(_ranges(evidence))
    advance(0.9)
    text = _environment().get_template(TEMPLATE).render(context)
    advance(1.0)
    return text


def _environment() -> jinja2.Environment:
    """Labels, names and reasons come from files: everything is escaped unless a figure of ours."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = summary_text.plain
    return environment


def _verdict(evidence: Evidence) -> dict[str, Any]:
    manifest, drift = evidence.manifest, evidence.drift
    return {
        "manifest": manifest,
        "drift": drift,
        "random_weights": manifest.random_weights or drift.random_weights,
        "headline": summary_text.headline(manifest, drift),
        "advice": summary_text.advice(drift),
        "figures": summary_text.key_figures(evidence),
        "numbers": metrics_table.number_rows(drift),
        "interval": drift.changed_interval if drift.interval is None else drift.interval,
        "interval_plot": None if drift.judged_by == "numbers" else plots.interval(drift),
    }


def _answers(evidence: Evidence) -> dict[str, Any]:
    """Which answers changed: how sure the reference was, what was taken for what, and the images themselves."""
    drift, labels, logits = evidence.drift, evidence.manifest.labels, evidence.logits
    change = per_class.confusion_change(drift)
    changed = np.asarray(answers(logits.reference) != answers(logits.engine))
    margin = plots.margins(logits)
    return {
        "labelled": drift.labelled is not None,
        "confusion_plot": plots.confusion_change(change, labels) if change is not None and change.any() else None,
        "classes_shown": min(len(labels), plots.CONFUSION_CLASSES),
        "changed": int(changed.sum()),
        "near_ties": summary_text.near_ties(margin, changed),
        "margin_plot": plots.margin_histogram(margin, changed) if changed.any() else None,
        "cards": gallery.cards(evidence),
        "flipped": gallery.total_flips(evidence),
        "pictures_kept": evidence.flips is not None,
    }


def _classes(evidence: Evidence) -> dict[str, Any]:
    """What happened to each class; drawn weights have none that means anything."""
    drawn = evidence.manifest.random_weights or evidence.drift.random_weights
    rows = () if drawn else per_class.class_rows(evidence.logits, evidence.manifest.labels)
    shown = per_class.listed(rows)
    return {
        "classes": shown,
        "classes_total": len(rows),
        "classes_plot": per_class.changes(shown) if shown else None,
        "few": plots.FEW,
    }


def _confidence(evidence: Evidence) -> dict[str, Any]:
    """How honest the confidence is on each side, where labels tell."""
    drift = evidence.drift
    before, after = drift.reliability_reference, drift.reliability_engine
    if drift.judged_by != "accuracy" or before is None or after is None:
        return {"reliability": None}
    plot, bins = plots.reliability(before, after), metrics_table.bin_rows(before, after)
    return {"reliability": {"before": before.ece, "after": after.ece, "plot": plot, "bins": bins}}


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
