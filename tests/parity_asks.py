"""Requests that two servers of one vLLM must answer alike: (a name, the path, the body). Short, and at temperature 0
or with a seed, so that the same tokens come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODEL = "smollm2"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "weather"}}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11}
USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
LONG = "sea " * 3000
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="  # the gateway fetches no other


@dataclass(frozen=True)
class Ask:
    """One request; a body of None is a GET."""

    name: str
    path: str
    body: Any


def _chat(name: str, content: str = "What is the capital of France?", **options: Any) -> Ask:
    messages = [{"role": "user", "content": content}]
    return Ask(
        f"chat, {name}",
        CHAT,
        {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 6, **options},
    )


def _complete(name: str, prompt: Any = "The sea is", **options: Any) -> Ask:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 6, **options}
    return Ask(f"completion, {name}", COMPLETIONS, body)


def _structured(name: str, **form: Any) -> Ask:
    return _chat(f"structured {name}", "Alice is 30 years old.", max_tokens=24, structured_outputs=form)


def _post(path: str, **body: Any) -> Ask:
    return Ask(path.strip("/"), path, {"model": MODEL, **body})


CHATS = (
    _chat("plain"),
    _chat("max_completion_tokens", max_tokens=None, max_completion_tokens=4),
    _chat("stop", stop=["capital"], max_tokens=12),
    _chat("stop kept", stop="capital", include_stop_str_in_output=True, max_tokens=12),
    _chat("stop_token_ids", stop_token_ids=[260], max_tokens=12),
    _chat("seed", **SAMPLED),
    _chat("n=3", n=3, **SAMPLED),
    _chat("logprobs", logprobs=True, top_logprobs=3),
    _chat("prompt_logprobs", prompt_logprobs=1, max_tokens=2),
    _chat("min_tokens", min_tokens=12, max_tokens=12),
    _chat("logit_bias", logit_bias={"504": -100}),
    _chat("penalties", frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=1.2),
    _chat("top_p, top_k, min_p", top_p=0.9, top_k=20, min_p=0.05, **SAMPLED),
    _chat("echo", echo=True),
    _chat("token ids", return_token_ids=True),
    _chat("bad_words", bad_words=["capital"]),
    _chat("an unknown role", messages=[{"role": "nobody", "content": "Hi"}]),
    _chat("ignore_eos", ignore_eos=True, max_tokens=12, skip_special_tokens=False),
    _chat("content in parts", messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]),
    _chat("a name of its own for a field", extra_field_of_nobody=True),
    _chat("priority", priority=0, user="somebody", metadata={"a": "b"}),
    _chat(
        "continued",
        messages=[{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "The colour is"}],
        add_generation_prompt=False,
        continue_final_message=True,
    ),
    _chat("stream", stream=True),
    _chat("stream with usage", **USAGE),
    _chat(
        "stream with usage in each", stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
    ),
    _chat("stream with logprobs", stream=True, logprobs=True, top_logprobs=2),
    _chat("stream with token ids", stream=True, return_token_ids=True),
    _chat("stream with stop", stream=True, stop=["capital"], max_tokens=12),
    _chat("stream n=2", n=2, stream=True, **SAMPLED),
)

STRUCTURES = (
    _chat(
        "json_schema",
        "Alice is 30 years old.",
        max_tokens=24,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
    ),
    _chat("json_object", "JSON of Alice", response_format={"type": "json_object"}, max_tokens=10),
    _structured("choice", choice=["young", "old"]),
    _structured("regex", regex=r"[A-Z][a-z]{2,4} is [0-9]{2}"),
    _structured("grammar", grammar='root ::= "she is " ("30" | "31")'),
    _structured("json", json=PERSON),
    _chat("tools, auto", tools=[WEATHER, CLOCK], tool_choice="auto"),
    _chat("tools, required", tools=[WEATHER, CLOCK], tool_choice="required", max_tokens=32),
    _chat("tools, named", tools=[WEATHER], tool_choice=NAMED, max_tokens=20),
    _chat("tools, none", tools=[WEATHER], tool_choice="none"),
    _chat("tools, required, stream", tools=[WEATHER], tool_choice="required", max_tokens=32, **USAGE),
    _chat("tools, named, stream", tools=[WEATHER], tool_choice=NAMED, max_tokens=20, stream=True),
    _chat("tools, auto, stream", tools=[WEATHER], tool_choice="auto", stream=True),
)

COMPLETED = (
    _complete("plain"),
    _complete("two prompts", ["The sea is", "The sky is"]),
    _complete("token ids", [504, 3495, 314]),
    _complete("echo and logprobs", echo=True, logprobs=2),
    _complete("n=3", n=3, **SAMPLED),
    _complete("seed", **SAMPLED),
    _complete("an unknown best_of", best_of="many"),
    _complete("stop", stop=["."], max_tokens=16),
    _complete("prompt_logprobs", prompt_logprobs=1, max_tokens=1),
    _complete("min_tokens", min_tokens=10, max_tokens=10),
    _complete("logit_bias", logit_bias={"253": -100}),
    _complete("token ids returned", return_token_ids=True),
    _complete("regex", structured_outputs={"regex": "[0-9]{3}"}),
    _complete("json_schema", response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}),
    _complete("stream", stream=True),
    _complete("stream with usage", **USAGE),
    _complete("stream with logprobs", stream=True, logprobs=1),
    _complete("stream with echo", stream=True, echo=True),
    _complete("stream of two prompts", ["The sea is", "The sky is"], stream=True),
)

OTHERS = (
    _post("/tokenize", prompt="The sea"),
    _post("/tokenize", messages=[{"role": "user", "content": "Hi"}], return_token_strs=True),
    _post("/detokenize", tokens=[504, 3495]),
    _post("/invocations", prompt="The sea is", max_tokens=4, temperature=0),
    _post(RESPONSES, input="What is the capital of France?", max_output_tokens=6, temperature=0),
    _post(RESPONSES, input="What is the capital of France?", max_output_tokens=6, temperature=0, stream=True),
    _post(MESSAGES, messages=[{"role": "user", "content": "Hi"}], max_tokens=6, temperature=0),
    _post(MESSAGES, messages=[{"role": "user", "content": "Hi"}], max_tokens=6, temperature=0, stream=True),
    _post(f"{MESSAGES}/count_tokens", messages=[{"role": "user", "content": "Hi"}]),
    _post(
        f"{CHAT}/batch",
        messages=[[{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Bye"}]],
        max_tokens=4,
        temperature=0,
    ),
    _post(f"{CHAT}/render", messages=[{"role": "user", "content": "Hi"}]),
    _post(f"{COMPLETIONS}/render", prompt="The sea is"),
    _post("/inference/v1/generate", token_ids=[504, 3495, 314], sampling_params={"temperature": 0, "max_tokens": 4}),
)

ERRORS = (
    _chat("too long", LONG),
    _chat("max_tokens beyond the model", max_tokens=5000),
    _chat("temperature hot", temperature="hot"),
    _chat("temperature -1", temperature=-1),
    _chat("n=0", n=0),
    _chat("n=-1", n=-1),
    _chat("max_tokens -1", max_tokens=-1),
    _chat("max_tokens 0", max_tokens=0),
    _chat("top_p 2", top_p=2),
    _chat("no messages", messages=[]),
    _chat("messages are text", messages="hello"),
    _chat("an image", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]),
    _chat("too many top_logprobs", logprobs=True, top_logprobs=99),
    _chat("top_logprobs alone", top_logprobs=2),
    _chat("a tool_choice without tools", tool_choice="required"),
    _chat("an unknown tool", tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "none"}}),
    _chat(
        "a broken schema", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}
    ),
    _chat("a broken regex", structured_outputs={"regex": "[a-"}),
    _chat("two structures", structured_outputs={"regex": "a", "choice": ["a"]}),
    _chat("an unknown response_format", response_format={"type": "poem"}),
    _chat("stream_options without stream", stream_options={"include_usage": True}),
    _chat("an error of a stream", LONG, stream=True),
    _chat("a logit_bias out of range", logit_bias={"99999999": 1}),
    Ask("chat, only a model", CHAT, {"model": MODEL}),
    _complete("too long", LONG),
    _complete("no prompt", None),
    _complete("an empty prompt", ""),
    _complete("a suffix", suffix="."),
    _complete("token ids out of range", [99999999]),
    _complete("too long, stream", LONG, stream=True),
    _post("/v1/embeddings", input="Hi"),
    _post("/v1/score", text_1="a", text_2="b"),
    _post("/v1/rerank", query="a", documents=["b"]),
    _post("/v1/audio/transcriptions", prompt="a"),
    _post("/v1/nothing/of/the/kind"),
    _post("/pooling", input="Hi"),
    _post("/classify", input="Hi"),
    _post("/score", text_1="a", text_2="b"),
    _post("/rerank", query="a", documents=["b"]),
    _post("/v2/rerank", query="a", documents=["b"]),
    _post("/tokenize"),
    _post("/detokenize", tokens="none"),
    _post(RESPONSES, input=7),
    _post(RESPONSES, input="Hi", previous_response_id="resp_none"),
    _post(MESSAGES, messages=[{"role": "user", "content": "Hi"}]),
    _post(MESSAGES, messages=[{"role": "user", "content": LONG}], max_tokens=4),
)
