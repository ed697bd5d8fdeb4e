"""Energy per image, integrated from power readings.

Rails that measure a whole Jetson module, by NVIDIA's names ("Software-Based Power Consumption Modeling" of the Jetson
developer guides): VDD_IN on Orin Nano and Orin NX, VIN on Thor. AGX Orin has no such rail: there it is the sum of VDD_GPU_SOC,
VDD_CPU_CV and VIN_SYS_5V0, of which VDDQ_VDD2_1V8AO is a part. Nothing is subtracted: idle power is in every figure.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.bench.latency import Clock
from edge.bench.power import PowerMonitor, Watts

_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")
_PART_OF_ANOTHER = frozenset({"VDDQ_VDD2_1V8AO"})
_INTERVAL_S = 0.02
_SILENT_S = 0.2
_FEWEST_READINGS = 10


@dataclass(frozen=True)
class Energy:
    """Energy of a measuring interval.

    Attributes:
        rail: the measured rail; names all rails of a sum.
        source: the `PowerMonitor`.
        mean_w: mean power, watts, idle power included.
        joules_per_image: energy of the interval, divided by its images.
        samples: number of readings in the interval.
        rails_w: mean power of every rail.
    """

    rail: str
    source: str
    mean_w: float
    joules_per_image: float
    samples: int
    rails_w: dict[str, float]


def whole(rails: Watts) -> tuple[str, ...]:
    """The rails whose sum is the power of the module."""
    for name in _WHOLE:
        if name in rails:
            return (name,)
    return tuple(name for name in rails if name not in _PART_OF_ANOTHER)


def integrate(times_s: npt.ArrayLike, values: npt.ArrayLike, begin_s: float, end_s: float) -> float:
    """Integral of readings from begin to end by the trapezoidal rule; the first and the last reading extend outwards."""
    t, v = np.asarray(times_s, np.float64), np.asarray(values, np.float64)
    inner = (t > begin_s) & (t < end_s)
    at = np.concatenate([[begin_s], t[inner], [end_s]])
    height = np.interp(at, t, v)
    return float((np.diff(at) * (height[1:] + height[:-1]) / 2).sum())


class PowerSampler:
    """Context manager that reads a monitor in its own thread. `why` names the monitor, or why there is no figure.

    Args:
        monitor: closed at the end; a sentence with the reason where there is none.
        clock: the clock that times the runs.
        interval_s: pause between readings, where the monitor does not wait itself.
    """

    def __init__(self, monitor: PowerMonitor | str, clock: Clock, interval_s: float = _INTERVAL_S) -> None:
        self._monitor = None if isinstance(monitor, str) else monitor
        self.why = monitor if isinstance(monitor, str) else f"power: {monitor.source}"
        self._clock, self._interval_s = clock, interval_s
        self._stop = threading.Event()
        self._readings: list[tuple[float, Watts]] = []
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)

    def __enter__(self) -> PowerSampler:
        if self._monitor is not None:
            self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._stop.set()
        if self._monitor is not None:
            self._monitor.close()
            self._thread.join(timeout=5)

    def _sample(self) -> None:
        assert self._monitor is not None
        while not self._stop.is_set():
            rails = self._monitor.read()
            if rails:
                self._readings.append((self._clock(), rails))
            self._stop.wait(self._interval_s if rails else _SILENT_S)

    def energy(self, begin_s: float, end_s: float, images: int) -> Energy | None:
        """Energy of an interval in which `images` were processed; None with too few readings, and `why` says so."""
        if self._monitor is None:
            return None
        readings = list(self._readings)
        inside = [rails for at, rails in readings if begin_s <= at <= end_s]
        names = {tuple(sorted(rails)) for rails in inside}
        if len(inside) < _FEWEST_READINGS or len(names) != 1:
            short = f"no energy: {len(inside)} readings in {end_s - begin_s:.2f} s; use a longer --duration"
            silent = f"no energy: {self._monitor.source} reports no power; it may need root (sudo)"
            self.why = short if inside else silent
            return None
        rails = list(inside[0])
        complete = [(at, watts) for at, watts in readings if set(watts) == set(rails)]
        times = [at for at, _ in complete]
        length = end_s - begin_s
        mean = {rail: integrate(times, [watts[rail] for _, watts in complete], begin_s, end_s) / length for rail in rails}
        counted = whole(mean)
        total = sum(mean[rail] for rail in counted)
        return Energy(
            " + ".join(counted), self._monitor.source, total, total * length / images, len(inside), dict(sorted(mean.items()))
        )
