"""Take a network through the toolkit by its command line, as a user does; record how far it came and how well it answers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from run_command import Finished, run_limited
from trial_inputs import Trial

from calib.json_reader import read_json
from engines.build_folder.file_names import CALIBRATION, CERTIFICATE, DRIFT, ENGINES, MANIFEST, MODEL, QUANTIZED

UFOVIT = Path(sys.executable).with_name("ufovit")
STAGES = {
    "imported": (MODEL,),
    "certified": (CERTIFICATE,),
    "calibrated": (CALIBRATION,),
    "built": ENGINES,
    "judged": (DRIFT,),
}
"""Stage -> files of the build folder, any of which shows that it was reached."""
LONGEST_ERROR = 800


def build_command(trial: Trial) -> list[str]:
    """`ufovit build` of the file as exported, with the defaults and what its user knows of it."""
    command = [str(UFOVIT), "build", str(trial.graph), "int8", "--target", "rtx"]
    command += ["--task", "tensors", "--mean", _listed(trial.facts["mean"]), "--std", _listed(trial.facts["std"])]
    if shape := _input_shape(trial):
        command += [*shape, "--resize", str(max(trial.facts["size"]))]
    for split, option, count in (("calib", "--calib", trial.counts[0]), ("eval", "--eval", trial.counts[1])):
        data = "--calib-data" if split == "calib" else "--data"
        command += [data, str(trial.photos / split), f"{option}-images", str(count)]
    return command


def calibrate_command(trial: Trial, effort: str) -> list[str]:
    """`ufovit calibrate` on the same images, prepared; everything in INT8, as the peer has it."""
    images, judges = (str(trial.folder / f"{split}.npy") for split in ("calib", "eval"))
    command = [str(UFOVIT), "calibrate", str(trial.graph), "--effort", effort, "--placement", "all", *_input_shape(trial)]
    return [*command, "--images", images, "--count", str(trial.counts[0]), "--holdout", judges]


def _input_shape(trial: Trial) -> list[str]:
    """The option that pins a free height and width."""
    height, width = trial.facts["size"]
    free = set(trial.facts["free"]) & {"height", "width"}
    return ["--input-shape", f"input=1x3x{height}x{width}"] if free else []


def try_toolkit(trial: Trial, command: list[str], seconds: float) -> dict[str, Any]:
    """Run one command; its output folder is removed afterwards.

    Returns exit code, the error's sentence, seconds, peak memory, the stages reached and, where a quantized graph was written,
    its figures.
    """
    out = trial.folder / "toolkit"
    shutil.rmtree(out, ignore_errors=True)
    finished = run_limited([*command, "--out", str(out)], seconds, cwd=trial.folder)
    stages = [stage for stage, files in STAGES.items() if any((out / file).is_file() for file in files)]
    try:
        return {
            "exit_code": finished.exit_code,
            "error": error_sentence(finished, judged="judged" in stages or "calibrate" in command),
            "lines": list(finished.lines),
            "seconds": finished.seconds,
            "peak_bytes": finished.peak_bytes,
            "stages": stages,
            **_figures(trial, out),
        }
    finally:
        shutil.rmtree(out, ignore_errors=True)


def error_sentence(finished: Finished, *, judged: bool) -> str | None:
    """The message of a command that ended neither with a verdict nor well, its details included; None for one that did."""
    if finished.exit_code is None:
        return f"not finished within {finished.seconds:.0f} s"
    if finished.exit_code == 0 or (judged and finished.exit_code in (1, 3)):
        return None
    starts = [number for number, line in enumerate(finished.lines) if line.startswith(("error", "ufovit"))]
    return " | ".join(line.strip() for line in finished.lines[starts[-1] if starts else -1 :])[:LONGEST_ERROR]


def _figures(trial: Trial, out: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if (out / QUANTIZED).is_file():
        try:
            figures = trial.judge(out / QUANTIZED)
        except Exception as error:  # noqa: BLE001  # whatever fails belongs into the row of this network
            figures = {"judge_error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if (out / MANIFEST).is_file():
        figures["engine_int8_share"] = read_json(out / MANIFEST)["receipt"].get("int8_mac_fraction")
    if (out / DRIFT).is_file():
        figures["verdict"] = read_json(out / DRIFT).get("verdict")
    if (out / CERTIFICATE).is_file():
        figures["fp16"] = read_json(out / CERTIFICATE)["verdict"]
    return figures


def _listed(values: list[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
