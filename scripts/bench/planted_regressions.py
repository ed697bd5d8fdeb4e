#!/usr/bin/env python3
"""Check that the gate catches each planted fault and that the attribution names its cause.

    scripts/install.sh build rtx
    python scripts/bench/planted_regressions.py                      the table
    python scripts/bench/planted_regressions.py --only "BGR for RGB"   one fault

Starts from one honest INT8 build of the shipped checkpoint and its baseline; then runs the gate of `ufovit gate` and the
attribution on a build of each fault in `planted_faults.py`. Errors of the build itself are shown as well. FAULTS lists the
expected outcomes; the exit code is 1 if any differs, above all if a fault passes. On two free cores a fault takes one to two
minutes, all of them about 25; no GPU. `--target cpu` skips the overflow.

Evaluated on the shipped greyscale images, for which BGR for RGB changes nothing because their three means are equal; it is
planted on tinted copies with their own baseline. The typed graph of target `rtx` runs on the CPU with emulated FP16.
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

ATTRIBUTION_IMAGES = 128  # as in `ufovit drift`; the cost of a layer names no culprit, and is measured on one image
TYPED_ONLY = "overflow"


@dataclass(frozen=True)
class Fault:
    """How a fault is planted, and the expected outcome.

    Attributes:
        plant: creates the faulty build.
        gates: allowed exit codes of the gate; none if the build itself must fail, so that there is nothing to gate.
        kinds: expected kinds of the attribution's culprits; None without graphs to compare.
        says: words that the error, or the first failing row, must contain.
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
    "overflow": Fault(faults.overflow_before_typing, (), None, "outputs differ too much from the FP32 graph"),
    "overflow, after the check": Fault(faults.overflow_after_typing, (1,), ("overflow", "weights"), "sqnr"),
    "last week's weights": Fault(faults.last_weeks_weights, (1,), ("other_weights",), "sqnr"),
}
"""For an overflow the attribution names the weights too: W_Q differs from the folded graph's."""


@dataclass(frozen=True)
class Found:
    """The outcome of a fault, with texts for the table."""

    code: int | None
    gate: str
    kinds: tuple[str, ...] | None
    sentence: str
    seconds: float

    def missed(self, fault: Fault) -> str:
        """How it differs from the expected outcome, "" if it does not."""
        if self.code not in (fault.gates or (None,)):
            return f"MISSED: gate {self.code}, expected {' or '.join(map(str, fault.gates)) or 'a failed build'}"
        if self.kinds is not None and set(self.kinds) != set(fault.kinds or ()):
            return f"MISNAMED: expected {', '.join(fault.kinds or ()) or 'nothing'}"
        return "" if fault.says in self.gate else f"DIFFERENT: expected {fault.says!r}"


def find(fault: Fault, bench: Bench, name: str) -> Found:
    """Plant a fault and run the gate and the attribution."""
    started = time.monotonic()
    planted = fault.plant(bench, name)
    code, text = (None, planted.outcome) if planted.outcome.startswith("refused") else gated(planted)
    kinds, sentence = None, "-"
    if fault.kinds is not None and planted.folder is not None:
        attribution = attributed(planted, bench)
        kinds = tuple(dict.fromkeys(culprit.kind for culprit in attribution.culprits))
        sentence = attribution.sentence
    return Found(code, text, kinds, sentence, time.monotonic() - started)


def gated(planted: Planted) -> tuple[int, str]:
    """Run the gate; returns its exit code, and the failed rows or the error."""
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
    """Attribute like `ufovit drift --attribute`, on fewer images; the evaluated side gets BGR if the fault swaps channels."""
    assert planted.folder is not None
    folder = BuildFolder(planted.folder, building=True)  # a build that was refused is not finished
    graphs, stated = load_graphs(folder), read_preprocess(folder.manifest)
    info = read_graph_info(graphs.reference.model, planted.folder / MODEL)
    images = (planted.images or resolve_inputs(bench.request).eval_images).take(ATTRIBUTION_IMAGES)
    (mine,), (judged,) = (images.batches(p, ATTRIBUTION_IMAGES) for p in (info.preprocess if info else stated, stated))
    if planted.swapped:
        judged = np.ascontiguousarray(judged[:, ::-1])
    with replaced(float_fallback, "ISOLATED_IMAGES", 1):
        return attribute_graphs(graphs, mine, judged)


def table(bench: Bench, chosen: dict[str, Fault], markdown: bool) -> int:
    """Print a row per fault; returns the number of unexpected outcomes."""
    head = ("fault", "gate", "message", "culprits", "attribution", "s", "expected")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}" if markdown else "", end="\n" if markdown else "")
    wrong = 0
    for name, fault in chosen.items():
        outcome = find(fault, bench, name)
        missed = outcome.missed(fault)
        wrong += bool(missed)
        code = "build refused" if outcome.code is None else str(outcome.code)
        kinds = "-" if outcome.kinds is None else ", ".join(outcome.kinds) or "none"
        cells = (name, code, outcome.gate, kinds, outcome.sentence, f"{outcome.seconds:.0f}", missed or "yes")
        if markdown:
            print(f"| {' | '.join(cells)} |", flush=True)
        else:
            print("\n".join(f"{label:>12}  {cell}" for label, cell in zip(head, cells, strict=True)) + "\n", flush=True)
    return wrong


def prepare(request: BuildRequest, out: Path) -> Bench:
    """The honest build and its baseline, created if missing. Exits if the build fails."""
    bench = Bench(request, out)
    outcome = faults.build(bench.request)
    if not bench.honest.is_dir() or outcome.startswith("refused"):
        raise SystemExit(f"the honest build: {outcome}")
    update_baseline(BuildFolder(bench.honest), bench.baseline)
    return bench


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the gate and the attribution on planted faults.")
    parser.add_argument("--model", default="ufovit_t")
    parser.add_argument("--images", type=int, default=2000, help="number of test images")
    parser.add_argument("--target", default="rtx" if find_spec("tensorrt_rtx") else "cpu")
    parser.add_argument("--out", type=Path, default=Path("build/planted"), help="folder of the builds, about 1 GB")
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
            print(f"{name}: not planted, target {target.name} does not compute in FP16")
    wrong = table(bench, chosen, args.markdown)
    print(f"\n{len(chosen) - wrong} of {len(chosen)} as expected, {args.images} images, target {target.name}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
