"""AgentService: its methods' paths and its messages, made from the compiled descriptor."""

from __future__ import annotations

from deepinfer.etcd.descriptors import message_types
from deepinfer.protos.agent_service_descriptor import DESCRIPTOR_SET

SERVICE = "deepinfer.agent.AgentService"
READ_LOGS = f"/{SERVICE}/ReadLogs"

_types = message_types(DESCRIPTOR_SET)

ReadLogsRequest, LogChunk = _types["ReadLogsRequest"], _types["LogChunk"]
