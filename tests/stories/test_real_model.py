"""A real model, asked through the whole line with the official client, answers what transformers itself answers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError

from deepinfer.fleet.places import cache_dir
from tests import avx2_torch
from tests.fleet import Fleet, eventually, metric

QUESTIONS = [
    "What is the capital of France?",
    "Name three primary colours.",
    "Write one sentence about the sea.",
    "What is 2 + 2?",
    "Who wrote Romeo and Juliet?",
    "Say hello in Spanish.",
    "Why is the sky blue?",
    "List two fruits that are red.",
    "What do bees make?",
    "Translate 'good morning' to French.",
    "How many days has a week?",
    "What is the largest planet?",
    "Give a rhyme for cat.",
    "What is water made of?",
    "Describe a tree in five words.",
    "Which animal says moo?",
]
NEW_TOKENS = 16


def chat(fleet: Fleet, question: str, **options: Any) -> str:
    answer = fleet.openai.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        **{"max_tokens": NEW_TOKENS, **options},
    )
    return answer.choices[0].message.content or ""


@pytest.fixture(scope="module")
def transformers_answers(smollm2: Fleet) -> dict[str, str]:
    """Greedy `generate` on the folder the engine serves from, one question at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    avx2_torch.hold_this_process()
    torch.set_num_threads(1)  # two would wait for each other wherever other processes run
    folder = cache_dir() / "models" / "smollm2-135m-instruct"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    answers = {}
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(**prompt, do_sample=False, max_new_tokens=NEW_TOKENS)
        answers[question] = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def test_it_knows_the_capital_of_france(smollm2: Fleet) -> None:
    assert "Paris" in chat(smollm2, QUESTIONS[0])


def test_curl_without_a_content_type_works(smollm2: Fleet) -> None:
    body = json.dumps({"model": "smollm2", "messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = smollm2.http.post("/v1/chat/completions", content=body, headers=headers)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


@pytest.mark.timeout(500)
def test_sixteen_at_once_equal_one_by_one_and_transformers(
    smollm2: Fleet, transformers_answers: dict[str, str]
) -> None:
    alone = {question: chat(smollm2, question) for question in QUESTIONS}
    with ThreadPoolExecutor(16) as pool:
        together = dict(zip(QUESTIONS, pool.map(lambda q: chat(smollm2, q), QUESTIONS), strict=True))
    assert together == alone
    assert alone == transformers_answers


def test_a_stream_says_what_the_whole_answer_says(smollm2: Fleet) -> None:
    stream = smollm2.openai.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": QUESTIONS[0]}],
        temperature=0,
        max_tokens=NEW_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == chat(smollm2, QUESTIONS[0])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_completions_with_logprobs_and_two_answers(smollm2: Fleet) -> None:
    answer = smollm2.openai.completions.create(
        model="smollm2", prompt="The capital of France is", max_tokens=4, temperature=0.8, seed=7, n=2, logprobs=2
    )
    assert [c.index for c in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or []) == 4


def test_models_are_listed(smollm2: Fleet) -> None:
    assert "smollm2" in [m.id for m in smollm2.openai.models.list()]
    assert smollm2.openai.models.retrieve("smollm2").id == "smollm2"


def test_errors_have_openais_shape(smollm2: Fleet) -> None:
    with pytest.raises(NotFoundError, match="gpt-9"):
        smollm2.openai.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(BadRequestError, match="temperature") as refused:
        chat(smollm2, "hi", extra_body={"temperature": "hot"})
    assert refused.value.param == "temperature"


def test_a_client_that_hangs_up_stops_the_generation(smollm2: Fleet) -> None:
    body = {
        "model": "smollm2",
        "prompt": "Once upon a time",
        "max_tokens": 2000,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream("POST", f"{smollm2.url}/v1/completions", json=body) as answer:
        next(answer.iter_bytes())
    running = ("deepinfer_num_requests_running", 'model_name="smollm2"')
    eventually(lambda: metric(smollm2.http, *running) == 0, 1.0)
    assert "Paris" in chat(smollm2, QUESTIONS[0])
