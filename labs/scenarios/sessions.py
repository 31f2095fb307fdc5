"""Sessions that must not come up: a wrong password, a wrong AS on either side."""

from __future__ import annotations

from functools import partial

from labs.fabric import converge
from labs.node import Node
from labs.scenarios.files import Given, configured, edit
from labs.scenarios.looking import (
    all_established,
    configure,
    established_counts,
    gone,
    none_established,
    sessions,
)
from labs.scenarios.story import Scenario, Story

NEIGHBOURS = ("10.1.1.2", "fd00:1:1::2")
"""n1, as the ToR of one-tor knows it."""
AS, OTHER_AS = 4200000001, 4200000099


SEGMENTS = 3
"""Of n1, that the ToR's kernel refuses for their password before the right one is set."""


async def _cut_off(story: Story) -> list[int]:
    """Wait until n1 has no session and its block is gone; return how often its sessions were established by then."""
    n1, n2 = story.node("n1"), story.node("n2")
    await story.until("n1 has no session", partial(none_established, n1))
    for block in await n1.agent.blocks():
        await story.until(f"n2 has no route to {block}", partial(gone, n2, block))
    return await established_counts(n1)


async def _kept_out(story: Story, before: list[int]) -> None:
    story.check(await established_counts(story.node("n1")) == before, "n1 got no session meanwhile")


async def _undisturbed(story: Story, before: list[int]) -> None:
    n2 = story.node("n2")
    story.check(await established_counts(n2) == before, f"n2's sessions all the while: {', '.join(await sessions(n2))}")


async def _healed(story: Story) -> None:
    n1 = story.node("n1")
    await story.until("all of n1's sessions are established", partial(all_established, n1))
    await converge(story.net)
    story.event("converged")


async def _password(story: Story) -> None:
    tor, others = story.node("tor1"), await established_counts(story.node("n2"))
    set_ = [f"neighbor {address} password other" for address in NEIGHBOURS]
    await configure(tor, "router bgp 65011", *set_)
    story.event("the ToR's password for n1 is another one")
    own, refused = await _cut_off(story), await _refused(tor)
    what = f"the ToR's kernel has refused {SEGMENTS} more segments of n1"
    await story.until(what, partial(_refuses, tor, refused + SEGMENTS))
    await _kept_out(story, own)
    await configure(tor, "router bgp 65011", *[f"no neighbor {address} password" for address in NEIGHBOURS])
    story.event("the ToR's password for n1 is right again")
    await _healed(story)
    await story.reach("with the right password again")
    await _undisturbed(story, others)


async def _refused(node: Node) -> int:
    """Return how many TCP segments without the MD5 option that they must have a node's kernel has refused."""
    names, values = [
        line.split()
        for line in (await node.run("cat", "/proc/net/netstat")).stdout.splitlines()
        if line.startswith("TcpExt:")
    ]
    return int(dict(zip(names, values, strict=True))["TCPMD5NotFound"])


async def _refuses(node: Node, wanted: int) -> bool:
    return await _refused(node) >= wanted


async def _as(story: Story) -> None:
    tor, n1, others = story.node("tor1"), story.node("n1"), await established_counts(story.node("n2"))
    await configure(tor, "router bgp 65011", *[f"neighbor {address} remote-as {OTHER_AS}" for address in NEIGHBOURS])
    story.event(f"the ToR expects AS {OTHER_AS} of n1")
    own = await _cut_off(story)
    await story.until("n1 shows what the ToR says, Bad Peer AS", partial(_told, n1, "Bad Peer AS"))
    await _kept_out(story, own)
    await configure(tor, "router bgp 65011", *[f"neighbor {address} remote-as {AS}" for address in NEIGHBOURS])
    story.event("the ToR expects the right AS again")
    await _healed(story)
    edit(n1, partial(_expect, 65099))
    await n1.run("podroute", "reload")
    story.event("n1's file has the ToR in AS 65099: `podroute reload`")
    own = await _cut_off(story)
    await story.until("n1 shows both, AS 65099 expected and 65011 received", partial(_received, n1, (65099, 65011)))
    await _kept_out(story, own)
    edit(n1, partial(_expect, 65011))
    await n1.run("podroute", "reload")
    story.event("n1's file has the right AS again: `podroute reload`")
    await _healed(story)
    await story.reach("with the right AS again")
    await _undisturbed(story, others)


async def _told(node: Node, text: str) -> bool:
    said = [peer["lastReceived"] for peer in await node.agent.get("/v1/peers")]
    return all(one is not None and text in one["text"] for one in said)


async def _received(node: Node, wanted: tuple[int, int]) -> bool:
    return {(peer["as"], peer["receivedAs"]) for peer in await node.agent.get("/v1/peers")} == {wanted}


def _expect(asn: int, given: Given) -> None:
    for peer in given["peers"].values():
        peer["as"] = asn


SCENARIOS = (
    Scenario(
        name="wrong-password",
        promise="A peer with another TCP MD5 password gets no session and disturbs no other; the right one heals it.",
        topology="one-tor",
        steps=_password,
        outage=None,
    ),
    Scenario(
        name="wrong-as",
        promise="A peer in another AS than expected, on either side, gets no session, is named, and disturbs no other; "
        "the right AS heals it.",
        topology="one-tor",
        steps=_as,
        outage=None,
        prepare=configured,
    ),
)
