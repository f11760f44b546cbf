"""The committed descriptors are what the compiler makes of the .proto files, and stay out of the default pool."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from deepinfer.etcd import messages as pb
from deepinfer.protos.generate import PROTOS, compiled, descriptor_module


@pytest.mark.parametrize("proto", [proto for proto in PROTOS if proto.exists()], ids=lambda proto: proto.name)
def test_the_committed_descriptor_is_fresh(proto: Path) -> None:
    assert descriptor_module(proto).read_text() == compiled(proto), "run `python -m deepinfer.protos.generate`"


def test_our_messages_stay_out_of_the_default_pool() -> None:
    assert pb.RangeRequest.DESCRIPTOR.full_name == "deepinfer.etcdpb.RangeRequest"
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("deepinfer.etcdpb.RangeRequest")


def test_field_numbers_are_etcds() -> None:
    put = pb.PutRequest(key=b"k", value=b"v", lease=7)
    assert put.SerializeToString() == b"\x0a\x01k\x12\x01v\x18\x07"
