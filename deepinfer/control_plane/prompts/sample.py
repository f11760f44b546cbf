"""What a tokenizer is tried on: a little of everything that tokenizers treat in a way of its own."""

from __future__ import annotations

from typing import Final

SAMPLE: Final = (
    "",
    " ",
    "a",
    " a b  c   d\n\ne \n f\t g",
    "The quick brown fox jumps over the lazy dog, then it's gone; they've won and we'll see the DOG'S bone.",
    "  leading and trailing  ",
    "\nnew line first and last\n",
    "\r\nWindows lines\r\nand tabs\tin between\tof words\r\n\r\n",
    "McDonald iPhone HTTPServer snake_case camelCase kebab-case x2 2x v1.2.3 3.14159 1,000,000 12345678901234567890",
    "x = {'a': [1, 2, 3], \"b\": None}  # comment\ndef f(self, *args):\n    return self._x[0]  \n\n\nif x:\n\tpass\n",
    "https://example.org/a?b=c&d=%20e#f user@example.org C:\\path\\to /usr/bin/env $HOME ~ ```",
    "**bold** _it_ <b>tag</b> # heading - item * item 1. one 2) two | a | b",
    "--- > quoted -> arrow => == != <= && || ++",
    "Grüße señor naïve façade coöperate İstanbul \u017fharp KELVIN Straße ﬁ ﬂ ½ ² Ⅷ ℀",
    "Å A\u030a e\u0301 n\u0303o o\u0308l",
    "日本語 の 文 と English mixed 中文字 한국어 텍스트 ไทย हिन्दी नमस्ते العربية עברית русский Ελληνικά ΣΑΣ",
    "emoji 🎉🎊 👩\u200d👩\u200d👧 🇫🇷 ok",
    "zero \u200b width \u00a0 nbsp \u3000 wide \u2003 em \ufeff bom \u00ad soft \u2581 block \u0120 gee",
    "I 'm it 's don 't I'M IT'S can't O 'Neil 'quoted words' \"double quoted\" (in brackets) [1] {2} <3>",
    "a.b.c a , b . c ! d ?",
    "   four    spaces     five\n   and\n  lines  with  two  spaces ",
    "aA bB a b c d e f A B C D z Z I a I",
    "null\x00 control\x01\x1f\x7f del\x85 nel \ud7ff \ue000 \U0010ffff end",
)
