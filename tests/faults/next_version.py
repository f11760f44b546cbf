"""The package as its next version may be: records, specs and two messages of a shim have a field that this one lacks.

The field is never absent where the next version writes, so that what this version makes of it is tried everywhere.
"""

from __future__ import annotations

import base64
import re
import shutil
from importlib import import_module
from pathlib import Path

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

import deepinfer
from deepinfer.engine_environments.installed import own_engines

VERSION = "99.0.0"
FIELD, PLAIN = "tone", "plain"  # its value where nobody gave one

_RECORDS = {
    "resources.py": ("Deployment", "Device", "Node", "Placement", "ReplicaStatus", "NodeSettings"),
    "spec.py": ("DeploymentSpec", "RolloutPolicy"),
    "rollout.py": ("Rollout", "Good", "Revision"),
}
_MESSAGES = ("EngineInfo", "EngineState")
_HIGHEST_NUMBER = 1000  # of a field: far from any that is taken


def next_version(folder: Path) -> dict[str, str]:
    """Made in `folder`; the variables that bring a process to run it, whatever its working directory is."""
    package = folder / "deepinfer"
    shutil.copytree(Path(deepinfer.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, records in _RECORDS.items():
        for record in records:
            begin = rf'^(class {record}\(Record\):\n    """[^"]*"""\n)'
            _replaced(package / "fleet" / file, begin, rf'\1\n    {FIELD}: str = "{PLAIN}"\n')
    for field in ("ROLLOUT", "ALLOWED"):
        _replaced(package / "control_plane/management/admission.py", rf"^({field} = {{\n)", rf'\1    "{FIELD}": "x",\n')
    _replaced(package / "engine_shim/wire.py", r"(    http_endpoint: str = .*\n)", rf'\1    {FIELD}: str = "{PLAIN}"\n')
    _replaced(package / "engine_shim/state_wire.py", r"(pb\.EngineState\(\n)", rf'\1        {FIELD}="{PLAIN}",\n')
    _add_to_messages(package / "protos")
    about = folder / f"deepinfer-{VERSION}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: deepinfer\nVersion: {VERSION}\n")
    assert {engine.version for engine in own_engines()} != {VERSION}
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


def _replaced(file: Path, pattern: str, by: str) -> None:
    text, times = re.subn(pattern, by, file.read_text(), flags=re.MULTILINE)
    assert times == 1, f"{pattern} is {times} times in {file.name}; tell this test how the next version differs"
    file.write_text(text)


def _add_to_messages(protos: Path) -> None:
    name = "engine_service_descriptor"
    compiled = import_module(f"deepinfer.protos.{name}").DESCRIPTOR_SET
    files = FileDescriptorSet.FromString(base64.b64decode(compiled))
    messages = {message.name: message for file in files.file for message in file.message_type}
    for message in _MESSAGES:
        kind, label = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.LABEL_OPTIONAL
        messages[message].field.add(name=FIELD, json_name=FIELD, number=_HIGHEST_NUMBER, type=kind, label=label)
    coded = base64.b64encode(files.SerializeToString()).decode()
    (protos / f"{name}.py").write_text(f'DESCRIPTOR_SET = """{coded}"""\n')
