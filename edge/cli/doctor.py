"""`ufovit doctor`: what works on this machine."""

from __future__ import annotations

import platform
import sys


def doctor() -> int:
    """List the backends: which work here, and for each that does not, why and the command that mends it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from engines.backends import probe_backends
    from engines.hardware import gpu_compute_capabilities
    from engines.select_target import AUTO, resolve_target

    console = Console(soft_wrap=True)
    gpus = ", ".join(gpu_compute_capabilities()) or "none"
    console.print(f"Python {sys.version.split()[0]}, {platform.system()} {platform.machine()}, NVIDIA GPUs: {gpus}")
    table = Table("backend", "works", "version", "why")
    probes = probe_backends()
    for probe in probes:
        table.add_row(probe.backend, "yes" if probe.works else "no", probe.version, escape(probe.why))
    console.print(table)
    for probe in probes:
        if probe.mend:
            console.print(f"{probe.backend} would work after: {probe.mend}", markup=False, highlight=False)
    resolution = resolve_target(AUTO)
    console.print(f"target auto here means {resolution.target.name}: {resolution.reason}")
    return 0 if any(probe.works for probe in probes) else 4
