"""The tokens of a half answer: those of its text before the white space at its end are the ones it was made of."""

from __future__ import annotations

from random import Random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from deepinfer.control_plane.gateway.sent_stream import Sent

ANSWERS = [
    "A: The answer is:\n\nRomeo.\n\n\n  1. the dog  barked,\n2. 1234 times!\n\n",
    "it's\t\tover .\n \nthe  fox\n",
]
ENDS = ["it ends\n\n", "so\n\n\n", "so   ", "so  ", "\n \n", "\t\t"]


def like_gpt_2() -> Tokenizer:
    """And as SmolLM2's, with tokens of more than one white space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, min_frequency=1, vocab_size=400, show_progress=False)
    tokenizer.train_from_iterator([*ANSWERS, *ENDS * 9], trainer)
    return tokenizer


def test_wherever_a_stream_is_cut_the_tokens_of_its_closed_text_are_those_it_was_made_of() -> None:
    tokenizer, chance, misread = like_gpt_2(), Random(7), 0
    for answer in ANSWERS:
        encoding = tokenizer.encode(answer)
        for cut in range(len(encoding.ids) + 1):
            texts: list[str] = []
            for start, end in encoding.offsets[:cut]:
                several = texts and chance.random() < 0.3  # as a slow reader gets them
                texts.append((texts.pop() if several else "") + answer[start:end])
            closed = tokenizer.encode("".join(Sent(texts=texts).closed_texts())).ids
            assert closed == encoding.ids[: len(closed)]
            assert len(closed) == cut or texts[-1][-1].isspace()
            misread += tokenizer.encode("".join(texts)).ids != encoding.ids[:cut]
    assert misread >= 3  # with the white space
