"""Doubles of TensorRT and of the CUDA driver that compute on the CPU: for test_tensorrt.py.

They have the names that the real bindings have, version by version, and nothing else: NAMES was read off the binding
modules of the wheels tensorrt-bindings 8.6.1 and tensorrt-cu12-bindings 10.0.1, 10.3.0 and 11.4.0.106, and the driver's
functions were compared with cuda-bindings 13.5.0. No GPU has seen any of this.
"""

# ruff: noqa: N802, N815  # names of the real thing

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

from edgepose.runtimes import cuda_driver

VERSIONS = ("8.6.1", "10.0.1", "10.3.0", "11.4.0")
NEW = VERSIONS[1:]
NAMES = {
    "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network",
    "IBuilderConfig": "set_memory_pool_limit clear_flag set_flag add_optimization_profile progress_monitor "
    "create_timing_cache set_timing_cache get_timing_cache",
    "ITimingCache": "serialize",
    "INetworkDefinition": "num_inputs get_input",
    "IOptimizationProfile": "set_shape",
    "OnnxParser": "parse num_errors get_error",
    "Runtime": "deserialize_cuda_engine",
    "ICudaEngine": "get_tensor_name num_io_tensors get_tensor_mode get_tensor_dtype get_tensor_shape num_layers "
    "device_memory_size device_memory_size_v2 create_execution_context",
    "IExecutionContext": "set_input_shape set_tensor_address execute_async_v3",
    "NetworkDefinitionCreationFlag": "EXPLICIT_BATCH STRONGLY_TYPED",
    "BuilderFlag": "FP16 INT8 TF32",
    "MemoryPoolType": "WORKSPACE",
    "TensorIOMode": "INPUT OUTPUT",
    "ILogger": "Severity log",
    "IProgressMonitor": "phase_start phase_finish step_complete",
}
ONLY_IN = {
    "IBuilderConfig.progress_monitor": NEW,
    "ICudaEngine.device_memory_size": VERSIONS[:3],
    "ICudaEngine.device_memory_size_v2": VERSIONS[2:],
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": VERSIONS[:3],
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": NEW,
    "BuilderFlag.FP16": VERSIONS[:3],
    "BuilderFlag.INT8": VERSIONS[:3],
    "IProgressMonitor.phase_start": NEW,
    "IProgressMonitor.phase_finish": NEW,
    "IProgressMonitor.step_complete": NEW,
}
DTYPES = {onnx.TensorProto.UINT8: "UINT8", onnx.TensorProto.FLOAT: "FLOAT"}


def surface(version, kind):
    """Names that a class has in a version."""
    return {name for name in NAMES[kind].split() if version in ONLY_IN.get(f"{kind}.{name}", VERSIONS)}


class Gpu:
    """libcuda: memory is this process's, a stream runs at once, a graph is a list of what was noted down."""

    def __init__(self, free=1 << 30, devices=1):
        self.free, self.devices = free, devices
        self.memory, self.noted, self.graphs, self.launches = {}, None, [], 0
        self.calls = []

    def do(self, action):
        action() if self.noted is None else self.noted.append(action)
        return 0

    def __getattr__(self, name):
        assert name in cuda_driver.PROTOTYPES, name
        real = object.__getattribute__(self, f"_{name}") if f"_{name}" in dir(type(self)) else lambda *a: 0

        def call(*arguments):
            assert len(arguments) == len(cuda_driver.PROTOTYPES[name]), name
            self.calls.append(name)
            return real(*arguments)

        return call

    def _cuInit(self, flags):
        return 0 if self.devices else 100

    def _cuDeviceGetName(self, buffer, size, device):
        buffer.value = b"Orin"
        return 0

    def _cuDeviceGetAttribute(self, out, attribute, device):
        out._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def _cuDevicePrimaryCtxRetain(self, out, device):
        out._obj.value = 77
        return 0

    def _cuMemGetInfo_v2(self, free, total):
        free._obj.value = self.free
        return 0

    def _cuMemAlloc_v2(self, out, size):
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        out._obj.value = ctypes.addressof(block)
        return 0

    _cuMemAllocHost_v2 = _cuMemAlloc_v2

    def _cuMemFree_v2(self, address):
        del self.memory[address]
        return 0

    _cuMemFreeHost = _cuMemFree_v2

    def _cuMemcpyHtoDAsync_v2(self, to, source, size, stream):
        assert stream == 5
        return self.do(lambda: ctypes.memmove(to, source, size))

    _cuMemcpyDtoHAsync_v2 = _cuMemcpyHtoDAsync_v2

    def _cuStreamCreate(self, out, flags):
        out._obj.value = 5
        return 0

    def _cuStreamBeginCapture_v2(self, stream, mode):
        self.noted = []
        return 0

    def _cuStreamEndCapture(self, stream, out):
        self.graphs.append(self.noted)
        self.noted = None
        out._obj.value = len(self.graphs)
        return 0

    def _cuGraphInstantiateWithFlags(self, out, graph, flags):
        out._obj.value = graph.value
        return 0

    def _cuGraphLaunch(self, graph, stream):
        self.launches += 1
        for action in self.graphs[graph - 1]:
            action()
        return 0

    def _cuGetErrorString(self, code, out):
        out._obj.value = {2: b"out of memory", 100: b"no CUDA-capable device is detected"}[code]
        return 0


class Double:
    """The binding of one version. ``built`` says what builds were asked for; ``refuses`` is a builder's complaint."""

    def __init__(self, version, gpu):
        self.__version__ = version
        self._gpu, self.built, self.refuses, self.capturable = gpu, [], None, True
        self._strong = not version.startswith("8")
        severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)
        self.ILogger = type("ILogger", (), {"Severity": severity})
        if self._strong:
            self.IProgressMonitor = type("IProgressMonitor", (), {})
        flags = [name for name in ("FP16", "INT8", "TF32") if name in surface(version, "BuilderFlag")]
        self.BuilderFlag = SimpleNamespace(**{name: name for name in flags})
        creation = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
        known = surface(version, "NetworkDefinitionCreationFlag")
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**{k: v for k, v in creation.items() if k in known})
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
        self.TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")

    def _facade(self, kind, members):
        """An object of a class with the names that this version has: one that is missing here is a fault of ours."""
        known = surface(self.__version__, kind)
        assert set(members) >= known, f"{kind}: the double lacks {known - set(members)}"
        return SimpleNamespace(**{name: value for name, value in members.items() if name in known})

    def Builder(self, logger):
        builds = {"flags": set(), "cleared": set(), "profile": {}, "pool": {}}

        def create_network(flags):
            builds["network"] = flags
            network = {"num_inputs": 0, "get_input": lambda index: builds["inputs"][index]}
            builds["facade"] = self._facade("INetworkDefinition", network)
            builds["facade"].builds = builds
            return builds["facade"]

        def config():
            return self._facade(
                "IBuilderConfig",
                {
                    "set_memory_pool_limit": lambda pool, size: builds["pool"].update({pool: size}),
                    "clear_flag": builds["cleared"].add,
                    "set_flag": builds["flags"].add,
                    "add_optimization_profile": lambda profile: 0,
                    "progress_monitor": None,
                    "create_timing_cache": lambda data: None if data == b"broken" else {"data": data},
                    "set_timing_cache": lambda cache, ignore: builds.update(timings=cache) or True,
                    "get_timing_cache": lambda: self._facade("ITimingCache", {"serialize": lambda: b"timed"}),
                },
            )

        def build(network, config):
            self.built.append(builds)
            if self.refuses:
                logger.log(self.ILogger.Severity.WARNING, "just a remark")
                logger.log(self.ILogger.Severity.ERROR, self.refuses)
                return None
            if b"QuantizeLinear" in builds["model"] and not self._strong:
                assert "INT8" in builds["flags"]  # TensorRT 8 refuses quantized nodes else
            if self._strong:
                monitor = config.progress_monitor
                monitor.phase_start("Building", None, 2)
                monitor.phase_start("Tactics", "Building", 9)
                assert monitor.step_complete("Tactics", 0)
                assert monitor.step_complete("Building", 0)
                monitor.phase_finish("Building")
            return self.__version__.encode() + b"|" + builds["model"]

        members = {
            "create_network": create_network,
            "create_builder_config": config,
            "create_optimization_profile": lambda: self._facade(
                "IOptimizationProfile", {"set_shape": lambda name, *shapes: builds["profile"].update({name: shapes})}
            ),
            "build_serialized_network": build,
        }
        return self._facade("Builder", members)

    def OnnxParser(self, network, logger):
        errors = []

        def parse(data):
            model = onnx.load_from_string(data)
            unsigned = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8]
            if unsigned:
                errors.append(f"In node 0 (QuantDequantLinearHelper):\n  Non-zero zero point: {unsigned[0]}")
                return False
            network.builds["model"] = data
            network.builds["inputs"] = [
                SimpleNamespace(name=i.name, shape=[d.dim_value or -1 for d in i.type.tensor_type.shape.dim])
                for i in model.graph.input
            ]
            network.num_inputs = len(model.graph.input)
            return True

        return self._facade(
            "OnnxParser",
            {"parse": parse, "num_errors": 1, "get_error": lambda i: SimpleNamespace(desc=lambda: errors[i])},
        )

    def Runtime(self, logger):
        def load(data):
            version, _, model = data.partition(b"|")
            return self._engine(model) if version == self.__version__.encode() else None

        return self._facade("Runtime", {"deserialize_cuda_engine": load})

    def _engine(self, data):
        model = onnx.load_from_string(data)
        given = {i.name: i for i in model.graph.input}
        every = [*given.values(), *model.graph.output]
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        types = {i.name: i.type.tensor_type for i in every}

        def context():
            shapes, places = {}, {}

            def execute(stream):
                if self._gpu.noted is not None and not self.capturable:
                    return False
                return not self._gpu.do(lambda: self._infer(session, given, shapes, places))

            members = {
                "set_input_shape": lambda name, shape: shapes.update({name: tuple(shape)}) or True,
                "set_tensor_address": lambda name, place: places.update({name: place}) or True,
                "execute_async_v3": execute,
            }
            return self._facade("IExecutionContext", members)

        members = {
            "get_tensor_name": lambda index: every[index].name,
            "num_io_tensors": len(every),
            "get_tensor_mode": lambda name: "INPUT" if name in given else "OUTPUT",
            "get_tensor_dtype": lambda name: SimpleNamespace(name=DTYPES[types[name].elem_type]),
            "get_tensor_shape": lambda name: [d.dim_value or -1 for d in types[name].shape.dim],
            "num_layers": len(model.graph.node),
            "device_memory_size": 1 << 20,
            "device_memory_size_v2": 1 << 20,
            "create_execution_context": context,
        }
        return self._facade("ICudaEngine", members)

    def _infer(self, session, given, shapes, places):
        feeds = {
            name: np.ctypeslib.as_array((ctypes.c_uint8 * int(np.prod(shapes[name]))).from_address(places[name]))
            .reshape(shapes[name])
            .copy()
            for name in given
        }
        for output, answer in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            ctypes.memmove(places[output.name], np.ascontiguousarray(answer).ctypes.data, answer.nbytes)
