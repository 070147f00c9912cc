"""Which networks have an ONNX graph."""

from __future__ import annotations

from forecaster.spec import Spec


def find_missing_part(spec: Spec) -> str | None:
    """Returns what the graph lacks for a network of this specification; None if it can be exported."""
    if spec.scaling == "running":
        return "the running scale"
    if spec.head.is_symbolic:
        return "the symbols head"
    if spec.decoder == "block":
        return "the block decoder"
    return "embedded inputs" if spec.network.embed else None
