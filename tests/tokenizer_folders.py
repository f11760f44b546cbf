"""Small real tokenizers of the families models use, saved as model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = ["the quick brown fox jumps over the lazy dog", "grüße, señor: naïve façade", "日本語 の 文", "🎉🎊 done"]
_WORDS = (Path(__file__).parent.parent / "ARCHITECTURE.md").read_text()


def byte_level_folder(folder: Path) -> Path:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it: tokens are bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken(" ü ", special=False)])
    return _saved(folder, tokenizer, "<|im_end|>")


def byte_fallback_folder(folder: Path) -> Path:
    """As Llama 2, Mistral and Phi-3 have it: pieces, with byte tokens for what no piece covers."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁fox", *"abcdefghijklmnopqrstuvwxyz.,", "th", "the"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("t", "h"), ("th", "e")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return _saved(folder, tokenizer, "</s>")


def _saved(folder: Path, tokenizer: Tokenizer, end: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _written(end), "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _written(token: str) -> dict[str, object]:
    """As transformers writes a token into tokenizer_config.json."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": token, "special": True} | flags


def _trained(pre_tokenizer: pre_tokenizers.PreTokenizer, **trained: Any) -> dict[str, Any]:
    """A BPE model's vocabulary and merges, of the project's own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=800, show_progress=False, **trained)
    tokenizer.train_from_iterator([*_TEXT, *_WORDS.splitlines()], trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def pretokenized_folder(folder: Path) -> Path:
    """As Llama 3 and Qwen have it: byte-level, with a pattern of their own, normalized, and whole words taken first."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    pattern = words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model = _trained(pre_tokenizers.Sequence([split, bytes_only]), initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|im_start|>", "<|im_end|>", "<|im"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<tool_call>", normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    return _saved(folder, tokenizer, "<|im_end|>")


def pieces_folder(folder: Path, spaces: str, *, eats_spaces: bool = False) -> Path:
    """As Llama 2 and Mistral have it. `spaces`: how a space is put before a text, "legacy" or a scheme of Metaspace.
    With `eats_spaces` special tokens take the spaces behind them with them, as Phi 3's.
    """
    model = _trained(pre_tokenizers.Metaspace(prepend_scheme="always"))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if spaces == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    names = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
    added = [AddedToken(name, normalized=False, rstrip=eats_spaces and name != "<s>") for name in names]
    tokenizer.add_special_tokens(added)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _saved(folder, tokenizer, "</s>")


def unigram_folder(folder: Path) -> Path:
    """As T5 and XGLM have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=700,
        special_tokens=special,
        unk_token="<unk>",
        initial_alphabet=[chr(letter) for letter in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_TEXT, *_WORDS.splitlines()], trainer)
    return _saved(folder, tokenizer, "</s>")


def word_piece_folder(folder: Path) -> Path:
    """As BERT has it: in small letters, and nothing is known of spaces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator([*_TEXT, *_WORDS.splitlines()], trainer)
    return _saved(folder, tokenizer, "[SEP]")


def spaced_folder(folder: Path) -> Path:
    """One whose tokens go over spaces, so that it must not be cut there."""
    model = _trained(pre_tokenizers.Split("\n", "isolated"), initial_alphabet=list(" \n"))
    tokenizer = Tokenizer(models.BPE(model["vocab"], [tuple(merge) for merge in model["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", normalized=False), AddedToken("</s>", normalized=False)])
    return _saved(folder, tokenizer, "</s>")


def left_stripping_folder(folder: Path) -> Path:
    """One whose special token takes the spaces before it with it."""
    byte_level_folder(folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    said["added_tokens"][2]["lstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(said))
    return folder


def looking_ahead_folder(folder: Path) -> Path:
    """One that splits words by what follows them, which no vocabulary tells."""
    pretokenized_folder(folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "n(?= a)"}, "behavior": "Isolated", "invert": False}
    said["pre_tokenizer"]["pretokenizers"].insert(0, split)
    (folder / "tokenizer.json").write_text(json.dumps(said))
    return folder
