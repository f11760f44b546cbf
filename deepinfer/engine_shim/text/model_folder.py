"""What a model folder's JSON files say about its text: special tokens, chat template, where an answer ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepinfer.fleet.errors import EngineWillNotStart, ModelUnavailable


class ModelFolder:
    """A Hugging Face style folder. Missing files say nothing; unreadable ones are refused."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ModelUnavailable(f"There is no model folder {path} on this node.")
        self._path = path
        self._tokenizer_config = self._json("tokenizer_config.json")

    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token and their like, as text."""
        listed = {**self._json("special_tokens_map.json"), **self._tokenizer_config}
        tokens = {name: _text(value) for name, value in listed.items() if name.endswith("_token")}
        return {name: text for name, text in tokens.items() if text is not None}

    def chat_template(self) -> str | None:
        """chat_template.jinja, else the tokenizer_config's (its "default" one, when it has several)."""
        file = self._path / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        template = self._tokenizer_config.get("chat_template")
        if isinstance(template, list):
            template = next((each.get("template") for each in template if each.get("name") == "default"), None)
        return template if isinstance(template, str) else None

    def eos_token_ids(self) -> tuple[int, ...]:
        """Of generation_config.json, else of config.json; beside the tokenizer's own."""
        for name in ("generation_config.json", "config.json"):
            ids = self._json(name).get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (ids,)
        return ()

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self._path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise EngineWillNotStart(f"{self._path / name} cannot be read: {error}.") from error
        return content if isinstance(content, dict) else {}


def _text(token: Any) -> str | None:
    """Written as text, or as a table with the text in it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
