"""Where the nodes of a model run, and which of them are not where they were asked to be."""

from __future__ import annotations

from collections.abc import Mapping

from edgepose.types import Engine

__all__ = ["place_device", "stray_words", "strays"]


def place_device(place: str) -> str:
    """The device that a place of :meth:`Engine.placement` is on.

    ``CPUExecutionProvider``, ``CPU f32`` and ``CPU XNNPACK`` are all ``cpu``, ``GPU f16`` is ``gpu``,
    ``CUDAExecutionProvider``, ``CUDA`` and ``cuda:0`` are ``cuda``; a delegate's path is itself.
    """
    if place.startswith("delegate:"):
        return place
    return place.partition(" ")[0].partition(":")[0].removesuffix("ExecutionProvider").lower()


def strays(engine: Engine) -> dict[str, int]:
    """Nodes that run on another device than the engine's, by place. An engine on the CPU has none."""
    return {} if _bare(engine.device) == "cpu" else _elsewhere(engine.device, engine.placement())


def stray_words(name: str, device: str, placement: Mapping[str, int]) -> str | None:
    """What to say of a variant whose nodes do not all run on its device; None where they do."""
    found = _elsewhere(device, placement)
    where = ", ".join(f"{count} on {place}" for place, count in found.items())
    return f"{name}: not all nodes run on {device}: {where} (--strict refuses this)" if found else None


def _elsewhere(device: str, placement: Mapping[str, int]) -> dict[str, int]:
    return {place: count for place, count in placement.items() if place_device(place) != _bare(device)}


def _bare(device: str) -> str:
    return device if device.startswith("delegate:") else device.partition(":")[0]
