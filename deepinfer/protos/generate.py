"""Compile every .proto to a *_descriptor.py next to it: `python -m deepinfer.protos.generate`. Development only.

The output holds a FileDescriptorSet in base64 and no code; `deepinfer.etcd.descriptors` says why.
"""

from __future__ import annotations

import base64
import tempfile
import textwrap
from importlib.resources import files
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
PROTOS = (
    PACKAGE / "etcd" / "rpc.proto",
    PACKAGE / "protos" / "engine_service.proto",
    PACKAGE / "protos" / "agent_service.proto",
)


def descriptor_module(proto: Path) -> Path:
    """Where the compiled form of `proto` is kept."""
    return proto.with_name(f"{proto.stem}_descriptor.py")


def compiled(proto: Path) -> str:
    """The source of that module. Needs grpcio-tools, which only the `check` extra installs."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "descriptors"
        well_known = f"-I{files('grpc_tools') / '_proto'}"
        arguments = [f"-I{proto.parent}", well_known, "--include_imports", f"--descriptor_set_out={output}", str(proto)]
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit(f"{proto} does not compile; the compiler's message is above.")
        lines = "\n".join(textwrap.wrap(base64.b64encode(output.read_bytes()).decode(), 110))
    return (
        f'"""Generated from {proto.name} by `python -m deepinfer.protos.generate`. Do not edit."""\n\n'
        f'DESCRIPTOR_SET = """\n{lines}\n"""\n'
    )


def main() -> None:
    for proto in filter(Path.exists, PROTOS):
        descriptor_module(proto).write_text(compiled(proto))


if __name__ == "__main__":
    main()
