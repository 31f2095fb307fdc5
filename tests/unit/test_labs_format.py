"""containerlab's format, key by key: each is done or refused by name, and levels are merged by its rules."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from labs import health_keys, keys, link_keys, stage_keys
from labs.errors import TopologyError
from labs.reading import load
from labs.stages import Phase, Stage, Target
from labs.topology import Healthcheck, Topology
from tests.labs_files import Reader

NODE = {"kind": "linux", "image": "alpine"}
LEVELS = ("defaults", "kinds", "groups", "nodes")
"""From the least specific to the most specific."""


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    (tmp_path / "a.env").write_text("FROM=file\n")
    return Reader(tmp_path)


def document(topology: dict[str, Any], **top: Any) -> str:
    return yaml.safe_dump({"name": "x", **top, "topology": topology})


def levels(**values: Any) -> str:
    """Return a topology with one node ``n``, and at each level of ``values`` these keys of a node."""
    node = {"group": "g", **values.get("nodes", {})}
    defaults = {**NODE, **values.get("defaults", {})}
    return document(
        {
            "defaults": defaults,
            "kinds": {"linux": values.get("kinds", {})},
            "groups": {"g": values.get("groups", {})},
            "nodes": {"n": node, "other": {"image": "alpine", "cmd": "true", "healthcheck": {"test": ["CMD", "true"]}}},
        }
    )


# Which keys there are


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    data = Path(os.environ.get("PODROUTE_DATA", Path(__file__).parents[3] / "shared/data"))
    file = data / "schemas/clab.schema.json"
    if not file.exists():
        pytest.skip(f"containerlab's schema is not at {file}: set PODROUTE_DATA")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


LINK_TYPES = {
    "veth": "link-type-veth",
    "host": "link-type-host",
    "dummy": "link-type-dummy",
    "macvlan": "link-type-macvlan",
    "mgmt-net": "link-type-mgmt-net",
    "vxlan": "link-type-vxlan",
    "vxlan-stitch": "link-type-vxlan-stitched",
    "veth-stitch": "link-type-veth-stitched",
}


def test_every_key_of_the_schema_is_done_or_refused(schema: dict[str, Any]) -> None:
    parts = schema["definitions"]

    def names(part: str) -> set[str]:
        return set(parts[part]["properties"])

    assert set(schema["properties"]) == keys.TOP | keys.TOP_REFUSED
    assert set(schema["properties"]["topology"]["properties"]) == keys.TOPOLOGY
    assert names("node-config") == keys.NODE | keys.NODE_REFUSED
    assert not keys.NODE & keys.NODE_REFUSED
    assert names("healthcheck-config") == health_keys.KEYS
    assert names("stages-config") == set(Stage) == set(parts["stages-enum"]["enum"])
    assert {name for stage in parts["stages-config"]["properties"].values() for name in stage["properties"]} == (
        stage_keys.STAGE
    )
    assert set(parts["wait-for-config"]["items"]["properties"]) == stage_keys.WAIT_FOR
    by_phase, listed = parts["stage-exec"]["oneOf"]
    assert set(by_phase["properties"]) == set(Phase)
    assert set(listed["items"]["properties"]) == stage_keys.EXEC
    assert names("link-config-short") == link_keys.BRIEF | link_keys.REFUSED
    assert names("link-endpoint") == link_keys.ENDPOINT | link_keys.REFUSED
    assert {part for part in parts if part.startswith("link-type-")} == set(LINK_TYPES.values())
    assert set(LINK_TYPES) == set(link_keys.TYPES) | link_keys.TYPES_REFUSED
    for kind, known in link_keys.TYPES.items():
        assert names(LINK_TYPES[kind]) == known | link_keys.REFUSED
    kinds = set(parts["node-config"]["properties"]["kind"]["enum"])
    assert kinds > keys.KINDS


DONE: dict[str, tuple[Any, Any]] = {
    "image": ("busybox", lambda node: node.image == "busybox"),
    "kind": ("bridge", lambda node: node.kind == "bridge"),
    "group": ("h", lambda node: node.group == "h"),
    "startup-delay": (3, lambda node: node.startup_delay == 3),
    "hostname": ("named", lambda node: node.hostname == "named"),
    "exec": (["echo a b"], lambda node: node.exec == (("echo", "a", "b"),)),
    "binds": (["/etc:/x:ro"], lambda node: [bind.target for bind in node.binds if bind.read_only] == ["/x"]),
    "env": ({"A": 1}, lambda node: node.env == {"A": "1"}),
    "env-files": (["a.env"], lambda node: node.env == {"FROM": "file"}),
    "entrypoint": ("sh -c", lambda node: node.command == ("sh", "-c")),
    "cmd": ("sleep 1", lambda node: node.command == ("sleep", "1")),
    "labels": ({"rack": 1}, lambda node: node.labels == {"rack": "1"}),
    "network-mode": ("container:other", lambda node: node.network == "other"),
    "sysctls": ({"net.ipv4.ip_forward": 1}, lambda node: node.sysctls == {"net.ipv4.ip_forward": "1"}),
    "healthcheck": ({"test": ["CMD", "true"]}, lambda node: node.healthcheck == Healthcheck(("true",))),
    "stages": (
        {"create": {"wait-for": [{"node": "other", "stage": "exit"}]}},
        lambda node: node.stages and node.stages[Stage.CREATE].wait_for == (("other", Stage.EXIT),),
    ),
}


def one_node(key: str, value: Any) -> str:
    nodes = {"n": {**NODE, key: value}, "other": {**NODE, "cmd": "true"}}
    return document({"groups": {"h": {}}, "nodes": nodes})


def test_what_is_done_is_the_whole_of_what_is_not_refused() -> None:
    assert set(DONE) == keys.NODE


@pytest.mark.parametrize("key", sorted(DONE))
def test_a_key_that_is_done_changes_the_node(reader: Reader, key: str) -> None:
    value, changed = DONE[key]
    assert not changed(reader.read(document({"nodes": {"n": NODE}})).nodes["n"])
    assert changed(reader.read(one_node(key, value)).nodes["n"])


REFUSAL = "this key of containerlab is not supported by this runner, remove it"


@pytest.mark.parametrize("key", sorted(keys.NODE_REFUSED))
@pytest.mark.parametrize("level", LEVELS)
def test_a_refused_key_is_named_at_every_level(reader: Reader, key: str, level: str) -> None:
    place = {"defaults": "defaults", "kinds": "kinds.linux", "groups": "groups.g", "nodes": "nodes.n"}[level]
    assert reader.faults(levels(**{level: {key: "x"}})) == [f"topology.{place}.{key}: {REFUSAL}"]


@pytest.mark.parametrize("key", sorted(keys.TOP_REFUSED))
def test_a_refused_key_of_the_file_is_named(reader: Reader, key: str) -> None:
    assert reader.faults(document({"nodes": {"n": NODE}}, **{key: {}})) == [f"{key}: {REFUSAL}"]


@pytest.mark.parametrize("kind", sorted(link_keys.TYPES_REFUSED))
def test_a_refused_link_is_named(reader: Reader, kind: str) -> None:
    text = document({"nodes": {"n": NODE}, "links": [{"type": kind, "endpoint": {"node": "n", "interface": "e"}}]})
    right = "`dummy`, `host`, `veth` can"
    assert reader.faults(text) == [f"topology.links[0].type: links of type `{kind}` cannot be built here, {right}"]


def test_variables_of_links_are_refused(reader: Reader) -> None:
    end = {"node": "n", "interface": "e", "vars": {}}
    text = document({"nodes": {"n": NODE}, "links": [{"type": "dummy", "endpoint": end, "vars": {}}]})
    assert [fault.partition(":")[0] for fault in reader.faults(text)] == [
        "topology.links[0].vars",
        "topology.links[0].endpoint.vars",
    ]


@pytest.mark.parametrize(("key", "value"), [("test", []), ("test", ["CMD"]), ("test", ["NONE"]), ("color", "red")])
def test_faults_of_healthchecks(reader: Reader, key: str, value: Any) -> None:
    check = {"test": ["CMD", "true"], key: value}
    assert reader.faults(one_node("healthcheck", check))[0].startswith(f"topology.nodes.n.healthcheck.{key}: ")


# Merging


def test_the_first_level_that_has_a_scalar_wins(reader: Reader) -> None:
    given: dict[str, dict[str, str]] = {}
    for level in LEVELS:
        given[level] = dict.fromkeys(("image", "hostname", "cmd"), level)
        node = reader.read(levels(**given)).nodes["n"]
        assert (node.image, node.hostname, node.command) == (level, level, (level,))


def test_an_empty_scalar_is_none(reader: Reader) -> None:
    assert reader.read(levels(groups={"image": "of-group"}, nodes={"image": ""})).nodes["n"].image == "of-group"


@pytest.mark.parametrize("key", ["env", "labels", "sysctls"])
def test_maps_are_merged_key_by_key(reader: Reader, key: str) -> None:
    names = [f"net.{letter}" for letter in "abcd"]
    given = {level: {key: dict.fromkeys(names[number:], level)} for number, level in enumerate(LEVELS)}
    assert getattr(reader.read(levels(**given)).nodes["n"], key) == dict(zip(names, LEVELS, strict=True))


def test_lists_are_added_up_and_what_stands_there_twice_is_once(reader: Reader) -> None:
    given = {level: {"exec": [f"echo {level}", "echo same"]} for level in LEVELS}
    assert [argv[1] for argv in reader.read(levels(**given)).nodes["n"].exec] == [
        "defaults", "same", "kinds", "groups", "nodes",
    ]  # fmt: skip


def test_the_most_specific_bind_of_a_target_wins(reader: Reader) -> None:
    given: dict[str, dict[str, list[str]]] = {}
    for level, source in zip(LEVELS, ("/etc", "/usr", "/opt", "/tmp"), strict=True):
        given[level] = {"binds": [f"{source}:/x"]}
        (bind,) = reader.read(levels(**given)).nodes["n"].binds
        assert (str(bind.source), bind.target) == (source, "/x")


def test_variables_of_files_add_up_and_env_wins(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "b.env").write_text("FROM=second\nMORE=1\n")
    given = {"defaults": {"env-files": ["a.env"]}, "nodes": {"env-files": ["b.env"], "env": {"MORE": "own"}}}
    assert reader.read(levels(**given)).nodes["n"].env == {"FROM": "second", "MORE": "own"}


def test_a_healthcheck_is_taken_whole(reader: Reader) -> None:
    given = {
        "defaults": {"healthcheck": {"test": ["CMD", "a"], "interval": 1}},
        "groups": {"healthcheck": {"test": ["CMD-SHELL", "b || c"], "timeout": 2, "retries": 0, "start-period": 5}},
    }
    expected = Healthcheck(("/bin/sh", "-c", "b || c"), interval=30, timeout=2, retries=3, start_period=5)
    assert reader.read(levels(**given)).nodes["n"].healthcheck == expected


def test_stages_add_up(reader: Reader) -> None:
    def stage(level: str) -> dict[str, Any]:
        waits = [{"node": "other", "stage": "create"}, {"node": "other", "stage": "exit"}]
        # What all nodes inherit would make them wait for themselves.
        wanted = {"groups": waits[:1], "nodes": waits}.get(level, [])
        return {"stages": {"configure": {"wait-for": wanted, "exec": {"on-exit": [level]}}}}

    plan = reader.read(levels(**{level: stage(level) for level in LEVELS})).nodes["n"].stages[Stage.CONFIGURE]
    assert plan.wait_for == (("other", Stage.CREATE), ("other", Stage.EXIT))
    assert [command.argv for command in plan.execs] == [(level,) for level in LEVELS]
    assert {(command.phase, command.target) for command in plan.execs} == {(Phase.EXIT, Target.CONTAINER)}


def test_the_kind_comes_from_node_group_or_defaults(reader: Reader) -> None:
    assert reader.read(levels(groups={"kind": "bridge"})).nodes["n"].kind == "bridge"
    assert reader.read(levels(groups={"kind": "bridge"}, nodes={"kind": "linux"})).nodes["n"].kind == "linux"
    body = {"defaults": {**NODE, "group": "g"}, "groups": {"g": {"kind": "bridge"}}, "nodes": {"n": None}}
    assert reader.read(document(body)).nodes["n"].kind == "bridge", "the group of the defaults"


def test_the_group_comes_from_node_kind_or_defaults(reader: Reader) -> None:
    def group(**values: Any) -> str | None:
        body = {"kinds": {"linux": values.get("kind", {})}, "groups": {"a": {}, "b": {}, "c": {}}}
        defaults = {**NODE, "group": "c"}
        return (
            reader.read(document({**body, "defaults": defaults, "nodes": {"n": values.get("node")}})).nodes["n"].group
        )

    assert group() == "c"
    assert group(kind={"group": "b"}) == "b"
    assert group(kind={"group": "b"}, node={"group": "a"}) == "a"


# Links


def links(reader: Reader, *given: dict[str, Any]) -> Topology:
    return reader.read(document({"nodes": {"n": NODE, "o": NODE}, "links": list(given)}))


def end(node: str, **more: str) -> dict[str, str]:
    return {"node": node, "interface": "e", **more}


def test_links_have_addresses(reader: Reader) -> None:
    brief = {"endpoints": ["n:e", "o:e"], "ipv4": ["192.0.2.1/24", "192.0.2.2/24"], "ipv6": ["", "2001:db8::2/64"]}
    (link,) = links(reader, brief).links
    assert [end.addresses for end in link.ends] == [("192.0.2.1/24",), ("192.0.2.2/24", "2001:db8::2/64")]
    extended = {"type": "veth", "endpoints": [end("n", ipv4="192.0.2.1/24", ipv6="2001:db8::1/64"), end("o")]}
    (link,) = links(reader, extended).links
    assert [end.addresses for end in link.ends] == [("192.0.2.1/24", "2001:db8::1/64"), ()]
    for wrong in ("192.0.2.1", "2001:db8::1/64", "192.0.2.1/33", "x"):
        with pytest.raises(
            TopologyError, match=r"links\[0\]\.ipv4\[0\]: `.*` is not an IPv4 address, write an address"
        ):
            links(reader, {**brief, "ipv4": [wrong]})


@pytest.mark.parametrize(
    "given",
    [
        {"endpoints": ["n:e", "host:to-n"], "ipv4": ["192.0.2.1/30"]},
        {"endpoints": ["host:to-n", "n:e"], "ipv4": ["", "192.0.2.1/30"]},
        {"type": "host", "endpoint": end("n"), "host-interface": "to-n"},
    ],
)
def test_links_to_the_host(reader: Reader, given: dict[str, Any]) -> None:
    (link,) = links(reader, {**given, "mtu": 1500}).links
    assert ([str(end) for end in link.ends], link.mtu) == (["n:e", "host:to-n"], 1500)
    assert link.a.addresses == (("192.0.2.1/30",) if "ipv4" in given else ())


def test_dummy_links_and_labels(reader: Reader) -> None:
    plan = links(reader, {"type": "dummy", "endpoint": end("n"), "labels": {"a": 1}})
    (link,) = plan.links
    assert (link.z, link.labels, plan.interfaces("n")) == (None, {"a": "1"}, ["e"])


@pytest.mark.parametrize(
    ("nodes", "given", "told"),
    [
        ({}, {"endpoints": ["host:a", "host:b"]}, "links[0].endpoints: both ends are the host's, links begin at"),
        ({}, {"type": "host", "endpoint": end("n")}, "links[0].host-interface: `` is not an interface name"),
        ({}, {"type": "dummy", "endpoint": end("q")}, "links[0].endpoint: no node `q`, there are: n, o"),
        (
            {"n": {**NODE, "network-mode": "host"}},
            {"endpoints": ["n:e", "o:e"]},
            "links[0].endpoints: node `n` is in the host's network, name its end `host:e`",
        ),
        (
            {"n": {**NODE, "network-mode": "container:o"}},
            {"endpoints": ["n:e", "o:e"]},
            "links[0].endpoints: o:e is taken by topology.links[0], use another interface name",
        ),
    ],
)
def test_faults_of_links(reader: Reader, nodes: dict[str, Any], given: dict[str, Any], told: str) -> None:
    (fault,) = reader.faults(document({"nodes": {"n": NODE, "o": NODE, **nodes}, "links": [given]}))
    assert fault.startswith(f"topology.{told}")


# The file


def test_templates_are_refused_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"x\.clab\.gotmpl: Go templates are not supported by this runner, render"):
        load(tmp_path / "x.clab.gotmpl", directories=tmp_path)


def test_a_name_may_hold_the_branch(reader: Reader) -> None:
    text = document({"nodes": {"n": NODE}}).replace("name: x", "name: x-__gitBranch__-__gitHash__")
    assert reader.read(text).name == "x-none-none"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"network-mode": "host", "sysctls": {"net.ipv4.ip_forward": 1}},
            "network-mode: `net.ipv4.ip_forward` of `sysctls` would change the host, leave one of the two out",
        ),
        ({"network-mode": "host", "kind": "bridge"}, "network-mode: a bridge would be the host's, leave it out: "),
        ({"network-mode": "container:q"}, "network-mode: no node `q`, there are: n"),
    ],
)
def test_faults_of_network_modes(reader: Reader, given: dict[str, Any], told: str) -> None:
    (fault,) = reader.faults(document({"nodes": {"n": {**NODE, **given}}}))
    assert fault.startswith(f"topology.nodes.n.{told}")
