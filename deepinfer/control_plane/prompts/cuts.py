"""Where a text may be cut without changing its tokens: at special tokens, and between words. Pure.

*   At an added token that is looked for in the text as it came (not `normalized`): a tokenizer cuts there itself, and
    deals with each piece alone. It must not depend on the letters beside it.
*   At a space between two visible ASCII characters (it goes with the word behind it), where no token has such a
    character with a space behind it: then no merge can cross the cut, since it would make such a token. What else a
    tokenizer does to a text (normalizing, splitting into words) must be of a kind known to look no farther than that.

Whether the tokens really are the same, is tried besides (`texts.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

VISIBLE: Final = frozenset(map(chr, range(ord("!"), ord("~") + 1)))
SPACES: Final = "".join(filter(str.isspace, map(chr, [*range(9, 14), 32, 0x85, *range(0xA0, 0x3001)])))
"""What a token takes with it that has `rstrip`."""
_BEFORE_SPACE = re.compile("[!-~][ \N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}].*")
_LOCAL_NORMALIZERS: Final = frozenset({"Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Prepend"})
_LOCAL_REPLACEMENTS: Final = ({"String": " "}, {"Regex": " {2,}"})
_LOCAL_SPLITS: Final = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"})

_OF_PLACES: Final = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
_Step = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cuts:
    """`special` splits a text into pieces and the added tokens between them, by turns.

    `reason`: of not cutting more.
    """

    special: re.Pattern[str] | None = None
    lead: str = ""  # a special token that pieces can be tried behind
    strips: frozenset[str] = frozenset()  # special tokens that take the spaces behind them with them
    words: bool = False
    reason: str = ""


def cuts_of(tokenizer: Tokenizer) -> Cuts:
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.content]
    special = [token for token in added if not token.normalized]
    lead = next((token.content for token in special if not token.rstrip), "")
    odd = next((token.content for token in special if token.single_word or token.lstrip), None)
    if odd is not None:
        return Cuts(reason=f"its token {odd!r} depends on what stands before it")
    if not lead:
        return Cuts(reason="it has no special token")
    contents = sorted((token.content for token in special), key=len, reverse=True)  # the longer one is meant
    strips = frozenset(token.content for token in special if token.rstrip)
    reason = _why_not_words(tokenizer, added)
    pattern = re.compile("(" + "|".join(map(re.escape, contents)) + ")")
    return Cuts(pattern, lead, strips, not reason, reason)


def _why_not_words(tokenizer: Tokenizer, added: Sequence[AddedToken]) -> str:
    kind, steps, splits = type(tokenizer.model).__name__, _steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer)
    far = [step["type"] for step in steps if not _is_local(step)]
    far += [split["type"] for split in splits if split["type"] not in _LOCAL_SPLITS]
    if far:
        return f"its {far[0]} may look beyond a word"
    by_words = any(split["type"] == "Metaspace" and split.get("split", True) for split in splits)
    if kind not in ("BPE", "Unigram") or (kind == "Unigram" and not by_words):
        return f"its model is {kind}"
    if any(getattr(tokenizer.model, name, None) for name in _OF_PLACES):
        return "its tokens depend on where in a word they are"
    within = [token for token in added if token.normalized]
    if any(token.lstrip or token.rstrip or token.single_word for token in within):
        return "some of its added tokens depend on what stands beside them"
    spaces = " \N{LOWER ONE EIGHTH BLOCK}" if any(step["type"] == "Replace" for step in steps) else " "
    spaced = next((each.content for each in within if re.search(f"[!-~][{spaces}]", each.content)), None)
    return _why_not_tokens(tokenizer, kind, {token.content for token in added}) if spaced is None else _over(spaced)


def _why_not_tokens(tokenizer: Tokenizer, kind: str, added: set[str]) -> str:
    """`added` are found in a text before it is split into others, so that they are no tokens of those others."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False).keys()
    crossing = _BEFORE_SPACE.search("\n".join(vocabulary - added))
    if crossing is not None:
        return _over(crossing[0])
    fuses = kind == "Unigram" or getattr(tokenizer.model, "fuse_unk", False)
    if fuses and not getattr(tokenizer.model, "byte_fallback", False) and not vocabulary >= VISIBLE:
        return "it has no tokens for some characters"
    return ""


def _over(token: str) -> str:
    return f"its token {token!r} goes over a space"


def _steps(part: Any) -> list[_Step]:
    """What a normalizer or pre-tokenizer does, one after the other."""
    return [] if part is None else list(_flat(json.loads(part.__getstate__())))


def _flat(step: _Step) -> Iterator[_Step]:
    inner = step.get("normalizers", step.get("pretokenizers"))
    if inner is None:
        yield step
        return
    for each in inner:
        yield from _flat(each)


def _is_local(step: _Step) -> bool:
    return step["type"] in _LOCAL_NORMALIZERS or (step["type"] == "Replace" and step["pattern"] in _LOCAL_REPLACEMENTS)
