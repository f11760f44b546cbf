"""What the store says of one deployment's generations, and which of them are kept. Pure.

The newest ten revisions are kept, and always the one that is to come back if the newest fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from deepinfer.control_plane.openai_errors import NothingToUndo, RevisionNotFound, UnreadableDeployment
from deepinfer.control_plane.scheduler.sight import effective
from deepinfer.fleet import keys
from deepinfer.fleet.errors import DeploymentNotFound
from deepinfer.fleet.resource import Resource
from deepinfer.fleet.resources import Deployment
from deepinfer.fleet.rollout import Revision, Rollout
from deepinfer.fleet.spec import DeploymentSpec

KEPT = 10
R = TypeVar("R", bound=Resource)


@dataclass(frozen=True)
class History:
    """Of the deployment `name`. `record` is its own one as it lies in the store."""

    name: str
    record: bytes | None
    kept: Mapping[str, Revision]  # by key, oldest first; none of an earlier deployment of that name
    stray: tuple[str, ...]  # keys of revisions that are nobody's any more, or cannot be read
    rollout: Rollout | None
    is_alias: bool = False  # the name is one, so that no deployment may get it

    @property
    def known(self) -> Deployment | None:
        """Raises `UnreadableDeployment`."""
        if self.record is None:
            return None
        try:
            return Deployment.model_validate_json(self.record)
        except ValidationError as error:
            raise UnreadableDeployment(
                f"The record of {self.name} cannot be read by this version; delete it first."
            ) from error

    @property
    def existing(self) -> Deployment:
        """Raises `DeploymentNotFound`."""
        known = self.known
        if known is None:
            raise DeploymentNotFound(f"There is no deployment {self.name}; `deepinfer get deployments` lists them.")
        return known

    @property
    def good_generation(self) -> int | None:
        """The last one that was complete."""
        return self.rollout.good.generation if self.rollout and self.rollout.good else None

    def spec_of(self, generation: int) -> DeploymentSpec:
        """Raises `RevisionNotFound`."""
        for revision in self.kept.values():
            if revision.generation == generation:
                return revision.spec
        if self.rollout and self.rollout.good and self.rollout.good.generation == generation:
            return self.rollout.good.spec
        there_are = ", ".join(str(revision.generation) for revision in self.kept.values()) or "none"
        raise RevisionNotFound(f"{self.name} has no revision {generation}; it has {there_are}.")

    def undone(self, to: int | None = None) -> DeploymentSpec:
        """What is to run instead of the newest generation, with as many replicas as it has.

        Without `to`: what runs instead already, where it was rolled back, or else the revision before it that differs.
        """
        known = self.existing
        if to is not None:
            spec = self.spec_of(to)
        elif (running := effective(known, self.rollout)).generation != known.generation:
            spec = running.spec
        else:
            spec = self._differing_before(known)
        return spec.model_copy(update={"replicas": known.spec.replicas})

    def outgrown(self, newer: int) -> tuple[str, ...]:
        """The keys that are dropped when so many revisions are added."""
        older = list(self.kept)[: max(0, len(self.kept) + newer - KEPT)]
        return (*self.stray, *(key for key in older if self.kept[key].generation != self.good_generation))

    def _differing_before(self, known: Deployment) -> DeploymentSpec:
        """Scaling alone is nothing to undo."""
        for revision in reversed(list(self.kept.values())):
            as_now = revision.spec.model_copy(update={"replicas": known.spec.replicas})
            if revision.generation < known.generation and as_now != known.spec:
                return revision.spec
        raise NothingToUndo(
            f"{self.name} has no earlier revision that differs from generation {known.generation}; "
            f"`deepinfer rollout history {self.name}` lists them."
        )


def history_of(name: str, entries: Mapping[str, bytes]) -> History:
    """Out of entries of the store."""
    record, prefix = entries.get(keys.deployment(name)), keys.revisions(name)
    uid = _uid(record)
    found = {key: _parsed(Revision, entries[key]) for key in sorted(key for key in entries if key.startswith(prefix))}
    own = {key: revision for key, revision in found.items() if revision is not None and revision.uid == uid}
    rollout = _parsed(Rollout, entries.get(keys.rollout(name), b""))
    return History(
        name=name,
        record=record,
        kept=own,
        stray=tuple(key for key in found if key not in own),
        rollout=rollout if rollout and rollout.uid == uid else None,
        is_alias=keys.alias(name) in entries,
    )


def cause_of(before: Deployment | None, after: Deployment) -> str:
    """What a generation changed, in words."""
    if before is None:
        return "created"
    then, now = before.spec.model_dump(), after.spec.model_dump()
    return f"changed {', '.join(field for field in now if now[field] != then.get(field))}"


def _uid(record: bytes | None) -> str:
    deployment = _parsed(Deployment, record or b"")
    return deployment.uid if deployment else ""


def _parsed(record: type[R], value: bytes) -> R | None:
    try:
        return record.model_validate_json(value)
    except ValidationError:
        return None
