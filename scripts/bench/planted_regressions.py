#!/usr/bin/env python3
"""Faults planted in real builds: does the gate catch each, and does the attribution name what is wrong?

    scripts/install.sh build rtx
    python scripts/bench/planted_regressions.py                      the table
    python scripts/bench/planted_regressions.py --only "BGR for RGB"   one fault

One honest INT8 build of the shipped checkpoint and a baseline of it; then the faults of `planted_faults.py`, each a build of
its own, go through what `ufovit gate` runs, and through the attribution. Refusals of the build itself are shown as well.
FAULTS says what has to come of each; the exit code is 1 when anything comes out otherwise, a fault that passes above all.
On two free cores a fault takes one to two minutes, all of them about 25; no GPU. `--target cpu` leaves the overflow out.

Judged on the shipped grey images. BGR for RGB changes nothing there, as their three means are equal; it is planted on tinted
copies of them, which have a baseline of their own. The typed graph of target `rtx` runs on the CPU, its roundings emulated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import planted_faults as faults
from planted_faults import Bench, Planted
from replaced_steps import replaced

from calib.errors import UfovitError
from edge.attribution import float_fallback
from edge.attribution.attribute import attribute_graphs
from edge.attribution.attribution_record import Attribution
from edge.attribution.build_graphs import load_graphs
from edge.gate.compare_builds import EXIT_CODES, gate
from edge.gate.update import update_baseline
from edge.images.preprocess import read_preprocess
from edge.model.metadata import read_graph_info
from edge.pipeline.build_inputs import resolve_inputs
from edge.pipeline.build_request import BuildRequest
from engines.build_folder.file_names import MODEL
from engines.build_folder.folder import BuildFolder
from engines.targets import TARGETS

SEEN = 128  # images for the attribution, as `ufovit drift` takes; what a layer costs names nothing, and is measured on one
TYPED_ONLY = "overflow"


@dataclass(frozen=True)
class Fault:
    """How a fault is planted, and what has to come of it.

    Attributes:
        plant: makes the faulty build.
        gates: exit codes that the gate may have; none where the build itself has to refuse, so that there is nothing to judge.
        kinds: of the attribution's culprits; None where there are no graphs to look at.
        says: what the refusal, or the first failing row, has to say.
    """

    plant: Callable[[Bench, str], Planted]
    gates: tuple[int, ...]
    kinds: tuple[str, ...] | None
    says: str


CHEAP = "blocks.1.norm1/LayerNormalization_output"
BIG = ("scale_too_large",)
FAULTS = {
    "nothing": Fault(lambda bench, _name: Planted(bench.honest, "ran through", bench.baseline), (0,), (), "within"),
    "scale x 2, costly": Fault(partial(faults.larger_scale, factor=2), (1,), BIG, "scale_largest"),
    "scale x 2, cheap": Fault(partial(faults.larger_scale, factor=2, tensor=CHEAP), (1,), BIG, "scale_largest"),
    "scale x 4, costly": Fault(partial(faults.larger_scale, factor=4), (1,), BIG, "sqnr"),
    "zeroed channel": Fault(faults.zeroed_channel, (1,), ("zeroed_channel",), "sqnr"),
    "other mean in the manifest": Fault(faults.other_mean_in_manifest, (), ("input",), "preprocesses images in another way"),
    "other mean in the checkpoint": Fault(faults.other_mean_in_checkpoint, (2,), (), "another checkpoint, other preprocessing"),
    "BGR for RGB": Fault(faults.bgr, (1,), ("input",), "sqnr"),
    "labels shifted": Fault(faults.shifted_labels, (2,), (), "other data"),
    "labels shifted, digest forged": Fault(partial(faults.shifted_labels, forged=True), (2,), (), "labelled otherwise"),
    "8 calibration images": Fault(faults.eight_images, (), None, "too few calibration images"),
    "4 calibration images, 8 times each": Fault(partial(faults.few_scenes, scenes=4), (1,), ("calibration",), "scale_mean"),
    "1 calibration image, 32 times": Fault(partial(faults.few_scenes, scenes=1), (1,), ("calibration",), "sqnr"),
    "overflow": Fault(faults.overflow_before_typing, (), None, "does not compute what the FP32 graph computes"),
    "overflow, behind the check": Fault(faults.overflow_after_typing, (1,), ("overflow", "weights"), "sqnr"),
    "last week's weights": Fault(faults.last_weeks_weights, (1,), ("other_weights",), "sqnr"),
}
"""Behind an overflow the attribution names the weights too: W_Q is not the folded graph's."""


@dataclass(frozen=True)
class Found:
    """What came of a fault; texts for a person."""

    code: int | None
    gate: str
    kinds: tuple[str, ...] | None
    sentence: str
    seconds: float

    def missed(self, fault: Fault) -> str:
        """How it differs from what is expected, "" where it does not."""
        if self.code not in (fault.gates or (None,)):
            return f"MISSED: gate {self.code}, expected {' or '.join(map(str, fault.gates)) or 'a refusal to build'}"
        if self.kinds is not None and set(self.kinds) != set(fault.kinds or ()):
            return f"MISNAMED: expected {', '.join(fault.kinds or ()) or 'nothing'}"
        return "" if fault.says in self.gate else f"OTHERWISE: expected {fault.says!r}"


def find(fault: Fault, bench: Bench, name: str) -> Found:
    """Plant a fault, and ask the gate and the attribution."""
    started = time.monotonic()
    planted = fault.plant(bench, name)
    code, text = (None, planted.said) if planted.said.startswith("refused") else gated(planted)
    kinds, sentence = None, "-"
    if fault.kinds is not None and planted.folder is not None:
        seen = attributed(planted, bench)
        kinds, sentence = tuple(dict.fromkeys(culprit.kind for culprit in seen.culprits)), seen.sentence
    return Found(code, text, kinds, sentence, time.monotonic() - started)


def gated(planted: Planted) -> tuple[int, str]:
    """Exit code of the gate, and the rows that failed or the refusal."""
    assert planted.folder is not None
    try:
        report = gate(BuildFolder(planted.folder), planted.baseline)
    except UfovitError as error:
        return error.exit_code, f"refused: {str(error).splitlines()[0]}"
    if report.verdict == "pass":
        (sqnr,) = (f"{row.detail} of {row.tolerance:.1f}" for row in report.rows if row.quantity == "sqnr")
        return 0, f"{report.reason}; sqnr {sqnr}"
    rows = [f"{row.quantity} ({row.detail.split(',')[0]})" for row in report.rows if row.result == report.verdict]
    return EXIT_CODES[report.verdict], f"{report.verdict}: {', '.join(rows)}"


def attributed(planted: Planted, bench: Bench) -> Attribution:
    """As `ufovit drift --attribute` does it, on fewer images; the judged side gets BGR where the fault says so."""
    assert planted.folder is not None
    folder = BuildFolder(planted.folder)
    graphs, stated = load_graphs(folder), read_preprocess(folder.manifest)
    info = read_graph_info(graphs.reference.model, planted.folder / MODEL)
    images = (planted.images or resolve_inputs(bench.request).eval_images).take(SEEN)
    (mine,), (judged,) = (images.batches(p, SEEN) for p in (info.preprocess if info else stated, stated))
    if planted.swapped:
        judged = np.ascontiguousarray(judged[:, ::-1])
    with replaced(float_fallback, "ISOLATED_IMAGES", 1):
        return attribute_graphs(graphs, mine, judged)


def table(bench: Bench, chosen: dict[str, Fault], markdown: bool) -> int:
    """Print a row per fault; how many came out otherwise than expected."""
    head = ("fault", "gate", "it says", "culprits", "attribution", "s", "expected")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}" if markdown else "", end="\n" if markdown else "")
    wrong = 0
    for name, fault in chosen.items():
        found = find(fault, bench, name)
        missed = found.missed(fault)
        wrong += bool(missed)
        code = "build refused" if found.code is None else str(found.code)
        kinds = "-" if found.kinds is None else ", ".join(found.kinds) or "none"
        cells = (name, code, found.gate, kinds, found.sentence, f"{found.seconds:.0f}", missed or "yes")
        if markdown:
            print(f"| {' | '.join(cells)} |", flush=True)
        else:
            print("\n".join(f"{label:>12}  {cell}" for label, cell in zip(head, cells, strict=True)) + "\n", flush=True)
    return wrong


def prepare(request: BuildRequest, out: Path) -> Bench:
    """The honest build and its baseline, made unless they are there. Raises UfovitError where the build does not pass."""
    bench = Bench(request, out)
    said = faults.build(bench.request)
    if not bench.honest.is_dir() or said.startswith("refused"):
        raise SystemExit(f"the honest build {said}")
    update_baseline(BuildFolder(bench.honest), bench.baseline)
    return bench


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults planted in real builds: caught by the gate, named by the attribution?")
    parser.add_argument("--model", default="ufovit_t")
    parser.add_argument("--images", type=int, default=2000, help="test images that judge")
    parser.add_argument("--target", default="rtx" if find_spec("tensorrt_rtx") else "cpu")
    parser.add_argument("--out", type=Path, default=Path("build/planted"), help="folder for the builds, about 1 GB")
    parser.add_argument("--only", choices=FAULTS, action="append", help="one fault; may be given several times")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    args = parser.parse_args()
    target = TARGETS[args.target]
    request = BuildRequest(
        args.model, "int8", target, args.out / "honest", eval_images=args.images, max_drop_points=faults.MAX_DROP
    )
    bench = prepare(request, args.out)
    chosen = {name: FAULTS[name] for name in args.only or FAULTS}
    if target.float_type != "fp16":
        for name in [name for name in chosen if name.startswith(TYPED_ONLY)]:
            del chosen[name]
            print(f"{name}: not planted, target {target.name} computes nothing in FP16")
    wrong = table(bench, chosen, args.markdown)
    print(f"\n{len(chosen) - wrong} of {len(chosen)} as expected, {args.images} images, target {target.name}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
