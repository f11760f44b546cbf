"""Names that the command line makes up when the user gives none. Pure."""

from __future__ import annotations

import re


def deployment_name(model: str) -> str:
    """The model's last path part, as the management API names a deployment; the server has the last word."""
    return _plain(model.rstrip("/").rpartition("/")[2])


def node_name(hostname: str) -> str:
    return _plain(hostname.partition(".")[0]) or "node"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]", "-", text.lower())[:63].strip("._-")
