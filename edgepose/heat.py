"""How hot a machine is, and what holds its clocks back: figures of a throttled board are not those of a cool one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from edgepose.board import Board
from edgepose.host import Host

__all__ = ["Heat", "Zone", "gpus_held_back", "read_heat"]

_PI_NOW = {
    0: "under-voltage: use a stronger supply",
    1: "clock capped",
    2: "throttled",
    3: "held back by the soft temperature limit",
}
"""Bits of a Raspberry Pi's ``get_throttled``, as its documentation gives them; 16 higher: since it was started."""
_GPU_REASONS = {0x4: "power cap", 0x8: "hardware slow-down", 0x20: "thermal", 0x40: "thermal", 0x80: "power brake"}
"""Bits of NVML's clock event reasons; the others, idle and user settings among them, hold back nothing by force."""


@dataclass(frozen=True)
class Zone:
    """A thermal zone: its name, degrees Celsius, and where its cooling starts to slow the machine (None: unknown)."""

    name: str
    celsius: float
    slows_at: float | None


@dataclass(frozen=True)
class Heat:
    """Temperatures, and what holds the machine back: now, and at some time since it was started.

    ``governor`` is how the clock is chosen; ``clocks_mhz`` the present clock of each group of cores.
    """

    zones: tuple[Zone, ...]
    now: tuple[str, ...]
    earlier: tuple[str, ...]
    governor: str
    clocks_mhz: tuple[int, ...]


def read_heat(host: Host, board: Board) -> Heat:
    """Look at thermal zones, clock limits and what the board's own firmware tells."""
    policies = host.folders("/sys/devices/system/cpu/cpufreq/policy*")
    pi_now, pi_earlier = _raspberry(host) if board.kind == "raspberrypi" else ((), ())
    clocks = [host.number(f"{policy}/scaling_cur_freq") for policy in policies]
    return Heat(
        zones=tuple(_zones(host)),
        now=(*pi_now, *_limits(host, policies), *_hot(host)),
        earlier=(*pi_earlier, *_counters(host)),
        governor=host.text(f"{policies[0]}/scaling_governor") if policies else "",
        clocks_mhz=tuple(clock // 1000 for clock in clocks if clock),
    )


def _zones(host: Host) -> Iterator[Zone]:
    for folder in host.folders("/sys/class/thermal/thermal_zone*"):
        degrees = host.number(f"{folder}/temp")
        if degrees is not None:
            yield Zone(host.text(f"{folder}/type"), degrees / 1000, _trip(host, folder))


def _trip(host: Host, folder: str) -> float | None:
    """The lowest temperature at which the system slows down."""
    points = [path.removesuffix("_type") for path in host.folders(f"{folder}/trip_point_*_type")]
    passive = [host.number(f"{point}_temp") for point in points if host.text(f"{point}_type") == "passive"]
    return min((degrees / 1000 for degrees in passive if degrees and degrees > 0), default=None)


def _hot(host: Host) -> Iterator[str]:
    for zone in _zones(host):
        if zone.slows_at is not None and zone.celsius >= zone.slows_at:
            yield f"{zone.name} is at {zone.celsius:.0f} °C, and slows down from {zone.slows_at:.0f} °C"


def _limits(host: Host, policies: list[str]) -> Iterator[str]:
    """Clocks that may not reach what the processor can: by heat, power mode or a setting."""
    groups = Counter(
        tuple((host.number(f"{policy}/{name}_max_freq") or 0) // 1000 for name in ("scaling", "cpuinfo"))
        for policy in policies
    )
    for (allowed, able), count in groups.items():
        if 0 < allowed < able:
            where = f" in {count} groups of cores" if len(policies) > 1 else ""
            yield f"clock limited to {allowed} of {able} MHz{where}"


def _counters(host: Host) -> Iterator[str]:
    """Events that the kernel has counted since the start: x86 cores by heat, a Jetson's by current."""
    folders = host.folders("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
    heat = max((host.number(f"{folder}/core_throttle_count") or 0 for folder in folders), default=0)
    if heat:
        yield f"a core was throttled by heat {heat} times"
    for monitor in host.folders("/sys/class/hwmon/hwmon*"):
        if host.text(f"{monitor}/name") == "soctherm_oc":
            events = sum(host.number(path) or 0 for path in host.folders(f"{monitor}/oc*_event_cnt"))
            if events:
                yield f"throttled by over-current {events} times: use a stronger supply or another power mode"


def _raspberry(host: Host) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The firmware's bits, by its tool or by what the kernel shows of them."""
    try:
        told = (host.run(["vcgencmd", "get_throttled"]) or "").strip().rpartition("=")[2]
    except OSError:  # in a container it finds no firmware
        told = ""
    try:
        bits = int(told or host.text("/sys/devices/platform/soc/soc:firmware/get_throttled"), 16)
    except ValueError:
        return _undervoltage(host), ()
    now = tuple(words for bit, words in _PI_NOW.items() if bits >> bit & 1)
    return now, tuple(words for bit, words in _PI_NOW.items() if bits >> (bit + 16) & 1)


def _undervoltage(host: Host) -> tuple[str, ...]:
    alarms = (
        host.number(f"{monitor}/in0_lcrit_alarm")
        for monitor in host.folders("/sys/class/hwmon/hwmon*")
        if host.text(f"{monitor}/name") == "rpi_volt"
    )
    return (_PI_NOW[0],) if any(alarms) else ()


def gpus_held_back(host: Host) -> Iterator[str]:
    """What ``nvidia-smi`` says of heat and power.

    Raises:
        OSError: It is there and fails.
    """
    query = ["nvidia-smi", "--query-gpu=index,clocks_throttle_reasons.active", "--format=csv,noheader"]
    for line in (host.run(query) or "").splitlines():
        index, _, reasons = (part.strip() for part in line.partition(","))
        try:
            bits = int(reasons, 16)
        except ValueError:  # [N/A] in virtual machines
            continue
        words = dict.fromkeys(word for bit, word in _GPU_REASONS.items() if bits & bit)
        if words:
            yield f"GPU {index} held back: {', '.join(words)}"
