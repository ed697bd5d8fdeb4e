"""Read the power sensors of a Jetson. Standard library only.

A Jetson measures its supply rails with INA3221 chips. Linux shows them as hwmon devices (kernel documentation, hwmon/ina3221):
`in[123]_label` the rail, `in[123]_input` bus voltage in mV, `curr[123]_input` current in mA. NVIDIA's tegrastats prints the
same as "VDD_IN 5704mW/5704mW": the present power, then its average since the start; some releases add a third number, older
ones omit the unit. The first number is used.
"""

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
_CHANNELS = (1, 2, 3)  # higher channels are sums and shunt voltages
_UNCONNECTED = "NC"
_RAIL = re.compile(r"(?<!\S)((?:VDD|VIN|POM)\w*) (\d+)(?:mW(?:/\d+mW)*|/\d+)(?!\S)")
_TEGRASTATS_MS = 100

Watts = dict[str, float]
"""Rail -> power, watts."""


class PowerMonitor(Protocol):
    """Reads the power of rails; `source` names it."""

    source: str

    def read(self) -> Watts:
        """The present power. It may block; empty where there is no reading."""

    def close(self) -> None:
        """Release the source; a blocked `read` returns."""


@dataclass(frozen=True)
class Channel:
    """One rail of an INA3221: the files of its voltage in mV and its current in mA."""

    rail: str
    voltage: Path
    current: Path

    def watts(self) -> float:
        """Present power. Raises OSError or ValueError if the chip does not respond."""
        return 1e-6 * int(self.voltage.read_text()) * int(self.current.read_text())


class SysfsMonitor:
    """Rails through hwmon."""

    source = "INA3221, through sysfs"

    def __init__(self, channels: tuple[Channel, ...]) -> None:
        self._channels = channels

    def read(self) -> Watts:
        """See `PowerMonitor`. All rails or none: a sum without one of them would be wrong."""
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
        """See `PowerMonitor`. Reads the next line."""
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
    """Rails of a line of tegrastats; empty if it lists none, as for users without permission."""
    return {rail: 1e-3 * int(milliwatts) for rail, milliwatts in _RAIL.findall(line)}


def find_channels(sysfs: Path = SYSFS) -> tuple[Channel, ...]:
    """The rails of every INA3221 that respond."""
    channels = []
    for folder in sorted((sysfs / "class" / "hwmon").glob("hwmon*")):
        if _text(folder / "name") != _CHIP:
            continue
        for number in _CHANNELS:
            rail = _text(folder / f"in{number}_label")
            channel = Channel(rail, folder / f"in{number}_input", folder / f"curr{number}_input")
            if rail and rail != _UNCONNECTED and SysfsMonitor((channel,)).read():
                channels.append(channel)
    return tuple(channels)


def find_monitor(sysfs: Path = SYSFS, which: Callable[[str], str | None] = shutil.which) -> PowerMonitor | str:
    """The power monitor of this machine; else a sentence on why there is none."""
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
