"""Message classes from a compiled descriptor set, without generated code.

Generated protobuf code refuses every runtime older than its compiler, and an engine's environment pins its own runtime.
A descriptor set has no such tie: this works beside protobuf 5.29 to 7. The pool is private, so equal message names in
other packages of the process never clash.
"""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

MessageType = Any
"""A message class made at run time; there is nothing static for a type checker to know."""


def message_types(descriptor_set_base64: str) -> dict[str, MessageType]:
    """Every top-level message of the set's last file (the files it imports come before it), by its short name."""
    files = descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(descriptor_set_base64)).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.AddSerializedFile(file.SerializeToString())
    package = files[-1].package
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{message.name}"))
        for message in files[-1].message_type
    }
