"""A CPython for ARM and the wheels a board would install, in a cache folder: no root, no chroot, no binfmt.

    CACHE/arm64-HASH/root     Debian's packages for that architecture, unpacked
                    /cpu      one view of the root per CPU model, with its /proc/cpuinfo
                    /wheels   one folder per package, so that numpy 1 and numpy 2 live side by side
                    /qemu     qemu-user-static, where the machine has none

Packages come from where apt and pip of this machine get theirs. See docs/arm.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = ["BEDS", "CHECKOUT", "CPUS", "Bed", "BedRow", "Unavailable", "set_up"]

CHECKOUT = Path(__file__).parent.parent.parent
_CONSTRAINTS = CHECKOUT / "constraints.txt"
_SECONDS = 120  # for the whole of a set-up; about 25 where nothing hangs
_NEWEST_GLIBC = 36  # Debian 12's


class Unavailable(Exception):
    """The bed cannot be set up on this machine, and why."""


@dataclass(frozen=True)
class Cpu:
    """A processor: what ``/proc/cpuinfo`` and sysfs say of it, from which libraries choose their kernels."""

    part: int
    variant: int
    revision: int
    features: str

    @property
    def cpuinfo(self) -> str:
        """The text of ``/proc/cpuinfo``."""
        return (
            f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: {self.variant:#x}\nCPU part\t: {self.part:#x}\n"
            f"CPU revision\t: {self.revision}\n\n"
        )

    @property
    def midr(self) -> str:
        """The identification register as sysfs prints it."""
        return f"{0x41 << 24 | self.variant << 20 | 0xF << 16 | self.part << 4 | self.revision:#018x}\n"


_V8 = "fp asimd evtstrm crc32 cpuid"
_V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
_V86 = f"{_V82} sve i8mm svei8mm bf16 svebf16"

CPUS: Mapping[str, Cpu] = MappingProxyType(
    {
        "cortex-a72": Cpu(0xD08, 0, 3, _V8),  # Raspberry Pi 4
        "cortex-a76": Cpu(0xD0B, 4, 1, _V82),  # Raspberry Pi 5: 8-bit dot products
        "max,sme=off": Cpu(0xD40, 1, 1, _V86),  # 8-bit matrix products and SVE
        "max": Cpu(0xD40, 1, 1, _V86),  # with an SME that is not to be trusted: what a wrong processor looks like
        "cortex-a15": Cpu(0xC0F, 2, 1, "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt"),
    }
)
"""By the names of qemu's ``-cpu``."""


@dataclass(frozen=True)
class BedRow:
    """One architecture.

    Attributes:
        name: Debian's name of it.
        qemu: The emulator.
        packages: Of Debian.
        tag: End of pip's platform tags.
        wheels: Folder name -> requirement.
        libraries: Engine library -> (variants' format, folders on the path).
        cpus: Keys of ``CPUS``.
        python_path: More folders of the root in which Python looks.
        library_path: More folders of the root in which the loader looks.
    """

    name: str
    qemu: str
    packages: tuple[str, ...]
    tag: str
    wheels: Mapping[str, str]
    libraries: Mapping[str, tuple[str, tuple[str, ...]]]
    cpus: tuple[str, ...]
    python_path: tuple[str, ...] = ()
    library_path: tuple[str, ...] = ()


BEDS: Mapping[str, BedRow] = MappingProxyType(
    {
        "arm64": BedRow(
            name="arm64",
            qemu="qemu-aarch64-static",
            packages=("python3.11", "libstdc++6", "libgomp1", "libatomic1"),
            tag="aarch64",
            wheels={
                "numpy": "numpy",
                "numpy1": "numpy<2",
                "opencv": "opencv-python-headless",
                "onnxruntime": "onnxruntime",
                "openvino": "openvino",
                "ai-edge-litert": "ai-edge-litert",
                "tflite-runtime": "tflite-runtime",
            },
            libraries={
                "onnxruntime": ("onnx", ("numpy", "opencv", "onnxruntime")),
                "openvino": ("openvino", ("numpy", "opencv", "openvino")),
                "ai-edge-litert": ("tflite", ("numpy", "opencv", "ai-edge-litert")),
                "tflite-runtime": ("tflite", ("numpy1", "opencv", "tflite-runtime")),
            },
            cpus=("cortex-a72", "cortex-a76", "max,sme=off"),
        ),
        "armhf": BedRow(
            name="armhf",
            qemu="qemu-arm-static",
            packages=("python3.11", "python3-numpy", "libstdc++6", "libatomic1"),
            tag="armv7l",
            wheels={"tflite-runtime": "tflite-runtime"},
            libraries={"tflite-runtime": ("tflite", ("tflite-runtime",))},
            cpus=("cortex-a15",),
            python_path=("usr/lib/python3/dist-packages",),
            library_path=("usr/lib/arm-linux-gnueabihf/blas", "usr/lib/arm-linux-gnueabihf/lapack"),
        ),
    }
)


@dataclass(frozen=True)
class Bed:
    """A bed that is ready.

    Attributes:
        row: Its architecture.
        path: Its folder.
        qemu: The emulator.
        seconds: What this set-up took; about zero where it was there.
    """

    row: BedRow
    path: Path
    qemu: Path
    seconds: float

    def version(self) -> str:
        """The emulator's own line."""
        done = subprocess.run([self.qemu, "--version"], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0]

    def run(
        self, library: str, cpu: str, command: Sequence[str | Path], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run Python there, with an engine library and edgepose from this checkout on its path.

        Raises:
            subprocess.TimeoutExpired: It takes longer.
        """
        view, stand_in = self.path / "cpu" / cpu, Path(__file__).parent / "stand_in"
        folders = [self.path / "wheels" / name for name in self.row.libraries[library][1]]
        folders += [view / name for name in self.row.python_path]
        folders += [] if "opencv" in self.row.wheels else [stand_in]
        settings = {
            "PYTHONPATH": ":".join(map(str, [CHECKOUT, *folders])),
            "LD_LIBRARY_PATH": ":".join(str(view / name) for name in self.row.library_path),  # /usr/... is not enough
        }
        guest = [f"{key}={value}" for key, value in settings.items() if value]
        start = [self.qemu, "-L", view, "-cpu", cpu, *(part for pair in guest for part in ("-E", pair))]
        return subprocess.run(
            [*start, view / "usr/bin/python3.11", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env={key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ},
        )


def set_up(name: str) -> Bed:
    """The bed of an architecture (a key of ``BEDS``), made where it is not in the cache yet.

    Raises:
        Unavailable: A tool is missing, or something cannot be downloaded.
    """
    row, start = BEDS[name], time.perf_counter()
    path = _cache() / f"{name}-{_recipe(row)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent / f"{name}.lock"):
            if not path.is_dir():
                _make(path, row)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}") from None
    qemu = Path(shutil.which(row.qemu) or path / "qemu" / row.qemu)
    return Bed(row, path, qemu, time.perf_counter() - start)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EDGEPOSE_ARM_CACHE") or Path(base) / "edgepose" / "arm-bed")


def _recipe(row: BedRow) -> str:
    """A short hash of what the bed is made of; beds of other recipes stay as they are, for they may be in use."""
    pins = [
        line for line in _CONSTRAINTS.read_text(encoding="utf-8").splitlines() if _name(line) in row.wheels.values()
    ]
    cpus = repr([CPUS[cpu] for cpu in _all_cpus(row)])
    parts = [row.packages, dict(row.wheels), row.tag, pins, cpus, shutil.which(row.qemu)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _name(requirement: str) -> str:
    return requirement.partition("==")[0]


def _all_cpus(row: BedRow) -> tuple[str, ...]:
    """Those of the table, and the one that is known to be wrong."""
    return (*row.cpus, "max") if row.name == "arm64" else row.cpus


def _make(path: Path, row: BedRow) -> None:
    """Everything into a folder beside it, which takes the name when it is whole."""
    for tool in ("apt-get", "dpkg-deb", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no {tool} here: the bed is made of Debian's packages")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{row.name}-") as scratch:
        made = Path(scratch) / row.name
        made.mkdir()
        deadline = time.monotonic() + _SECONDS
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(job, row, made, deadline) for job in (_system, _wheels)]
            for job in jobs:
                job.result()
        made.rename(path)


def _system(row: BedRow, made: Path, deadline: float) -> None:
    root = made / "root"
    for package in _debs(row.name, row.packages, made / "apt", deadline):
        _call(["dpkg-deb", "--extract", package, root], deadline)
    if not (root / "usr/bin/python3.11").is_file():
        raise Unavailable(f"apt has no python3.11 for {row.name}: Debian 12 has it")
    if shutil.which(row.qemu) is None:
        host = _call(["dpkg", "--print-architecture"], deadline).strip()
        (package,) = _debs(host, ["qemu-user-static"], made / "apt-host", deadline, name="qemu-user-static_*.deb")
        _call(["dpkg-deb", "--extract", package, made / "unpacked"], deadline)
        (made / "qemu").mkdir()
        (made / "unpacked/usr/bin" / row.qemu).rename(made / "qemu" / row.qemu)
    for folder in ("apt", "apt-host", "unpacked"):
        shutil.rmtree(made / folder, ignore_errors=True)
    for cpu in _all_cpus(row):
        _view(made / "cpu" / cpu, root, CPUS[cpu])


def _view(view: Path, root: Path, cpu: Cpu) -> None:
    """The root as a machine with this processor sees it."""
    view.mkdir(parents=True)
    for entry in root.iterdir():
        (view / entry.name).symlink_to(f"../../root/{entry.name}")
    register = view / "sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
    for file, text in ((view / "proc/cpuinfo", cpu.cpuinfo), (register, cpu.midr)):
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="ascii")


def _debs(
    architecture: str, packages: Sequence[str], scratch: Path, deadline: float, name: str = "*.deb"
) -> list[Path]:
    """Packages and what they need, downloaded as for a machine that has nothing; this machine's apt stays as it is."""
    archives = scratch / "cache" / "archives"
    for folder in (scratch / "state/lists/partial", archives / "partial"):
        folder.mkdir(parents=True)
    (scratch / "status").touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": 2,
        "Acquire::http::Timeout": 15,
        "Acquire::https::Timeout": 15,
    }
    apt = ["apt-get", "-qq", "--yes", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    try:
        _call([*apt, "update"], deadline)
    except Unavailable as error:  # one list of many may be missing: what was asked for decides
        problem = str(error)
    else:
        problem = ""
    try:
        _call([*apt, "--download-only", "install", *packages], deadline)
    except Unavailable as error:
        raise Unavailable(f"{problem}; {error}" if problem else str(error)) from None
    return sorted(archives.glob(name))


def _wheels(row: BedRow, made: Path, deadline: float) -> None:
    """Real wheels for the architecture, in the versions of this project's constraints where they name one."""
    manylinux = [f"manylinux_2_{minor}_{row.tag}" for minor in range(17, _NEWEST_GLIBC + 1)]
    platforms = [part for tag in (f"manylinux2014_{row.tag}", *manylinux) for part in ("--platform", tag)]
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--timeout", "15"]
    python = ["--python-version", "311", "--implementation", "cp"]
    for folder, requirement in row.wheels.items():
        pins = [] if "<" in requirement else ["--constraint", _CONSTRAINTS]
        target = ["--target", made / "wheels" / folder]
        install = [sys.executable, "-m", "pip", "install", *options, *python, *platforms, *pins, *target, requirement]
        _call(install, deadline)


def _call(command: Sequence[str | Path | int], deadline: float) -> str:
    """Run a tool, and return what it prints.

    Raises:
        Unavailable: It fails, or time is up.
    """
    what = " ".join([Path(str(command[0])).name, *map(str, command[-2:])])
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            check=False,
            timeout=max(deadline - time.monotonic(), 1),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what}: not done within the {_SECONDS} s of a set-up") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "ERROR", "/"))]
        raise Unavailable(f"{what}: {' '.join(lines)[-300:] or done.stderr[-300:]}")
    return done.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two test runs make one bed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
