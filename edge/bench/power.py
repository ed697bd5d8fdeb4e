"""Power of a Jetson by its own sensors. Standard library only.

A Jetson measures its supply rails with INA3221 chips. Linux shows them as hwmon devices (kernel documentation, hwmon/ina3221):
`in[123]_label` the rail, `in[123]_input` bus voltage in mV, `curr[123]_input` current in mA. NVIDIA's tegrastats prints the
same as "VDD_IN 5704mW/5704mW": what is drawn now, then its average since the start; some releases add a third number, older
ones leave the unit out. Here the first number counts.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SYSFS = Path("/sys")
NOT_HERE = "power is not measured: this machine has neither INA3221 power monitors nor tegrastats, as a Jetson has"
_CHIP = "ina3221"
_CHANNELS = (1, 2, 3)  # what follows are sums and shunt voltages
_UNCONNECTED = "NC"
_RAIL = re.compile(r"(?<!\S)((?:VDD|VIN|POM)\w*) (\d+)(?:mW(?:/\d+mW)*|/\d+)(?!\S)")
_TEGRASTATS_MS = 100

Watts = dict[str, float]
"""Rail -> power, watts."""


class PowerMonitor(Protocol):
    """Something that tells the power of rails; `source` says what."""

    source: str

    def read(self) -> Watts:
        """The power now. It may wait for it; empty where there is nothing more to be told."""

    def close(self) -> None:
        """Let go of it; a `read` that waits returns."""


@dataclass(frozen=True)
class Channel:
    """One rail of an INA3221: the files of its voltage in mV and its current in mA."""

    rail: str
    voltage: Path
    current: Path

    def watts(self) -> float:
        """Power now. Raises OSError or ValueError where the chip does not answer."""
        return 1e-6 * int(self.voltage.read_text()) * int(self.current.read_text())


class SysfsMonitor:
    """Rails through hwmon; a rail that does not answer any more is left out of the reading."""

    source = "INA3221, through sysfs"

    def __init__(self, channels: tuple[Channel, ...]) -> None:
        self._channels = channels

    def read(self) -> Watts:
        """See `PowerMonitor`. All rails, or none: a sum without one of them would be another sum."""
        try:
            return {channel.rail: channel.watts() for channel in self._channels}
        except (OSError, ValueError):
            return {}

    def close(self) -> None:
        """See `PowerMonitor`."""


class TegrastatsMonitor:
    """Rails as a running tegrastats prints them, ten times a second."""

    source = "tegrastats"

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen(
            [program, "--interval", str(_TEGRASTATS_MS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def read(self) -> Watts:
        """See `PowerMonitor`: of the next line."""
        assert self._process.stdout is not None
        try:
            return parse_tegrastats(self._process.stdout.readline())
        except ValueError:  # closed meanwhile
            return {}

    def close(self) -> None:
        """See `PowerMonitor`."""
        self._process.terminate()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def parse_tegrastats(line: str) -> Watts:
    """Rails of a line of tegrastats; empty where it tells of none, as it does to users who may not read them."""
    return {rail: 1e-3 * int(milliwatts) for rail, milliwatts in _RAIL.findall(line)}


def find_channels(sysfs: Path = SYSFS) -> tuple[Channel, ...]:
    """The rails that answer, of every INA3221."""
    found = []
    for folder in sorted((sysfs / "class" / "hwmon").glob("hwmon*")):
        if _text(folder / "name") != _CHIP:
            continue
        for number in _CHANNELS:
            rail = _text(folder / f"in{number}_label")
            channel = Channel(rail, folder / f"in{number}_input", folder / f"curr{number}_input")
            if rail and rail != _UNCONNECTED and _answers(channel):
                found.append(channel)
    return tuple(found)


def find_monitor(sysfs: Path = SYSFS, which: Callable[[str], str | None] = shutil.which) -> PowerMonitor | str:
    """What tells the power here; else, in one sentence, why nothing does."""
    channels = find_channels(sysfs)
    if channels:
        return SysfsMonitor(channels)
    program = which("tegrastats")
    if program is None:
        return NOT_HERE
    try:
        return TegrastatsMonitor(program)
    except OSError as error:
        return f"power is not measured: tegrastats does not start ({error.strerror})"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _answers(channel: Channel) -> bool:
    try:
        channel.watts()
    except (OSError, ValueError):
        return False
    return True
