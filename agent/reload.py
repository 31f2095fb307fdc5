"""From one configuration to another while the agent runs: what changes, whose sessions it resets, what it cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from bgp.policy import REJECT, Policy
from bgp.settings import ListenRange, Neighbour
from bgp.speaker import Speaker
from config.model import Config
from config.prefix import Family, text
from config.routes import Resilient

CONFIGURATION = "configuration"
"""Owner of the prefixes that the file's ``advertise`` lists."""

_LIVE = frozenset(("peers", "advertise", "metrics", "on_stop"))
"""Fields of the file that may change while the agent runs."""


class RestartNeededError(Exception):
    """What changed cannot change in a running agent; the text names it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The way from one configuration to another; peers by name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reset: tuple[str, ...]
    """Peers whose session ends and begins anew, because it was made with other settings."""
    policies: tuple[str, ...]
    """Peers that get other policies, their session goes on."""
    limits: tuple[str, ...]
    """Listen ranges that get another limit; sessions go on, be they too many now."""
    advertised: tuple[str, ...]
    withdrawn: tuple[str, ...]
    onlink: tuple[str, ...]
    """Prefixes of ``routes.onlink`` that are new, gone, or at another interface."""
    check_neighbours: tuple[str, ...] = ()
    """``routes.checkNeighbours=true``, where that changes."""
    resilient: tuple[str, ...] = ()
    """``routes.resilient=...``: what next-hop groups are to be from now on, where that changes."""
    metrics: tuple[str, ...] = ()
    """Where metrics are served from now on, ``nowhere`` included; empty: where they were."""

    def as_json(self) -> dict[str, Any]:
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "resets": list(self.reset),
            "policies": list(self.policies),
            "limits": list(self.limits),
            "advertised": list(self.advertised),
            "withdrawn": list(self.withdrawn),
            "onlink": list(self.onlink),
            "checkNeighbours": list(self.check_neighbours),
            "resilient": list(self.resilient),
            "metrics": list(self.metrics),
        }


def plan(old: Config, new: Config, before: Mapping[str, Neighbour], after: Mapping[str, Neighbour]) -> Plan:
    """Return what leads from ``old`` with its peers ``before`` to ``new`` with its peers ``after``.

    Raises RestartNeededError.
    """
    changed = list(_differences(_fixed(old), _fixed(new)))
    if changed:
        raise RestartNeededError(
            f"{', '.join(changed)}: a change needs a restart of the agent (which interrupts nothing)"
        )
    both = sorted(before.keys() & after.keys())
    touched = [name for name in both if before[name] != after[name]]
    reset = [name for name in touched if _session_of(before[name]) != _session_of(after[name])]
    going_on = [name for name in touched if name not in reset]
    return Plan(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        reset=tuple(reset),
        policies=tuple(name for name in going_on if _policies_of(before[name]) != _policies_of(after[name])),
        limits=tuple(name for name in going_on if _limit_of(before[name]) != _limit_of(after[name])),
        advertised=tuple(text(*p) for p in sorted(set(new.advertised) - set(old.advertised))),
        withdrawn=tuple(text(*p) for p in sorted(set(old.advertised) - set(new.advertised))),
        onlink=tuple(text(*p) for p in sorted({p for p, _ in _onlink(old) ^ _onlink(new)})),
        check_neighbours=_changed(_check(old.routes.check_neighbours), _check(new.routes.check_neighbours)),
        resilient=_changed(_kind(old.routes.resilient), _kind(new.routes.resilient)),
        metrics=() if old.metrics == new.metrics else (new.metrics.listen or "nowhere",),
    )


async def apply(plan: Plan, speaker: Speaker, old: Config, new: Config, peers: Mapping[str, Neighbour]) -> None:
    """Do what ``plan`` says; ``peers`` are those of the new configuration. Raises SpeakerError."""
    for name in (*plan.removed, *plan.reset):
        await _remove(speaker, name)
    for name in (*plan.reset, *plan.added):
        add(speaker, peers[name])
    _change(plan, speaker, peers)
    for family, prefix in set(new.advertised) - set(old.advertised):
        speaker.originate(family, prefix, owner=CONFIGURATION, source="static")
    for family, prefix in set(old.advertised) - set(new.advertised):
        speaker.retract(family, prefix, CONFIGURATION)


async def restore(plan: Plan, speaker: Speaker, old: Config, new: Config, peers: Mapping[str, Neighbour]) -> None:
    """Undo what ``apply`` did of a plan before it failed; ``peers`` are those of the old configuration."""
    present = {peer.name for peer in speaker.peers()} | {made.name for made in speaker.ranges()}
    for name in present & {*plan.added, *plan.reset}:
        await _remove(speaker, name)
    for name in (*plan.removed, *plan.reset):
        add(speaker, peers[name])
    _change(plan, speaker, peers)
    for family, prefix in set(old.advertised) - set(new.advertised):
        speaker.originate(family, prefix, owner=CONFIGURATION, source="static")
    for family, prefix in set(new.advertised) - set(old.advertised):
        speaker.retract(family, prefix, CONFIGURATION)


def add(speaker: Speaker, settings: Neighbour) -> None:
    """Have a speaker begin with a peer or a listen range. Raises SpeakerError."""
    if isinstance(settings, ListenRange):
        speaker.add_range(settings)
    else:
        speaker.add_peer(settings)


async def _remove(speaker: Speaker, name: str) -> None:
    if name in {made.name for made in speaker.ranges()}:
        await speaker.remove_range(name)
    else:
        await speaker.remove_peer(name)


def _change(plan: Plan, speaker: Speaker, peers: Mapping[str, Neighbour]) -> None:
    """Change what sessions do not notice."""
    for name in {*plan.policies, *plan.limits}:
        settings = peers[name]
        if isinstance(settings, ListenRange):
            speaker.change_range(settings)
        else:
            speaker.set_policies(name, settings.import_policy, settings.export_policy)


def _session_of(settings: Neighbour) -> Neighbour:
    """Return the settings without what can change under an established session."""
    without = replace(settings, import_policy=REJECT, export_policy=REJECT)
    return replace(without, limit=0) if isinstance(without, ListenRange) else without


def _policies_of(settings: Neighbour) -> tuple[Policy, Policy]:
    return settings.import_policy, settings.export_policy


def _limit_of(settings: Neighbour) -> int | None:
    return settings.limit if isinstance(settings, ListenRange) else None


def _fixed(config: Config) -> Config:
    """Return a configuration without what may change while the agent runs."""
    live: dict[str, Any] = dict.fromkeys(_LIVE)
    routes = config.routes.model_copy(update={"onlink": {}, "check_neighbours": False, "resilient": None})
    return config.model_copy(update={**live, "routes": routes})


def _changed(old: str, new: str) -> tuple[str, ...]:
    return () if old == new else (new,)


def _check(checked: bool) -> str:
    return f"routes.checkNeighbours={str(checked).lower()}"


def _kind(resilient: Resilient | None) -> str:
    if resilient is None:
        return "routes.resilient=none"
    return (
        f"routes.resilient={{buckets: {resilient.buckets}, idleTimer: {resilient.idle_timer}, "
        f"unbalancedTimer: {resilient.unbalanced_timer}}}"
    )


def _onlink(config: Config) -> set[tuple[tuple[Family, bytes], str]]:
    return set(config.routes.onlink_devices.items())


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield where two configurations differ, as the file writes it: ``routes.checkNeighbours``."""
    if isinstance(old, BaseModel) and type(old) is type(new):
        for name, field in type(old).model_fields.items():
            place = f"{path}.{field.alias or name}" if path else field.alias or name
            yield from _differences(getattr(old, name), getattr(new, name), place)
    elif old != new:
        yield path
