"""What is counted of one model, and of one replica for it, and the names under which dashboards find it.

The names are vLLM's, with our prefix, wherever they mean the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

from deepinfer.control_plane.gateway.exposition import Distribution, Page, Samples, labelled

_SHORT = (0.001, 0.0025, 0.005)
SECONDS = (*_SHORT, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
TOKEN_SECONDS = (*_SHORT, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ModelSeries:
    """Of everything that is asked for one model, whoever answers it."""

    def __init__(self, model: str) -> None:
        self.labels = labelled(model_name=model)
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.rejected: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.prefills: Counter[str] = Counter()
        self.disconnects = 0
        self.continued = 0
        self.waiting = 0
        self.queue = Distribution(SECONDS)
        self.latency = Distribution(SECONDS)
        self.token = Distribution(TOKEN_SECONDS)


class ReplicaSeries:
    """Of what one replica answered for one model."""

    def __init__(self, model: str, placement: str) -> None:
        self.labels = labelled(model_name=model, replica=placement)
        self.running = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished: Counter[str] = Counter()
        self.first_token = Distribution(SECONDS)
        self.between_tokens = Distribution(TOKEN_SECONDS)


def tell_models(page: Page, models: Iterable[ModelSeries]) -> None:
    models = list(models)
    page.counter(
        "deepinfer_requests_total",
        "Requests, but for pages as this one. An answer that broke off counts as 502, a client that left as 499.",
        chain.from_iterable(_requests(model) for model in models),
    )
    page.counter(
        "deepinfer_rejected_total",
        "Requests refused before any engine had them.",
        _by("reason", ((model.labels, model.rejected) for model in models)),
    )
    page.counter(
        "deepinfer_retries_total",
        "Attempts after the first, by what ended the one before.",
        _by("reason", ((model.labels, model.retries) for model in models)),
    )
    page.counter(
        "deepinfer_prefills_total",
        "Requests to replicas of role decode: separate where another one prefilled, else why none did.",
        _by("outcome", ((model.labels, model.prefills) for model in models)),
    )
    page.counter(
        "deepinfer_client_disconnects_total",
        "Clients that hung up before their answer's end.",
        ((model.labels, model.disconnects) for model in models),
    )
    page.counter(
        "deepinfer_continued_total",
        "Streams that another replica went on with.",
        ((model.labels, model.continued) for model in models),
    )
    page.gauge(
        "deepinfer_num_requests_waiting",
        "Requests in the gateway's queue.",
        ((model.labels, model.waiting) for model in models),
    )
    _tell_times(page, models)


def tell_replicas(page: Page, replicas: Iterable[ReplicaSeries]) -> None:
    replicas = list(replicas)
    page.gauge(
        "deepinfer_num_requests_running",
        "Requests from this gateway that the replica has now.",
        ((replica.labels, replica.running) for replica in replicas),
    )
    page.counter(
        "deepinfer_request_success_total",
        "Requests that a replica had, by how it ended: abort when the client left, error when it broke.",
        _by("finished_reason", ((replica.labels, replica.finished) for replica in replicas)),
    )
    page.counter(
        "deepinfer_prompt_tokens_total",
        "Tokens of prompts, where the answer told its usage.",
        ((replica.labels, replica.prompt_tokens) for replica in replicas),
    )
    page.counter(
        "deepinfer_generation_tokens_total",
        "Tokens made; where a stream did not tell its usage, its pieces.",
        ((replica.labels, replica.generation_tokens) for replica in replicas),
    )
    page.histogram(
        "deepinfer_time_to_first_token_seconds",
        "From a request's head to the first bytes of its stream.",
        ((replica.labels, replica.first_token) for replica in replicas),
    )
    page.histogram(
        "deepinfer_inter_token_latency_seconds",
        "The same mean as request_time_per_output_token, once a token.",
        ((replica.labels, replica.between_tokens) for replica in replicas),
    )


def _tell_times(page: Page, models: list[ModelSeries]) -> None:
    page.histogram(
        "deepinfer_request_queue_time_seconds",
        "How long requests that were admitted had waited in the gateway's queue.",
        ((model.labels, model.queue) for model in models),
    )
    page.histogram(
        "deepinfer_e2e_request_latency_seconds",
        "From a request's head to its answer's end.",
        ((model.labels, model.latency) for model in models),
    )
    page.histogram(
        "deepinfer_request_time_per_output_token_seconds",
        "Mean time between a stream's tokens, once a request.",
        ((model.labels, model.token) for model in models),
    )


def _requests(model: ModelSeries) -> Iterator[tuple[str, float]]:
    for (path, status), count in model.requests.items():
        yield f"{model.labels},{labelled(path=path, status=str(status))}", count


def _by(label: str, counted: Iterable[tuple[str, Counter[str]]]) -> Samples:
    for labels, counts in counted:
        for value, count in counts.items():
            yield f"{labels},{labelled(**{label: value})}", count
