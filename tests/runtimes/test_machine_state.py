"""Energy, clock, temperature, throttling and load, read from made-up files as Linux lays them out."""

from __future__ import annotations

import time

import pytest

from edgepose.runtimes.cpu_load import Moment, load_between, moment
from edgepose.runtimes.energy import find_meter
from edgepose.runtimes.thermal import climate


def write(root, **files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


def rapl(root, number, name, counter, wrap=10_000_000):
    zone = f"sys/class/powercap/intel-rapl:{number}"
    write(root, **{f"{zone}/name": name, f"{zone}/energy_uj": counter, f"{zone}/max_energy_range_uj": wrap})
    return root / zone / "energy_uj"


def test_rapl_adds_up_packages_and_goes_past_the_end_of_a_counter(tmp_path):
    first, second = rapl(tmp_path, "0", "package-0\n", 1_000_000), rapl(tmp_path, "1", "package-1", 9_000_000)
    core = rapl(tmp_path, "0:0", "core", 0)

    def work():
        first.write_text("3500000")
        second.write_text("500000")  # past the end: 1.5 J
        core.write_text("9000000")  # within a package: counted there

    meter = find_meter(tmp_path)
    assert meter.name == "processor package (RAPL)"
    assert meter.joules(work) == pytest.approx(2.5 + 1.5)


@pytest.mark.parametrize(
    ("files", "name", "watts"),
    [
        # JetPack 5 and 6: millivolts and milliamperes by channel; only the rail of the whole board counts
        (
            {"in1_label": "VDD_CPU", "in1_input": 5000, "curr1_input": 9000, "in2_label": "VDD_IN", "in2_input": 5000,
             "curr2_input": 2000},
            "board, rail VDD_IN (INA)",
            10,
        ),
        # JetPack 4: milliwatts
        ({"rail_name_0": "POM_5V_IN\n", "in_power0_input": 4000}, "board, rail POM_5V_IN (INA)", 4),
    ],
)  # fmt: skip
def test_power_of_a_jetson_is_added_up_over_time(tmp_path, files, name, watts):
    new = "in1_label" in files
    folder = "ina3221/1-0040/hwmon/hwmon3" if new else "ina3221x/6-0040/iio:device0"
    write(tmp_path, **{f"sys/bus/i2c/drivers/{folder}/{key}": value for key, value in files.items()})
    meter = find_meter(tmp_path)
    assert meter.name == name
    start = time.perf_counter()
    joules = meter.joules(lambda: time.sleep(0.1))
    assert 0.1 * watts * 0.99 <= joules <= watts * (time.perf_counter() - start)


def test_a_machine_without_a_meter_has_none(tmp_path):
    assert find_meter(tmp_path) is None
    rapl(tmp_path, "0", "package-0", "not a number")
    assert find_meter(tmp_path) is None


def test_climate(tmp_path):
    assert climate(tmp_path) == climate(tmp_path / "none")
    assert climate(tmp_path).frequency_mhz is None
    cpu = "sys/devices/system/cpu"
    write(
        tmp_path,
        **{
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1200000\n",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "1800000\n",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": 3,
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": 4,
            "sys/class/thermal/thermal_zone0/temp": 61000,
            "sys/class/thermal/thermal_zone1/temp": -256000,  # a sensor that is off
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50004\n",  # throttled now, and earlier
        },
    )
    now = climate(tmp_path)
    assert (now.frequency_mhz, now.temperature_c, now.throttles, now.throttled) == (1500, 61, 7, True)


def test_load_of_others_is_what_is_not_ours(tmp_path):
    write(tmp_path, **{"proc/stat": "cpu  1000 200 300 9000 50 0 100 40 0 0\ncpu0 1 2 3\n"})
    now = moment(tmp_path)
    assert now.busy == pytest.approx(1600 / 100)
    assert now.stolen == pytest.approx(0.4)
    before, after = Moment(10, 100, 1, 20), Moment(20, 118, 3, 23)
    load = load_between(before, after)
    assert load.others == pytest.approx(1.5)  # 18 s busy, 3 of them ours, in 10 s
    assert load.stolen == pytest.approx(0.2)
    assert moment(tmp_path / "none") is None
    assert load_between(None, after) is None
