"""Layouts and states of replicas in stages on the wire: bytes to values and back, as `wire.py` does it."""

from __future__ import annotations

from deepinfer.fleet.pipeline import Layout, PipelineState
from deepinfer.protos import engine_service as pb


def layout_to_bytes(layout: Layout) -> bytes:
    return bytes(pb.PipelineLayout(layout=layout.to_json()).SerializeToString())


def layout_from_bytes(data: bytes) -> Layout:
    return Layout.model_validate_json(pb.PipelineLayout.FromString(data).layout)


def pipeline_state_to_bytes(state: PipelineState) -> bytes:
    return bytes(pb.PipelineState(state=state.to_json()).SerializeToString())


def pipeline_state_from_bytes(data: bytes) -> PipelineState:
    return PipelineState.model_validate_json(pb.PipelineState.FromString(data).state)
