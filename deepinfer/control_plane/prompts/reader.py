"""The tokens of a model's prompts, as its engines compute them: rendered by its template, and pieced together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import inf
from typing import Any, Final, Self

from tokenizers import Tokenizer

from deepinfer.control_plane.prompts.byte_texts import ByteTexts
from deepinfer.control_plane.prompts.prompt import Prompt
from deepinfer.control_plane.prompts.sample import SAMPLE
from deepinfer.control_plane.prompts.texts import Allowance, Texts, TooMuch
from deepinfer.engine_shim.kv_chain import token_bytes
from deepinfer.engine_shim.prompt_files import BYTES, FOLDER, TOKENIZER, PromptFiles
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.text.chat_template import ChatPrompt, ChatTemplate
from deepinfer.engine_shim.text.model_folder import ModelFolder
from deepinfer.engine_shim.text.model_tokenizer import tokenizer_of
from deepinfer.fleet.errors import DeepinferError, EngineWillNotStart

log = logging.getLogger(__name__)

UNFORESEEN: Final = b""
"""The tokens of a prompt of which nothing can be said."""
_AT_ONCE: Final = 128_000
"""Characters of a prompt that is rendered between the streams of everybody else: a quarter of a millisecond."""
_MESSAGES_AT_ONCE: Final = 256
_NEW_AT_ONCE: Final = 2_000
"""Of those, that may be encoded. A thousand take a fifth of a millisecond."""
_AROUND_NOTHING: Final = (b"", b"")


class PromptsUnforeseen(DeepinferError):
    """What tokens this model's prompts will be cannot be foreseen."""


class PromptReader:
    """Of one model. Any thread may read; what one has read, all know.

    `grain` and `reason` tell how finely it remembers, and why no finer (`texts.py`).
    """

    def __init__(
        self,
        texts: Texts | ByteTexts,
        template: ChatTemplate | None,
        around: tuple[bytes, bytes] | None,
        tools_apart: bool = False,
    ) -> None:
        """`around`: the special tokens that a text gets when it is to have them; None: that depends. `tools_apart`:
        chats with tools have another template.
        """
        self.grain = texts.grain
        self.reason = texts.reason
        self.shows_tools = template is not None and "tools" in template.variables and not tools_apart
        self._tools_apart = tools_apart
        self._texts = texts
        self._template = template
        self._around = around

    @classmethod
    def of(cls, files: PromptFiles) -> Self:
        """Slow, and the library that reads a tokenizer.json lets no other thread of this process run meanwhile: 0.1 s
        for 50,000 tokens, 0.4 s for 130,000. `PromptsUnforeseen` when nothing can be made of them.
        """
        if files.kind == BYTES:
            return cls(ByteTexts(), ByteTokenizer().chat_template, _AROUND_NOTHING)
        if files.kind != FOLDER or TOKENIZER not in files.files:
            raise PromptsUnforeseen(f"The engine reads prompts in a way ({files.kind!r}) that is not known here.")
        try:
            return cls._of_folder(files)
        except (PromptsUnforeseen, EngineWillNotStart) as error:
            raise PromptsUnforeseen(str(error)) from error
        except Exception as error:  # what a stranger wrote into them; the library raises nothing narrower either
            raise PromptsUnforeseen(f"The model folder's files cannot be made sense of: {error!r}.") from error

    @classmethod
    def _of_folder(cls, files: PromptFiles) -> Self:
        folder = ModelFolder(files.files.__getitem__, "the model folder")
        tokenizer = tokenizer_of(files.files[TOKENIZER], TOKENIZER)
        template = folder.chat_template()
        special = folder.special_tokens()
        _check_added(tokenizer, folder.added_tokens())
        texts = Texts(tokenizer)
        chats = ChatTemplate(template, special) if template else None
        return cls(texts, chats, _around(tokenizer, texts), folder.has_template_for_tools())

    def known(self, prompt: Prompt) -> bytes | None:
        """At once. None: it would take long, so `read` it, in a thread. `UNFORESEEN` where nothing can be said."""
        content = prompt.content
        if prompt.size > _AT_ONCE or (isinstance(content, ChatPrompt) and len(content.messages) > _MESSAGES_AT_ONCE):
            return None
        try:
            return self._read(prompt, Allowance(_NEW_AT_ONCE))
        except TooMuch:
            return None

    def read(self, prompt: Prompt) -> bytes:
        """However long it takes. `UNFORESEEN` where nothing can be said."""
        return self._read(prompt, Allowance(inf))

    def _read(self, prompt: Prompt, allowance: Allowance) -> bytes:
        content = prompt.content
        if isinstance(content, bytes):
            return content
        around = self._around if prompt.add_special_tokens else _AROUND_NOTHING
        if around is None:
            return UNFORESEEN
        try:
            text = content if isinstance(content, str) else self._rendered(content)
            tokens = self._texts.tokens(text, allowance)
        except TooMuch:
            raise
        except Exception as error:  # a template runs as it was written, and then the engine refuses the request
            log.debug("a prompt could not be read", exc_info=error)
            return UNFORESEEN
        return around[0] + tokens + around[1] if prompt.add_special_tokens else tokens

    def _rendered(self, chat: ChatPrompt) -> str:
        if self._template is None or (chat.tools and self._tools_apart):
            raise PromptsUnforeseen("The model has no chat template for this.")
        return self._template.render(chat)


def _check_added(tokenizer: Tokenizer, said: Mapping[int, Mapping[str, Any]]) -> None:
    """Some engines go by the tokenizer_config.json's and some by the tokenizer.json's: they have to be the same."""
    known = tokenizer.get_added_tokens_decoder()
    for number, token in said.items():
        mine = known.get(number)
        for name in ("content", "lstrip", "rstrip", "single_word", "normalized"):
            if mine is None or token.get(name, getattr(mine, name)) != getattr(mine, name):
                raise PromptsUnforeseen(
                    f"Of its token {number} tokenizer.json and tokenizer_config.json say different things."
                )


def _around(tokenizer: Tokenizer, texts: Texts) -> tuple[bytes, bytes] | None:
    """What a text gets before and behind it; None unless all texts get the same."""
    before, behind = b"", b""
    for text in ("a", *SAMPLE):
        whole = token_bytes(tokenizer.encode(text, add_special_tokens=True).ids)
        alone = texts.whole(text)
        if text == "a":
            before, _, behind = whole.partition(alone)
        if whole != before + alone + behind:
            return None
    return before, behind
