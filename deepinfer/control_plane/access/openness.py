"""What is said at the start of a server that more may use than is wise."""

from __future__ import annotations

import logging

from deepinfer.fleet.config import InvalidConfig, ServeConfig
from deepinfer.fleet.loopback import is_loopback

log = logging.getLogger(__name__)


def check_openness(serve: ServeConfig) -> None:
    """Raises `InvalidConfig` where any web page could use a server that wants no keys; warns where any machine can."""
    if serve.requires_keys:
        return
    if "*" in serve.cors_origins:
        raise InvalidConfig(
            'cors_origins = ["*"] wants API keys: name the origins, or set authentication = "required".'
        )
    if not is_loopback(serve.host):
        log.warning(
            "serve listens on %s without authentication: whoever reaches it uses its models and runs programs on every "
            "node. Leave --without-authentication out, and make keys with `deepinfer keys create`.",
            serve.host,
        )
