"""What engines are known to answer: paths that may be labels, and that a user's key opens."""

from __future__ import annotations

RELAYED_PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/v1/completions",
        "/v1/completions/render",
        "/v1/embeddings",
        "/v2/embed",
        "/v1/moderations",
        "/v1/responses",
        "/v1/responses/render",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/messages/render",
        "/cohere/v2/chat",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/v1/score",
        "/score",
        "/pooling",
        "/classify",
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/tokenize",
        "/detokenize",
    )
)
