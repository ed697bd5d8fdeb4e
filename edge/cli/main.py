"""The commands of `ufovit`."""

from __future__ import annotations

import typer

from edge.cli.bench import bench
from edge.cli.build import build
from edge.cli.bundle import bundle
from edge.cli.calibrate import calibrate
from edge.cli.camera import camera
from edge.cli.certify import certify
from edge.cli.doctor import doctor
from edge.cli.drift import drift
from edge.cli.gate import gate
from edge.cli.inspect import inspect
from edge.cli.report import report
from edge.cli.sign import sign
from edge.cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From a trained UFO-ViT to a verified INT8 TensorRT engine.",
)
app.command()(build)
app.command()(bundle)
app.command()(calibrate)
app.command()(certify)
app.command()(drift)
app.command()(gate)
app.command()(inspect)
app.command()(report)
app.command()(verify)
app.command()(sign)
app.command()(bench)
app.command()(camera)
app.command()(doctor)
