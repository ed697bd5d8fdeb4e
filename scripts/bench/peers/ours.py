#!/usr/bin/env python3
"""Run `ufovit calibrate` on the graph and images of the benchmark, like a user: time includes the start of the process.

python ours.py FOLDER EFFORT OUT.onnx
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from record import Attempt, Job, parse_job, run

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from edge.pipeline.workspace import toolkit_sha256

EFFORTS = ("fast", "balanced", "best")


def main() -> None:
    job = parse_job("ufovit-edge", EFFORTS, ("ufovit-edge", "onnxruntime", "onnx", "numpy"), {"toolkit": toolkit_sha256()})
    run(job, (Attempt(partial(load, job)),))


def load(job: Job) -> Callable[[], str]:
    ufovit = Path(sys.executable).with_name("ufovit")
    out = job.folder / "calibrate" / job.config
    command = [str(ufovit), "calibrate", str(job.folder / "fp32.onnx"), "--images", str(job.folder / "calib.npy")]
    shutil.rmtree(out, ignore_errors=True)

    def quantize() -> str:
        done = subprocess.run(
            [*command, "--effort", job.config, "--out", str(out)], stderr=subprocess.PIPE, text=True, check=False
        )
        sys.stderr.write(done.stderr)
        if done.returncode:
            raise RuntimeError(f"ufovit calibrate exited with status {done.returncode}: {done.stderr.strip()[-300:]}")
        shutil.copyfile(out / "model.int8.onnx", job.out)
        return ""

    return quantize


if __name__ == "__main__":
    main()
