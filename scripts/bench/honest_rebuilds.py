#!/usr/bin/env python3
"""Measure false alarms of the gate on honest rebuilds, and the used share of each tolerance.

    scripts/install.sh build
    python scripts/bench/honest_rebuilds.py --rebuilds 200 --attribute 10

The shipped checkpoint is built once in INT8 for the CPU, with a baseline of the default tolerances. Each rebuild calibrates on
its own random subset of the 1,024 held-out images, quantizes, and is evaluated. Export, certificate and folding are those of
the first build, although other images may change a margin by some bits. Two series of gates:

    calibration    every build is evaluated on the same test images
    test images    each rebuild, and the baseline with it, is evaluated on its own random sample of all 10,000

`--attribute` also attributes the first few rebuilds; which must find nothing. Results are appended to results.jsonl in the
folder `--out`, from which an interrupted run resumes. The exit code is 1 if any gate did not pass, or anything was found. A
rebuild takes 15 s of CPU time; on two otherwise busy cores it took a minute.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from planted_faults import MAX_DROP, Bench, Planted, build, calibrated_on, copied
from planted_regressions import attributed, prepare
from replaced_steps import in_place_of, replaced

from calib.artifact import write_artifact
from calib.files import sha256_bytes, sha256_file
from edge.assets import CALIBRATION_IMAGES, SHIPPED_MODEL
from edge.drift.stored_reference import StoredAnswers, read_stored
from edge.gate.baseline import read_baseline
from edge.gate.build_figures import read_build
from edge.gate.compare_builds import GateReport, gate
from edge.gate.update import make_baseline
from edge.images.labelled_images import ImageSet, open_images
from edge.pipeline import build as pipeline
from edge.pipeline.build_inputs import judging_images, resolve_inputs
from edge.pipeline.build_request import BuildRequest
from edge.pipeline.steps.drift import Question, drift_step
from edge.runtime.ort_runner import BATCH, OrtRunner, run_all
from edge.tasks.budget import budget_for
from edge.tasks.classification.logits import Logits, parse_logits, write_logits
from edge.tasks.registry import task_of
from edge.tasks.task_names import CLASSIFICATION
from engines.build_folder.file_names import ANSWERS, CALIBRATION, DRIFT, MODEL, PICTURES
from engines.build_folder.folder import BuildFolder
from engines.build_folder.step_record import StepRecord, read_record, write_record
from engines.targets import TARGETS

SERIES = ("calibration", "test images")
FIRST = "honest"


def chosen(images: ImageSet, rows: NDArray[Any]) -> ImageSet:
    """A subset of images, by position."""
    pixels, digest = images.pixels, sha256_bytes(images.sha256.encode() + rows.tobytes())
    names = tuple(images.names[i] for i in rows)
    return ImageSet(images.source, names, images.labels[rows], digest, lambda i: pixels(int(rows[i])))


def draw(seed: int, rebuild: int, what: str, of: int, count: int) -> NDArray[Any]:
    """Sample positions (count,) out of `of`, always the same ones for a rebuild."""
    rng = np.random.default_rng([seed, rebuild, SERIES.index(what)])
    return np.sort(rng.choice(of, min(count, of), replace=False)).astype(np.int64)


@dataclass(frozen=True)
class First:
    """The first build, the images that are sampled, and its logits of all test images."""

    bench: Bench
    calibration: ImageSet
    test: ImageSet
    answers: Logits
    seed: int


def first_build(request: BuildRequest, out: Path, seed: int, calibration: Path) -> First:
    """Build it, or reuse that of an earlier run. Stores its logits of all test images next to it."""
    bench = prepare(request, out)
    manifest, preprocess = BuildFolder(bench.honest).manifest, resolve_inputs(request).network.preprocess
    test = judging_images(request.data, task_of(manifest))
    path = out / f"answers-{manifest.engine.sha256[:16]}.npz"
    if not path.is_file():
        sides = (OrtRunner(bench.honest / file) for file in (MODEL, manifest.engine.file))
        (reference,), (engine,) = (run_all(side, test.batches(preprocess, BATCH)) for side in sides)
        write_logits(path, Logits(reference, engine, test.labels))
    return First(bench, open_images(calibration, manifest.labels), test, parse_logits(path.read_bytes(), path), seed)


def rebuild(first: First, number: int, images: int) -> Path:
    """Rebuild with other calibration images; the reference logits are those of the first build."""
    folder = copied(first.bench, f"rebuild-{number}", CALIBRATION)
    with_sample = calibrated_on(
        chosen(first.calibration, draw(first.seed, number, "calibration", len(first.calibration), images))
    )
    stored = read_stored(first.bench.honest)

    def with_stored(honest: Callable[..., Any], where: BuildFolder, question: Question, *, here: bool) -> Any:
        return honest(where, replace(question, stored=stored), here=here)

    with (
        in_place_of("calibrate", with_sample),
        in_place_of("engine", with_sample),
        replaced(pipeline, "drift_step", partial(with_stored, drift_step)),
    ):
        outcome = build(replace(first.bench.request, out=folder))
    if outcome.startswith("refused"):
        raise SystemExit(f"rebuild {number} was {outcome}")
    return folder


def rejudge_on_others(first: First, folder: Path, number: int, images: int) -> Path:
    """Evaluate a rebuild on its own sample of test images; returns the first build's baseline on these."""
    rows = draw(first.seed, number, "test images", len(first.test), images)
    sample, logits = chosen(first.test, rows), first.answers
    reference, engine = logits.reference[rows], logits.engine[rows]
    sides, shared = Logits(reference, engine, sample.labels).sides, read_stored(first.bench.honest)
    answered = StoredAnswers(
        folder, shared.reference, sample.sha256, shared.preprocess_sha256, (reference,), sha256_bytes(reference.tobytes())
    )
    budget = budget_for(CLASSIFICATION, first.bench.request.max_drop_points, None, None)
    question = Question(sample, True, budget, answered)
    drift_step(BuildFolder(folder), question, here=True).run(folder, lambda _share: None)
    written = {file: sha256_file(folder / file) for file in (DRIFT, ANSWERS, PICTURES)}
    write_record(folder, {**read_record(folder), "drift": StepRecord("0" * 64, written)})
    whole = read_build(BuildFolder(first.bench.honest))
    measured = replace(whole.measured, answers=whole.task.record(whole.task.compare(sides), sides))
    identity = replace(whole.identity, data_sha256=sample.sha256, images=len(sample))
    baseline = folder.with_suffix(".json")
    write_artifact(baseline, make_baseline(replace(whole, identity=identity, measured=measured)))
    return baseline


def uses(report: GateReport) -> dict[str, float]:
    """Quantity -> used share of its tolerance; for a sampled quantity, by the upper limit of its interval, which decides."""
    shares: dict[str, float] = {}
    for row in report.rows:
        end = re.search(r"interval \[[^,]+, ([+-][\d.]+)\]", row.detail)
        lost = row.loss if end is None else float(end[1])
        if row.tolerance and lost is not None:
            shares[row.quantity] = lost / row.tolerance
    return shares


def results(
    first: First, args: argparse.Namespace, settings: dict[str, Any], known: set[int]
) -> Iterator[list[dict[str, Any]]]:
    """Run the missing rebuilds; yields the lines of each, one per series."""
    for number in range(args.rebuilds):
        if number in known:
            continue
        started = time.monotonic()
        folder = rebuild(first, number, args.calib_images)
        reports = [gate(BuildFolder(folder), first.bench.baseline)]
        planted = Planted(folder, "", first.bench.baseline)
        seconds = [time.monotonic() - started]
        attribution = attributed(planted, first.bench) if number < args.attribute else None
        started = time.monotonic()
        other = rejudge_on_others(first, folder, number, args.images)
        reports.append(gate(BuildFolder(folder), other))
        seconds.append(time.monotonic() - started)
        culprits = None if attribution is None else [culprit.found for culprit in attribution.culprits]
        lines = []
        for series, report, spent in zip(SERIES, reports, seconds, strict=True):
            line = {"settings": settings, "rebuild": number, "series": series, "verdict": report.verdict}
            lines.append({**line, "reason": report.reason, "uses": uses(report), "seconds": spent, "culprits": None})
        lines[0]["culprits"] = culprits
        yield lines
        shutil.rmtree(folder)
        other.unlink()


def summary(lines: list[dict[str, Any]]) -> bool:
    """Print a summary as Markdown; returns whether there was an alarm."""
    head = ("series", "rebuilds", "pass", "inconclusive", "fail", "largest use of a tolerance", "s each")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for series in SERIES:
        own = [line for line in lines if line["series"] == series]
        verdicts = Counter(line["verdict"] for line in own)
        quantities = sorted({quantity for line in own for quantity in line["uses"]})
        largest = {quantity: max(line["uses"].get(quantity, 0.0) for line in own) for quantity in quantities}
        used = ", ".join(f"{quantity} {share:.0%}" for quantity, share in largest.items())
        counts = " | ".join(str(verdicts[name]) for name in ("pass", "inconclusive", "fail"))
        print(f"| {series} | {len(own)} | {counts} | {used} | {np.mean([line['seconds'] for line in own] or [0]):.1f} |")
    attributions = [line["culprits"] for line in lines if line["culprits"] is not None]
    named = [culprit for culprits in attributions for culprit in culprits]
    print(f"\nAttribution: {len(named)} culprits in {len(attributions)} rebuilds.", *named, sep="\n")
    alarms = [line for line in lines if line["verdict"] != "pass"]
    for line in alarms:
        print(f"rebuild {line['rebuild']}, {line['series']}: {line['verdict']}: {line['reason']}")
    return bool(alarms or named)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure false alarms of the gate on honest rebuilds.")
    parser.add_argument("--rebuilds", type=int, default=200)
    parser.add_argument("--calib-images", type=int, default=128)
    parser.add_argument("--images", type=int, default=1000, help="number of test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attribute", type=int, default=0, metavar="N", help="attribute the first N rebuilds")
    parser.add_argument("--out", type=Path, default=Path("build/honest"))
    args = parser.parse_args()
    request = BuildRequest(
        SHIPPED_MODEL, "int8", TARGETS["cpu"], args.out / FIRST, calib_images=args.calib_images, eval_images=args.images,
        max_drop_points=MAX_DROP,
    )  # fmt: skip
    sys.exit(1 if run(request, args, CALIBRATION_IMAGES) else 0)


def run(request: BuildRequest, args: argparse.Namespace, calibration: Path) -> bool:
    """Run the missing rebuilds and print the summary; returns whether there was an alarm."""
    first = first_build(request, args.out, args.seed, calibration)
    seal = read_baseline(first.bench.baseline).seal
    settings = {"calib_images": args.calib_images, "images": args.images, "seed": args.seed, "baseline": seal}
    path = args.out / "results.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    lines = [line for line in old if line["settings"] == settings and line["rebuild"] < args.rebuilds]
    known = {line["rebuild"] for line in lines}
    print(f"{len(known)} of {args.rebuilds} rebuilds exist already", file=sys.stderr)
    with path.open("a") as stream:
        for new in results(first, args, settings, known):
            lines += new
            stream.write("".join(json.dumps(line) + "\n" for line in new))
            stream.flush()
            print(f"rebuild {new[0]['rebuild']}: {', '.join(line['verdict'] for line in new)}", file=sys.stderr)
    return summary(lines)


if __name__ == "__main__":
    main()
