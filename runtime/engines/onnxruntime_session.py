"""What both kinds of ONNX Runtime sessions are asked before they are used: their shapes, and where their nodes run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.errors import MachineError

REINSTALL_GPU = 'pip install "damp-deploy[gpu]" in an environment without the package onnxruntime'
TELL_PLACES = {"session.record_ep_graph_assignment_info": "1"}
"""Session setting: without it ONNX Runtime does not remember which provider runs a node."""


def session_shapes(session: Any) -> dict[str, tuple[int, ...] | None]:
    """{name: shape} of a session's inputs and outputs, None for one that is not float32; see `check_signature`."""
    ends = (*session.get_inputs(), *session.get_outputs())
    return {end.name: tuple(end.shape) if end.type == "tensor(float)" else None for end in ends}


def check_placement(session: Any, provider: str) -> str:
    """Refuse a session that has a node anywhere but in `provider`; returns what was found, for people.

    ONNX Runtime before 1.24 does not tell where nodes run: there its own refusal of the CPU must do.
    """
    providers = session.get_providers()
    if not providers or providers[0] != provider:
        raise MachineError(
            "ONNX Runtime chose another provider than asked for", key="provider", value=providers, remedy=REINSTALL_GPU
        )
    tell: Callable[[], Any] | None = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return f"{provider} alone is allowed; this version does not tell where nodes run"
    places: dict[str, int] = {}
    for part in tell():
        places[part.ep_name] = places.get(part.ep_name, 0) + len(part.get_nodes())
    if set(places) != {provider}:
        raise MachineError(
            f"ONNX Runtime does not run the whole graph in {provider}",
            key="provider",
            value=", ".join(f"{count} nodes in {name}" for name, count in sorted(places.items())) or "no nodes",
            remedy="use another engine, such as tensorrt",
        )
    return f"all {places[provider]} nodes in {provider}"
