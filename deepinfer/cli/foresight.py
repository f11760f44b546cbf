"""What a dry run answered, in lines for people: `+` starts, `=` stays, `-` stops, `!` has no place. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from deepinfer.cli.views import View

_PARTS = ("kept", "started", "stopped", "refused")


def dry_run_lines(view: View) -> list[str]:
    """All of one deployment's."""
    return [f"{view['name']} {_would(view)}", *foreseen_lines(view["foreseen"])]


def all_dry_run_lines(view: View) -> list[str]:
    """Of several deployments together."""
    lines: list[str] = []
    for change in view["data"]:
        lines += [f"{change['name']} {_would(change)}", *foreseen_lines(own_part(view, change["name"]))]
    return lines + other_lines(view)


def own_part(view: View, name: str) -> View:
    """What is foreseen for one of several deployments."""
    own = {part: [told for told in view["foreseen"][part] if told["deployment"] == name] for part in _PARTS}
    return {**own, "is_final": True}  # which is said of all together


def other_lines(view: View) -> list[str]:
    """What becomes of deployments that are not among them, and whether that is all."""
    names = {change["name"] for change in view["data"]}
    foreseen = view["foreseen"]
    others = {part: [told for told in foreseen[part] if told["deployment"] not in names] for part in _PARTS}
    lines = foreseen_lines({**others, "is_final": foreseen["is_final"]})
    return ["besides:", *lines] if lines else []


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
