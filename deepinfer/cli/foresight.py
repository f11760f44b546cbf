"""What a dry run answered, in lines for people: `+` starts, `=` stays, `-` stops, `!` has no place. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from deepinfer.cli.views import View


def dry_run_lines(view: View) -> list[str]:
    """All of one deployment's."""
    return [f"{view['name']} {_would(view)}", *foreseen_lines(view["foreseen"])]


def foreseen_lines(foreseen: View, *, with_kept: bool = True) -> list[str]:
    return [f"  {line}" for line in _lines(foreseen, with_kept)]


def _would(view: View) -> str:
    if not view["changes"]:
        return "would stay as it is"
    return f"would be {'created' if view['generation'] == 1 else 'changed to generation ' + str(view['generation'])}"


def _lines(foreseen: View, with_kept: bool) -> Iterator[str]:
    for replica in foreseen["kept"] if with_kept else ():
        yield f"= {_replica(replica)} stays"
    for replica in foreseen["started"]:
        yield f"+ {_replica(replica)} starts"
    for replica in foreseen["stopped"]:
        why = f": {replica['why']}" if replica["why"] else ""
        yield f"- {_replica(replica)} stops{why}"
    for refusal in foreseen["refused"]:
        yield f"! {refusal['missing']} of {refusal['deployment']} without a place: {_reasons(refusal)}"
    if not foreseen["is_final"]:
        yield "! and more: so many steps were not followed to their end"


def _replica(replica: View) -> str:
    return f"{replica['id'] or replica['deployment']} on {replica['node']} ({','.join(replica['devices'])})"


def _reasons(refusal: View) -> str:
    if refusal["waits_for"]:
        return f"waits for {refusal['waits_for']}"
    return "; ".join(f"{node} {reason}" for node, reason in refusal["reasons"].items()) or "no node is connected"
