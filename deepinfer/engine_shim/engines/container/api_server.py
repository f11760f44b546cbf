"""The server in the container, asked over HTTP. The only place that knows its paths and the shapes of its answers."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec

from deepinfer.engine_shim.engines.container.health import Answer
from deepinfer.fleet.errors import EngineWillNotStart

_ANSWER_SECONDS: Final = 5.0
_METRICS_SECONDS: Final = 2.0
_MODELS: Final = "/v1/models"
_IMAGES: Final = "use an image that serves vLLM's OpenAI API, such as vllm/vllm-openai"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a request's "model" may say."""

    name: str
    max_model_len: int  # 0: not told


class ApiServer:
    """One keep-alive connection for all questions, as long as they come one after the other."""

    def __init__(self, endpoint: str, api_key: str = "") -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it prints a line for every request
        self.endpoint = endpoint
        # Never through the proxy of the environment: it is on this node.
        self.http = httpx.AsyncClient(
            base_url=f"http://{endpoint}",
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            trust_env=False,
            timeout=_ANSWER_SECONDS,
        )
        self._asked: dict[tuple[str, tuple[str, ...]], httpx.Request] = {}
        self._health_path = "/health"
        self._metrics_path: str | None = "/metrics/"

    async def health(self) -> Answer:
        try:
            response = await self.http.get(self._health_path)
        except httpx.TimeoutException:
            return Answer.SILENT
        except httpx.TransportError:
            return Answer.CLOSED
        if response.status_code == 404 and self._health_path != _MODELS:
            self._health_path = _MODELS  # /health is vLLM's own
            return await self.health()
        if response.status_code < 500:
            return Answer.FINE
        return Answer.DEAD if response.status_code == 503 else Answer.UNWELL

    async def models(self) -> tuple[ServedModel, ...] | None:
        """None: it does not say now. `EngineWillNotStart` when it never will."""
        response = await self._answer(_MODELS)
        if response is None or response.status_code >= 500:
            return None
        if response.status_code in (401, 403):
            raise EngineWillNotStart(
                f"The container's server wants an API key ({response.status_code}); leave api_key and VLLM_API_KEY out."
            )
        said = None
        with suppress(msgspec.DecodeError):
            said = msgspec.json.decode(response.content)
        if response.status_code != 200 or not isinstance(said, dict) or not isinstance(said.get("data"), list):
            how = "without a list of models" if response.status_code == 200 else str(response.status_code)
            raise EngineWillNotStart(
                f"The image's server on {self.endpoint} is no OpenAI server: GET {_MODELS} answered {how}; {_IMAGES}."
            )
        return tuple(_model(card) for card in said["data"] if isinstance(card, dict))

    async def version(self) -> str:
        """Of vLLM; "" where it is not told."""
        response = await self._answer("/version")
        if response is None or response.status_code != 200:
            return ""
        with suppress(msgspec.DecodeError, AttributeError):
            return str(msgspec.json.decode(response.content).get("version", ""))
        return ""

    async def metrics(self, names: tuple[str, ...]) -> str | None:
        """The page, or only the lines of `names`; None: there is none now.

        vLLM makes 50 KB for its whole page, in 6 ms of its API server's time; behind the slash it makes what was asked
        for, in less than one. Where that has nothing (several API servers together), the whole page is asked for.
        """
        if self._metrics_path is None:
            return None
        named = self._metrics_path == "/metrics/"
        response = await self._answer(self._metrics_path, names if named else (), _METRICS_SECONDS)
        if response is None or response.status_code >= 500:
            return None
        if response.status_code == 200 and any(name in response.text for name in names):
            return response.text
        self._metrics_path = "/metrics" if named else None
        return await self.metrics(names)

    @property
    def has_metrics(self) -> bool:
        return self._metrics_path is not None

    async def close(self) -> None:
        await self.http.aclose()

    async def _answer(
        self, path: str, names: tuple[str, ...] = (), seconds: float = _ANSWER_SECONDS
    ) -> httpx.Response | None:
        """What is asked again and again is put into words once: of httpx's 2 ms a long query takes a fourth."""
        asked = self._asked.get((path, names))
        if asked is None:
            query = {"name[]": names} if names else None
            asked = self._asked[path, names] = self.http.build_request("GET", path, params=query, timeout=seconds)
        try:
            return await self.http.send(asked)
        except httpx.TransportError:
            return None


def _model(card: dict[str, Any]) -> ServedModel:
    longest = card.get("max_model_len")
    return ServedModel(str(card.get("id", "")), longest if isinstance(longest, int) else 0)
