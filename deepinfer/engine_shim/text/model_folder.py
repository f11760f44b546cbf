"""What a model folder's JSON files say about its text: special tokens, chat template, where an answer ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from deepinfer.fleet.errors import EngineWillNotStart, ModelUnavailable


class ModelFolder:
    """A Hugging Face style folder. Missing files say nothing; unreadable ones are refused."""

    @classmethod
    def at(cls, path: Path) -> Self:
        if not path.is_dir():
            raise ModelUnavailable(f"There is no model folder {path} on this node.")
        return cls(lambda name: (path / name).read_bytes(), str(path))

    def __init__(self, read: Callable[[str], bytes], where: str) -> None:
        """`read` gives a file's content; `FileNotFoundError`, or a `KeyError` where files are no files."""
        self._read = read
        self._where = where
        self._tokenizer_config = self._json("tokenizer_config.json")

    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token and their like, as text."""
        listed = {**self._json("special_tokens_map.json"), **self._tokenizer_config}
        tokens = {name: _text(value) for name, value in listed.items() if name.endswith("_token")}
        return {name: text for name, text in tokens.items() if text is not None}

    def chat_template(self) -> str | None:
        """chat_template.jinja, else the tokenizer_config's (its "default" one, when it has several)."""
        with suppress(FileNotFoundError, KeyError):
            return self._read("chat_template.jinja").decode()
        template = self._tokenizer_config.get("chat_template")
        if isinstance(template, list):
            template = next((each.get("template") for each in template if each.get("name") == "default"), None)
        return template if isinstance(template, str) else None

    def has_template_for_tools(self) -> bool:
        """Another one than `chat_template`, which transformers takes when there are tools."""
        with suppress(FileNotFoundError, KeyError):
            self._read("chat_template.jinja")
            return False
        named = self._tokenizer_config.get("chat_template")
        return isinstance(named, list) and any(each.get("name") == "tool_use" for each in named)

    def added_tokens(self) -> dict[int, dict[str, Any]]:
        """By their ids, as tokenizer_config.json says them."""
        said = self._tokenizer_config.get("added_tokens_decoder")
        return {int(number): token for number, token in said.items()} if isinstance(said, dict) else {}

    def eos_token_ids(self) -> tuple[int, ...]:
        """Of generation_config.json, else of config.json; beside the tokenizer's own."""
        for name in ("generation_config.json", "config.json"):
            ids = self._json(name).get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (ids,)
        return ()

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._read(name).decode())
        except (FileNotFoundError, KeyError):
            return {}
        except (OSError, ValueError) as error:
            raise EngineWillNotStart(f"{self._where}/{name} cannot be read: {error}.") from error
        return content if isinstance(content, dict) else {}


def _text(token: Any) -> str | None:
    """Written as text, or as a table with the text in it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
