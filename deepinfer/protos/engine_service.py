"""The messages of EngineService, made from the compiled descriptor. Only `engine_shim/wire.py` uses them."""

from __future__ import annotations

from deepinfer.etcd.descriptors import message_types
from deepinfer.protos.engine_service_descriptor import DESCRIPTOR_SET

SERVICE = "deepinfer.engine.EngineService"

_types = message_types(DESCRIPTOR_SET)

GetInfoRequest, EngineInfo = _types["GetInfoRequest"], _types["EngineInfo"]
TokenizerPiece = _types["TokenizerPiece"]
CallOpen, AnswerHead = _types["CallOpen"], _types["AnswerHead"]
GenerateRequest, GenerateDelta = _types["GenerateRequest"], _types["GenerateDelta"]
WatchStateRequest, EngineState = _types["WatchStateRequest"], _types["EngineState"]
PipelineLayout, PipelineState = _types["PipelineLayout"], _types["PipelineState"]
DrainRequest, DrainReply = _types["DrainRequest"], _types["DrainReply"]
