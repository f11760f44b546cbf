"""`explain request ID`: why a request went to its replica, and what each one would have cost."""

from __future__ import annotations

import typer

from deepinfer.cli.options import Output, connect, print_json
from deepinfer.cli.tables import print_table
from deepinfer.cli.views import View

_TERMS = ("fixed", "wait", "overdue", "prefill", "answer", "holds_up", "delays", "evicts")


def explain_request(request: str, output: Output, server: str) -> None:
    with connect(server) as api:
        told = api.routing(request)
    if output is Output.JSON:
        print_json(told)
        return
    why = f": {told['why']}" if told["why"] else ""
    typer.echo(f"{told['request']} for {told['model']} went to {told['chosen']} by policy {told['policy']}{why}")
    _compare(told)
    candidates = told["candidates"]
    if not candidates:
        return
    typer.echo("")
    columns = ("REPLICA", "SECONDS", *(term.upper().replace("_", " ") for term in _TERMS), "CACHED", "KNOWN BY")
    print_table(columns, [_row(candidate) for candidate in candidates])
    for candidate in candidates:
        if candidate["index_not_used"]:
            typer.echo(f"{candidate['replica']}: its index is not used, as {candidate['index_not_used']}")


def _compare(told: View) -> None:
    foreseen, came = told["foreseen"], told["came"]
    if not told["candidates"]:
        return
    cached = "not told" if came["cached_tokens"] is None else came["cached_tokens"]
    first = "none yet" if came["first_token_seconds"] is None else f"{came['first_token_seconds']:.3f} s"
    typer.echo(f"prompt of {told['prompt_tokens']} tokens; cached: {foreseen['cached_tokens']} foreseen, {cached} came")
    typer.echo(f"first bytes: {foreseen['first_token_seconds']:.3f} s foreseen, {first} came")


def _row(candidate: View) -> list[str]:
    terms = [f"{candidate['terms'][term]:.4f}" for term in _TERMS]
    cached = str(candidate["cached_tokens"])
    return [candidate["replica"], f"{candidate['seconds']:.4f}", *terms, cached, candidate["cached_known_by"]]
