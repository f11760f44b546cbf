"""Whether a chat template wants the content of messages in parts. Pure.

Templates of models that take media go through the parts of a message; others want its text. Nothing says which, so it
is read off the template's syntax tree, in the way vLLM does it: whoever decides otherwise renders other prompts.
"""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes


def wants_parts(template: nodes.Template) -> bool:
    """Whether some loop goes through a message's content."""
    try:
        return _has_content_loop(template)
    except AssertionError:
        return False  # what vLLM cannot read gets texts


def _has_content_loop(template: nodes.Template) -> bool:
    message_names = list(_message_names(template))
    in_macros = _content_parameters(template, message_names)
    for loop in template.find_all(nodes.For):
        if any(_is_part_of(loop.iter, name, "content") for name in message_names):
            return _named(loop.target) is not None
        if isinstance(loop.iter, nodes.Name):
            parameters = in_macros.get(id(loop))
            if loop.iter.name in (parameters or ()) or (parameters is None and loop.iter.name == "content"):
                return _named(loop.target) is not None
    return False


def _content_parameters(template: nodes.Template, message_names: list[str]) -> dict[int, set[str]]:
    """Loops inside of macros, by identity -> the macro's parameters that are given a message's content."""
    found: dict[int, set[str]] = {}
    for macro in template.find_all(nodes.Macro):
        names = [argument.name for argument in macro.args]
        given: set[str] = set()
        for call in template.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
                said = [*zip(names, call.args, strict=False), *((word.key, word.value) for word in call.kwargs)]
                given |= {
                    name
                    for name, value in said
                    if name in names and any(_is_part_of(value, message, "content") for message in message_names)
                }
        for loop in macro.find_all(nodes.For):
            if given or id(loop) not in found:
                found[id(loop)] = given
    return found


def _message_names(template: nodes.Template) -> Iterator[str]:
    """What a message is called in the loops over them."""
    lists = list(_names_of("messages", template))
    for loop in template.find_all(nodes.For):
        if any(_is_part_of(loop.iter, name) for name in lists):
            yield _named(loop.target)


def _names_of(name: str, template: nodes.Template) -> Iterator[str]:
    """A variable and those that are set to it or to a part of it."""
    names = [name]
    yield name
    for known in names:
        for assignment in template.find_all(nodes.Assign):
            if _is_part_of(assignment.node, known):
                target = _named(assignment.target)
                yield target
                if target not in names:
                    names.append(target)


def _is_part_of(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """The variable, or its `key`; also filtered, tested or cut."""
    match node:
        case nodes.Filter(node=inner) | nodes.Test(node=inner):
            return _is_part_of(inner, name, key)
        case nodes.Getitem(node=inner, arg=nodes.Slice()):
            return _is_part_of(inner, name, key)
        case nodes.Getitem(node=inner, arg=nodes.Const(value=value)) if key is not None:
            return value == key and _is_part_of(inner, name)
        case nodes.Getattr(node=inner, attr=attribute) if key is not None:
            return attribute == key and _is_part_of(inner, name)
        case nodes.Name(name=named, ctx="load"):
            return key is None and named == name
        case _:
            return False


def _named(target: nodes.Node) -> str:
    assert isinstance(target, nodes.Name)  # noqa: S101 - as vLLM has it: what fails here is read as wanting texts
    return target.name
