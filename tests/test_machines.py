"""What is read of a machine, on made-up ones: each is a folder with the files that such a machine has, and tools."""

from __future__ import annotations

import fcntl
import struct
from pathlib import Path

import pytest

from edgepose.accelerators import find_accelerators, find_nvidia
from edgepose.board import read_board
from edgepose.camera_list import find_cameras, v4l2_formats
from edgepose.heat import gpus_held_back, read_heat
from edgepose.host import Host, run_tool
from edgepose.machine import has_dot_products, read_cpu, read_memory
from edgepose.targets import Facts, targets_of

A76 = (
    "processor\t: {n}\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
)
DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n'
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 36106755, BOARD: generic, EABI: aarch64\n",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n',
    "proc/sys/kernel/osrelease": "5.15.136-tegra\n",
    "proc/cpuinfo": "".join(A76.replace("0xd0b", "0xd42").format(n=n) for n in range(6)),
    "proc/meminfo": "MemTotal:        7802456 kB\nMemFree:  1 kB\nMemAvailable:    5511168 kB\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "51500",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "104500",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "99000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1510400",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1984000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq": "1510400",
    "sys/devices/system/cpu/cpufreq/policy4/cpuinfo_max_freq": "1984000",
    "sys/class/hwmon/hwmon2/name": "soctherm_oc",
    "sys/class/hwmon/hwmon2/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon2/oc3_event_cnt": "7",
    "sys/class/video4linux/video0/name": "vi-output, imx219 9-0010",
}
PI5 = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "etc/os-release": DEBIAN,
    "proc/cpuinfo": "".join(A76.format(n=n) for n in range(4)) + "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-2\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "83250",
    "sys/class/video4linux/video10/name": "bcm2835-codec-decode",
    "sys/class/video4linux/video2/name": "UVC Camera",
}
PI4_32 = {
    **PI5,
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/cpuinfo": A76.replace("0xd0b", "0xd08").replace("fp asimd asimddp", "half thumb neon vfpv4").format(n=0),
}
XEON = {
    "proc/cpuinfo": "".join(
        f"processor\t: {n}\nmodel name\t: Xeon Gold 6430\nflags\t: fpu avx2 avx512f avx512_vnni amx_int8\n\n"
        for n in range(8)
    ),
    "proc/meminfo": "MemTotal:       131072000 kB\nMemAvailable:   120000000 kB\n",
    "proc/self/status": "Cpus_allowed_list:\t0-7\n",
    "sys/class/dmi/id/sys_vendor": "Dell Inc.\n",
    "sys/class/dmi/id/product_name": "PowerEdge R760\n",
    "etc/os-release": DEBIAN,
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "sys/devices/system/cpu/cpu10/thermal_throttle/core_throttle_count": "2",
}
CONTAINER = {
    **XEON,
    ".dockerenv": "",
    "proc/cpuinfo": XEON["proc/cpuinfo"].replace("fpu", "fpu hypervisor").replace("avx512_vnni amx_int8", ""),
    "proc/self/cgroup": "0::/kubepods/pod1\n",
    "sys/fs/cgroup/cpu.max": "max 100000",
    "sys/fs/cgroup/kubepods/cpu.max": "400000 100000",
    "sys/fs/cgroup/kubepods/pod1/cpu.max": "150000 100000",
    "sys/fs/cgroup/kubepods/pod1/memory.max": "2147483648",
}
OLD_CGROUP = {
    **XEON,
    "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n",
    "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "250000",
    "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1073741824",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
}
CORE_ULTRA = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) Ultra 7 155H\nflags\t\t: avx2 avx_vnni\n",
    "sys/class/drm/card1/device/vendor": "0x8086",
    "sys/class/drm/card1/device/device": "0x7d55",
    "sys/class/drm/card1/device/drm/renderD128/dev": "226:128",
    "sys/class/drm/card1-HDMI-A-1/device/vendor": "0x8086",
    "sys/class/accel/accel0/device/vendor": "0x8086",
    "sys/bus/usb/devices/1-2/idVendor": "1a6e",
    "sys/bus/usb/devices/1-2/idProduct": "089a",
}


@pytest.fixture
def host(tmp_path):
    """A machine from its files and the answers of its tools; a tool whose answer is an error fails."""

    def make(files: dict[str, str], machine: str = "aarch64", **tools: str | OSError) -> Host:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def run(command):
            answer = tools.get(command[0].replace("-", "_"))
            if isinstance(answer, OSError):
                raise answer
            return answer

        return Host(tmp_path, run, machine, "glibc 2.36", (3, 11))

    return make


def facts(host: Host) -> Facts:
    board = read_board(host)
    return Facts(board, read_cpu(host), (*find_accelerators(host, board), *find_nvidia(host)))


def test_a_jetson_orin(host):
    orin = host(ORIN, nvpmodel="NV Power Mode: 15W\n0\n")
    board = read_board(orin)
    assert (board.kind, board.model) == ("jetson", "NVIDIA Jetson Orin Nano Developer Kit")
    assert (board.system, board.kernel, board.container) == ("Ubuntu 22.04.4 LTS", "5.15.136-tegra", "")
    assert board.details == {"l4t": "36.3.0", "jetpack": "6", "chip": "tegra234", "power mode": "15W"}
    assert read_cpu(orin).name == "6 x Cortex-A78AE"
    assert read_cpu(orin).max_mhz == 1984
    assert [(one.device, one.name) for one in find_accelerators(orin, board)] == [("cuda", "NVIDIA Orin (Ampere)")]
    heat = read_heat(orin, board)
    assert [(zone.name, zone.celsius, zone.slows_at) for zone in heat.zones] == [("cpu-thermal", 51.5, 99.0)]
    assert heat.now == ("clock limited to 1510 of 1984 MHz in 2 groups of cores",)
    assert heat.earlier == ("throttled by over-current 7 times: use a stronger supply or another power mode",)
    assert (heat.governor, heat.clocks_mhz) == ("schedutil", (729,))
    assert [camera.source for camera in find_cameras(orin, board, lambda path: ("RG10 3280x2464",))] == ["csi://0"]
    assert [row.name for row in targets_of(facts(orin))] == ["jetson-orin"]


def test_a_jetson_says_its_jetpack_where_the_package_is_installed(host):
    status = "Package: nvidia-jetpack-dev\nVersion: 9.9\n\nPackage: nvidia-jetpack\nStatus: ok\nVersion: 6.1+b123\n\n"
    orin = host({**ORIN, "var/lib/dpkg/status": status}, nvpmodel=OSError("nvpmodel fails: no rights"))
    assert read_board(orin).details["jetpack"] == "6.1"
    assert "power mode" not in read_board(orin).details
    asleep = host({"var/lib/nvpmodel/status": "pmode:0002"}, nvpmodel=OSError("nvpmodel fails: no rights"))
    assert read_board(asleep).details["power mode"] == "number 2"


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", ["jetson-orin"]),
        ("NVIDIA Jetson Xavier NX Developer Kit", ["jetson-xavier"]),
        ("NVIDIA Jetson Nano Developer Kit", ["jetson-nano"]),
        ("NVIDIA Jetson Thor", ["arm64"]),  # no row for it yet: the CPU's
        ("Raspberry Pi 5 Model B Rev 1.0", ["raspberrypi5"]),
        ("Raspberry Pi Compute Module 5 Rev 1.0", ["raspberrypi5"]),
        ("Raspberry Pi 4 Model B Rev 1.4", ["raspberrypi4"]),
        ("Raspberry Pi Zero 2 W Rev 1.0", ["raspberrypi4"]),
        ("Radxa ROCK 5B", ["arm64"]),
    ],
)
def test_every_arm_board_is_one_target(host, model, targets):
    jetson = {"etc/nv_tegra_release": ORIN["etc/nv_tegra_release"]} if "Jetson" in model else {}
    board = host({**jetson, "proc/device-tree/model": model, "proc/cpuinfo": PI5["proc/cpuinfo"]})
    assert [row.name for row in targets_of(facts(board))] == targets


def test_a_raspberry_pi_5(host):
    pi = host(PI5, vcgencmd="throttled=0x50005\n")
    board, cpu = read_board(pi), read_cpu(pi)
    assert (board.kind, board.model) == ("raspberrypi", "Raspberry Pi 5 Model B Rev 1.0")
    assert (cpu.name, cpu.cores, cpu.usable, cpu.quota) == ("4 x Cortex-A76", 4, 3, None)
    assert has_dot_products(cpu.isa)
    heat = read_heat(pi, board)
    assert heat.now == ("under-voltage: use a stronger supply", "throttled")
    assert heat.earlier == ("under-voltage: use a stronger supply", "throttled")

    def formats(path: str) -> tuple[str, ...] | None:
        return None if path.endswith("video10") else ("MJPG 1920x1080", "YUYV 640x480")

    (camera,) = find_cameras(pi, board, formats)
    assert (camera.source, camera.name, camera.formats) == (
        "/dev/video2",
        "UVC Camera",
        ("MJPG 1920x1080", "YUYV 640x480"),
    )


def test_a_raspberry_pi_without_vcgencmd_is_read_through_the_kernel(host):
    alarm = {"sys/class/hwmon/hwmon1/name": "rpi_volt", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1"}
    pi = host({**PI5, **alarm}, vcgencmd=OSError("vcgencmd fails: no firmware"))
    assert read_heat(pi, read_board(pi)).now == ("under-voltage: use a stronger supply",)
    bits = host({"sys/devices/platform/soc/soc:firmware/get_throttled": "80008"})
    heat = read_heat(bits, read_board(bits))
    assert heat.now == heat.earlier == ("held back by the soft temperature limit",)


def test_32_bit_python_on_a_raspberry_pi_is_another_target(host):
    pi = host(PI4_32, "armv7l")
    assert [row.name for row in targets_of(facts(pi))] == ["raspberrypi-32bit"]
    assert not has_dot_products(read_cpu(pi).isa)


def test_a_xeon(host):
    xeon = host(XEON, "x86_64")
    board, cpu = read_board(xeon), read_cpu(xeon)
    assert (board.kind, board.model, board.container) == ("pc", "Dell Inc. PowerEdge R760", "")
    assert (cpu.name, cpu.cores, cpu.usable, cpu.quota) == ("Xeon Gold 6430", 8, 8, None)
    assert cpu.isa == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert read_memory(xeon).limit is None
    assert read_heat(xeon, board).earlier == ("a core was throttled by heat 3 times",)
    assert [row.name for row in targets_of(facts(xeon))] == ["intel-cpu"]


def test_a_container_with_a_quota(host):
    box = host(CONTAINER, "x86_64")
    board, memory = read_board(box), read_memory(box)
    assert (board.kind, board.container) == ("virtual", "docker")
    assert read_cpu(box).quota == 1.5  # the smallest of its own and its parents'
    assert (memory.total, memory.limit) == (131072000 * 1024, 2 << 30)
    assert [row.name for row in targets_of(facts(box))] == ["intel-cpu-old"]


def test_a_control_group_of_version_1(host):
    box = host(OLD_CGROUP, "x86_64")
    assert read_cpu(box).quota == 2.5
    assert read_memory(box).limit == 1 << 30


def test_intel_gpu_npu_and_coral(host):
    laptop = host(CORE_ULTRA, "x86_64")
    found = find_accelerators(laptop, read_board(laptop))
    assert [(one.device, one.name) for one in found] == [
        ("gpu", "Intel GPU"),
        ("npu", "Intel NPU"),
        ("edgetpu", "Coral Edge TPU (USB)"),
    ]
    assert found[0].details == {"id": "0x7d55", "node": "/dev/dri/renderD128"}
    assert [row.name for row in targets_of(facts(laptop))] == ["intel-cpu", "intel-gpu", "intel-npu"]


def test_nvidia_gpus(host):
    server = host(XEON, "x86_64", nvidia_smi="NVIDIA L4, 550.54.15, 23034, 8.9\nNVIDIA L4, 550.54.15, 23034, 8.9\n")
    first, _ = find_nvidia(server)
    assert (first.device, first.name) == ("cuda", "NVIDIA L4")
    assert first.details == {"driver": "550.54.15", "memory MiB": "23034", "compute capability": "8.9"}
    assert [row.name for row in targets_of(facts(server))] == ["intel-cpu", "cuda"]
    hot = host({}, "x86_64", nvidia_smi="0, 0x0000000000000060\n1, 0x0000000000000001\n2, [N/A]\n")
    assert list(gpus_held_back(hot)) == ["GPU 0 held back: thermal"]


def test_a_machine_that_shows_nothing(host):
    bare = host({}, "riscv64")
    board = read_board(bare)
    assert (board.kind, board.model, board.system) == ("unknown", "", "")
    assert read_cpu(bare).cores == 1
    assert read_memory(bare).total == 0
    heat = read_heat(bare, board)
    assert (heat.zones, heat.now, heat.earlier) == ((), (), ())
    assert find_cameras(bare, board) == ()
    assert targets_of(facts(bare)) == ()


def test_a_camera_that_cannot_be_asked_says_why(host):
    pi = host(PI5)

    def refuse(path: str) -> tuple[str, ...]:
        raise PermissionError(13, "Permission denied")

    assert {camera.problem for camera in find_cameras(pi, read_board(pi), refuse)} == {
        "no permission: add this user to the group video"
    }
    assert {camera.problem for camera in find_cameras(pi, read_board(pi))} == {"No such file or directory"}


@pytest.mark.parametrize(("capabilities", "buffers"), [(0x1, 1), (0x1000, 9), (0x8000, None), (0x800000, None)])
def test_v4l2_is_asked_as_the_kernel_wants_it(monkeypatch, tmp_path, capabilities, buffers):
    """A double of the kernel's side, laid out by linux/videodev2.h."""
    sizes = {b"MJPG": [(1, 640, 480, 0, 0, 0, 0), (1, 1920, 1080, 0, 0, 0, 0)], b"YUYV": [(3, 32, 1280, 2, 32, 720, 2)]}

    def ioctl(descriptor, request, argument):
        if request == 0x80685600:
            return struct.pack("=16s32s32sIII12x", b"uvcvideo", b"Camera", b"usb", 0, 0x84A00001, capabilities)
        if request == 0xC0405602:
            index, kind = struct.unpack_from("=II", argument)
            assert kind == buffers
            if index >= len(sizes):
                raise OSError(22, "Invalid argument")
            return struct.pack("=III32s4sI12x", index, kind, 0, b"", [*sizes][index], 0)
        assert request == 0xC02C564A
        index, code = struct.unpack_from("=I4s", argument)
        if index >= len(sizes[code]):
            raise OSError(22, "Invalid argument")
        return struct.pack("=I4sI6I8x", index, code, *sizes[code][index])

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    device = tmp_path / "video0"
    device.touch()
    expected = ("MJPG 1920x1080", "YUYV 1280x720") if buffers else None
    assert v4l2_formats(str(device)) == expected


def test_tools_that_are_missing_fail_or_hang(tmp_path, monkeypatch):
    monkeypatch.setattr("edgepose.host._TOOL_S", 0.2)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, script in {"fails": "echo no rights >&2; exit 3", "hangs": "exec sleep 5", "answers": "echo yes"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    assert run_tool(["is-not-there"]) is None
    with pytest.raises(OSError, match="fails fails: no rights"):
        run_tool(["fails"])
    with pytest.raises(OSError, match=r"hangs has not answered within 0\.2 s"):
        run_tool(["hangs"])
    monkeypatch.setattr("edgepose.host._TOOL_S", 5)
    assert run_tool(["answers"]) == "yes\n"


def test_this_machine_is_read_as_the_system_tells(monkeypatch):
    import os

    cpu = read_cpu(Host())
    assert cpu.usable == len(os.sched_getaffinity(0))
    assert cpu.cores >= cpu.usable
    assert read_memory(Host()).total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert Path("/proc/cpuinfo").exists()
