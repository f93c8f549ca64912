"""The structure that docs/architecture.md promises: packages, links, import directions, light imports."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgepose as package

ROOT = Path(__file__).parent.parent
LINKED = ("converters", "runtimes", "calibration")
LAYERS = ("core", "runtimes", "calibration", "converters", "cli")

IMPORTED_BY_TORCH_FILES = ("edgepose/models/", "converters/", "runtimes/torch")


def sources() -> list[Path]:
    folders = [ROOT / "edgepose", *(ROOT / name for name in LINKED)]
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    )


def layer_of(module: str) -> str:
    head = module.split(".")[1] if "." in module else ""
    return head if head in LAYERS else "core"


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported at the top level and for real) of each import statement."""
    tree = ast.parse(path.read_text())
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    typing_only = {id(child) for node in checked for child in ast.walk(node)}
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    name = relative(path).removesuffix(".py").replace("/", ".")
    return name if name.startswith("edgepose") else f"edgepose.{name}"


@pytest.mark.parametrize("name", LINKED)
def test_linked_folders_are_the_packages(name):
    assert (ROOT / "edgepose" / name).is_symlink()
    assert os.readlink(ROOT / "edgepose" / name) == f"../{name}"
    module = importlib.import_module(f"edgepose.{name}")
    assert Path(str(module.__file__)).resolve() == ROOT / name / "__init__.py"


def test_every_package_is_listed_for_the_wheel():
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert listed
    names = set(re.findall(r'"([\w.]+)"', listed[1]))
    found = {module_of(path).removesuffix(".__init__") for path in sources() if path.name == "__init__.py"}
    assert names == found


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_imports_point_down(path):
    """core <- runtimes <- calibration <- converters <- cli; the package's two doors only lend and call."""
    if path in (ROOT / "edgepose" / "__init__.py", ROOT / "edgepose" / "__main__.py"):
        return
    own = LAYERS.index(layer_of(module_of(path)))
    for module, _ in imports_of(path):
        root = module.split(".")[0]
        assert root not in LINKED, f"{path} imports a second copy: {module}"
        if root == "edgepose":
            assert LAYERS.index(layer_of(module)) <= own, f"{relative(path)} imports {module}, which is above it"


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_heavy_imports_stay_where_they_belong(path):
    for module, top in imports_of(path):
        root = module.split(".")[0]
        if root in ("torch", "onnx", "onnxscript", "nncf"):
            assert relative(path).startswith(IMPORTED_BY_TORCH_FILES), f"{relative(path)} imports {module}"
        if root in ("onnxruntime", "openvino", "tensorrt", "ai_edge_litert", "tflite_runtime"):
            engine = {"ai_edge_litert": "tflite", "tflite_runtime": "tflite"}.get(root, root)
            assert relative(path) == f"runtimes/{engine}.py"
            assert not top, f"{relative(path)} imports {module} before it is used"


def test_public_names_are_all_there():
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="module 'edgepose' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
    for path in sources():
        module = importlib.import_module(module_of(path).removesuffix(".__init__"))
        public = {
            n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and n[0] != "_"
        }
        if module.__name__ != "edgepose.cli":
            assert public <= set(getattr(module, "__all__", public)), f"{module.__name__}: {public}"


def loaded_by(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


HEAVY = {"torch", "onnx", "onnxscript", "nncf", "onnxruntime", "openvino", "tensorrt", "faster_coco_eval"}
HEAVY |= {"ai_edge_litert", "tflite_runtime"}


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import edgepose", set()),
        ("import edgepose.cli", set()),
        ("import edgepose; edgepose.load", set()),  # the loader itself loads no engine
        ("import edgepose.models.registry", set()),
        ("import edgepose.calibration.validate", set()),
        ("import edgepose.converters.checkpoint", {"torch"}),
    ],
)
def test_imports_are_light(code, allowed):
    assert loaded_by(code) & HEAVY <= allowed


def test_import_edgepose_needs_neither_numpy_nor_opencv():
    assert not loaded_by("import edgepose") & {"numpy", "cv2", "rich", "click"}


def test_help_is_quick():
    """Under 0.3 s of CPU; the best of five, since the machine may be busy."""
    command = [sys.executable, "-m", "edgepose", "--help"]
    subprocess.run(command, capture_output=True, check=True)  # writes the byte code
    used = []
    for _ in range(5):
        before = os.times()
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        used.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(used) < 0.3, used
