"""edge.bench.power and energy: a made-up sysfs tree, lines that tegrastats printed on real devices, integrals by scipy.

The lines are from public sources: an Orin Nano with JetPack 6, an AGX Orin, a Thor, a Nano of JetPack 4 as the Datadog agent
(pkg/collector/corechecks/nvidia/jetson) tests itself with, and JetPack 7's with three numbers.
"""

import os
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from for_all import for_all
from scipy import integrate as scipy_integrate

from edge.bench.energy import PowerSampler, integrate, whole
from edge.bench.power import NOT_HERE, SysfsMonitor, TegrastatsMonitor, find_channels, find_monitor, parse_tegrastats

ORIN_NANO = (
    "11-30-2025 13:26:01 RAM 2461/7620MB (lfb 3x2MB) SWAP 1243/3810MB (cached 5MB) CPU "
    "[19%@729,14%@729,22%@729,8%@729,15%@729,17%@729] EMC_FREQ 4%@2133 GR3D_FREQ 0%@[305] NVDEC off NVJPG off NVJPG1 off "
    "VIC off OFA off APE 200 cpu@46.531C soc2@47.312C soc0@46.593C gpu@48.218C tj@48.843C soc1@48.843C VDD_IN 5704mW/5704mW "
    "VDD_CPU_GPU_CV 831mW/831mW VDD_SOC 1624mW/1624mW"
)
AGX_ORIN = (
    "RAM 2448/62840MB (lfb 2x4MB) SWAP 0/31420MB (cached 0MB) CPU [0%@2201,0%@2201] GR3D_FREQ 0% cpu@42C soc2@37.843C "
    "tj@42C soc1@37.937C VDD_GPU_SOC 4940mW/4940mW VDD_CPU_CV 988mW/988mW VIN_SYS_5V0 4442mW/4442mW VDDQ_VDD2_1V8AO 504mW/504mW"
)
THOR = "RAM 117456/125772MB (lfb 9x4MB) cpu@43.812C VDD_GPU 5517mW VDD_CPU_SOC_MSS 7484mW VIN_SYS_5V0 6309mW VIN 28548mW"
NANO = (
    "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) CPU [2%@102,1%@102,0%@102,0%@102] EMC_FREQ 0% GR3D_FREQ 0% "
    "PLL@39C CPU@40.5C PMIC@100C GPU@41C AO@46C thermal@41C POM_5V_IN 900/943 POM_5V_GPU 0/0 POM_5V_CPU 123/123"
)
JETPACK_7 = (
    "RAM 8182/62817MB tj@51.343C/51.343C VDD_GPU_SOC 3588mW/3588mW/3588mW VDD_CPU_CV 797mW/797mW/797mW "
    "VIN_SYS_5V0 5148mW/5148mW/5148mW"
)
NOT_ROOT = "RAM 2461/7620MB (lfb 3x2MB) CPU [19%@729] GR3D_FREQ 0%@[305] VIC 0%@115 VIC_FREQ 601 APE 200 cpu@46.531C"

LINES = [
    (ORIN_NANO, {"VDD_IN": 5.704, "VDD_CPU_GPU_CV": 0.831, "VDD_SOC": 1.624}, 5.704),
    (
        AGX_ORIN,
        {"VDD_GPU_SOC": 4.940, "VDD_CPU_CV": 0.988, "VIN_SYS_5V0": 4.442, "VDDQ_VDD2_1V8AO": 0.504},
        4.940 + 0.988 + 4.442,
    ),
    (THOR, {"VDD_GPU": 5.517, "VDD_CPU_SOC_MSS": 7.484, "VIN_SYS_5V0": 6.309, "VIN": 28.548}, 28.548),
    (NANO, {"POM_5V_IN": 0.900, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.123}, 0.900),
    (JETPACK_7, {"VDD_GPU_SOC": 3.588, "VDD_CPU_CV": 0.797, "VIN_SYS_5V0": 5.148}, 3.588 + 0.797 + 5.148),
]


@pytest.mark.parametrize(("line", "rails", "total"), LINES, ids=["Orin Nano", "AGX Orin", "Thor", "Nano", "JetPack 7"])
def test_a_line_of_tegrastats_is_understood(line, rails, total):
    found = parse_tegrastats(line + "\n")
    assert found == pytest.approx(rails)
    assert sum(found[rail] for rail in whole(found)) == pytest.approx(total)


@pytest.mark.parametrize(
    "line", [NOT_ROOT, "", "\n", "VDD_IN", "VDD_IN mW", "VDD_IN 5704", "xVDD_IN 5704mW/5704mW", "VDD_IN -5mW"]
)
def test_lines_without_power(line):
    assert parse_tegrastats(line) == {}


# sysfs -------------------------------------------------------------------------------------------------------------------


def chip(sysfs, number, rails, *, name="ina3221"):
    """hwmonNUMBER with rails {channel: (label, millivolts, milliamperes)}, and what else such a chip shows."""
    folder = sysfs / "class" / "hwmon" / f"hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for channel, (label, millivolts, milliamperes) in rails.items():
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    (folder / "in7_input").write_text("99\n")
    (folder / "curr4_input").write_text("99\n")
    return folder


NX_RAILS = {1: ("VDD_IN", 5064, 1120), 2: ("VDD_CPU_GPU_CV", 5056, 240), 3: ("VDD_SOC", 5056, 304)}


def test_rails_of_an_orin_nx(tmp_path):
    chip(tmp_path, 0, {1: ("Vcore", 900, 10)}, name="nct6775")
    chip(tmp_path, 3, NX_RAILS)
    found = find_monitor(tmp_path, lambda _name: pytest.fail("tegrastats is for machines without sysfs"))
    assert found.source == "INA3221, through sysfs"
    rails = found.read()
    assert rails == pytest.approx({"VDD_IN": 5.67168, "VDD_CPU_GPU_CV": 1.21344, "VDD_SOC": 1.537024})
    assert whole(rails) == ("VDD_IN",)
    found.close()


def test_two_chips_of_an_agx_orin_and_what_is_not_connected(tmp_path):
    chip(tmp_path, 1, {1: ("VDD_GPU_SOC", 19000, 200), 2: ("VDD_CPU_CV", 19000, 50), 3: ("VIN_SYS_5V0", 5000, 800)})
    chip(tmp_path, 2, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 100), 3: ("", 1, 1)})
    rails = SysfsMonitor(find_channels(tmp_path)).read()
    assert rails == pytest.approx({"VDD_GPU_SOC": 3.8, "VDD_CPU_CV": 0.95, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 0.5})
    assert sum(rails[rail] for rail in whole(rails)) == pytest.approx(8.75)


def test_a_channel_that_does_not_answer_is_left_out(tmp_path):
    folder = chip(tmp_path, 0, NX_RAILS)
    (folder / "curr2_input").unlink()
    (folder / "in3_input").write_text("no number\n")
    assert [channel.rail for channel in find_channels(tmp_path)] == ["VDD_IN"]


def test_a_rail_that_falls_silent_gives_no_smaller_sum(tmp_path):
    folder = chip(tmp_path, 0, {1: ("VDD_GPU_SOC", 19000, 200), 2: ("VDD_CPU_CV", 19000, 50)})
    monitor = SysfsMonitor(find_channels(tmp_path))
    assert len(monitor.read()) == 2
    (folder / "in2_input").unlink()
    assert monitor.read() == {}


def test_elsewhere_it_says_why_there_is_none(tmp_path):
    assert find_monitor(tmp_path, lambda _name: None) == NOT_HERE
    chip(tmp_path, 0, {1: ("VDD_IN", 5000, 1000)}, name="k10temp")
    assert find_monitor(tmp_path, lambda _name: None) == NOT_HERE
    text = find_monitor(tmp_path, lambda _name: str(tmp_path / "gone"))
    assert text.startswith("power is not measured: tegrastats does not start")


# tegrastats --------------------------------------------------------------------------------------------------------------


def fake_tegrastats(folder, line, count=1000):
    program = folder / "tegrastats"
    program.write_text(
        f"#!{sys.executable}\nimport sys, time\nassert sys.argv[1:] == ['--interval', '100']\n"
        f"for _ in range({count}):\n    print({line!r}, flush=True)\n    time.sleep(0.005)\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_a_running_tegrastats_is_read_and_ended(tmp_path):
    monitor = find_monitor(tmp_path, lambda _name: fake_tegrastats(tmp_path, ORIN_NANO))
    assert isinstance(monitor, TegrastatsMonitor)
    for _ in range(3):
        assert monitor.read()["VDD_IN"] == pytest.approx(5.704)
    monitor.close()
    pid = monitor._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_energy_by_tegrastats(tmp_path):
    monitor = TegrastatsMonitor(fake_tegrastats(tmp_path, AGX_ORIN))
    with PowerSampler(monitor, time.monotonic, 0.001) as sampler:
        begin = time.monotonic()
        while len(sampler._readings) < 15 and time.monotonic() < begin + 60:
            time.sleep(0.01)
        energy = sampler.energy(begin, time.monotonic(), 100)
    assert energy.rail == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert energy.source == "tegrastats"
    assert energy.mean_w == pytest.approx(10.37)


def test_a_tegrastats_that_tells_no_power(tmp_path):
    with PowerSampler(TegrastatsMonitor(fake_tegrastats(tmp_path, NOT_ROOT, 2)), time.monotonic, 0.001) as sampler:
        time.sleep(0.05)
        assert sampler.energy(0, time.monotonic(), 10) is None
    assert "it may need root" in sampler.why


# Energy ------------------------------------------------------------------------------------------------------------------


@for_all(seed=range(5))
def test_the_integral_is_scipys(seed):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 10, 40))
    watts = rng.uniform(3, 9, 40)
    inside = integrate(times, watts, times[3], times[30])
    assert inside == pytest.approx(scipy_integrate.trapezoid(watts[3:31], times[3:31]))
    fine = np.linspace(1.234, 8.765, 200_001)
    assert integrate(times, watts, 1.234, 8.765) == pytest.approx(
        scipy_integrate.trapezoid(np.interp(fine, times, watts), fine), rel=1e-6
    )
    assert integrate(times, watts, 1, 4) + integrate(times, watts, 4, 9) == pytest.approx(integrate(times, watts, 1, 9))


def test_by_hand():
    assert integrate([0, 1, 2], [2, 4, 4], 0, 2) == pytest.approx(3 + 4)
    assert integrate([0, 1, 2], [2, 4, 4], 0.5, 1.5) == pytest.approx(0.5 * 3.5 + 0.5 * 4)
    assert integrate([1], [5], 0, 3) == pytest.approx(15), "held before the first and after the last"


class Scripted:
    """A monitor whose readings are planned, one per step of a clock that it moves."""

    source = "a script"

    def __init__(self, readings):
        self.readings, self.now, self.closed = list(readings), 0.0, False

    def clock(self):
        return self.now

    def read(self):
        if not self.readings:
            return {}
        self.now += 0.1
        return self.readings.pop(0)

    def close(self):
        self.closed = True


def sampled(readings):
    monitor = Scripted(readings)
    sampler = PowerSampler(monitor, monitor.clock, 0)
    with sampler:
        deadline = time.monotonic() + 30
        while monitor.readings and time.monotonic() < deadline:
            time.sleep(0.001)
    assert monitor.closed
    return sampler


def test_energy_per_image():
    """20 readings, 0.1 s apart: 6 W at first, 10 W from the eleventh on."""
    sampler = sampled([{"VDD_IN": 6.0, "VDD_SOC": 1.0}] * 10 + [{"VDD_IN": 10.0, "VDD_SOC": 1.0}] * 10)
    energy = sampler.energy(0.05, 2.05, 50)
    joules = 0.95 * 6 + 0.1 * 8 + 0.95 * 10
    assert energy.joules_per_image == pytest.approx(joules / 50)
    assert energy.mean_w == pytest.approx(joules / 2)
    assert (energy.rail, energy.source, energy.samples) == ("VDD_IN", "a script", 20)
    assert energy.rails_w == pytest.approx({"VDD_IN": joules / 2, "VDD_SOC": 1.0})
    earlier = sampler.energy(0.05, 1.001, 50)
    assert earlier.mean_w == pytest.approx(6, rel=1e-3), "control: another stretch"
    assert sampler.why == "power: a script"


def test_too_few_readings_are_no_figure():
    sampler = sampled([{"VDD_IN": 6.0}] * 9)
    assert sampler.energy(0, 5, 10) is None
    assert sampler.why == "no energy: 9 readings in 5.00 s; use a longer --duration"


def test_readings_of_different_rails_are_no_figure():
    sampler = sampled([{"VDD_GPU_SOC": 6.0, "VDD_CPU_CV": 1.0}] * 10 + [{"VDD_GPU_SOC": 6.0}] * 10)
    assert sampler.energy(0, 5, 10) is None


def test_without_a_monitor_nothing_runs():
    with PowerSampler(NOT_HERE, time.monotonic) as sampler:
        assert sampler.energy(0, 5, 10) is None
    assert sampler.why == NOT_HERE


def test_the_device_of_this_test_has_none():
    if Path("/proc/device-tree/model").exists():
        pytest.skip("this may be a Jetson")
    assert isinstance(find_monitor(), str)
