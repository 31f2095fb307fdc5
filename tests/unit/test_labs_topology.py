"""Topology files: what each fault says, and how levels are merged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from labs.errors import LabError, TopologyError
from labs.lab import TOPOLOGIES, load
from labs.reading import load as load_file
from labs.source import expand
from labs.topology import Topology

SHIPPED = sorted(path.name.removesuffix(".clab.yml") for path in TOPOLOGIES.glob("*.clab.yml"))

Loader = Callable[..., Topology]


@pytest.fixture
def read(tmp_path: Path) -> Loader:
    def read(text: str, **options: Any) -> Topology:
        path = tmp_path / "x.clab.yml"
        path.write_text(text)
        options.setdefault("environ", {})
        return load_file(path, directories=tmp_path / "labs", **options)

    return read


@pytest.fixture
def faults(read: Loader, tmp_path: Path) -> Callable[..., list[str]]:
    def faults(text: str, **options: Any) -> list[str]:
        with pytest.raises(TopologyError) as caught:
            read(text, **options)
        return [fault.removeprefix(f"{tmp_path}/x.clab.yml:") for fault in caught.value.faults]

    return faults


NODE = "{kind: linux, image: alpine}"


def document(nodes: str = f"a: {NODE}\n    b: {NODE}", more: str = "", top: str = "") -> str:
    return f"name: x\n{top}\ntopology:\n  nodes:\n    {nodes}\n{more}"


def link(text: str) -> str:
    return document(more=f"  links:\n    - {text}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (document(top="nmae: y"), ["nmae: unknown key, did you mean `name`?"]),
        (document(top="color: red"), ["color: unknown key, there are: name, prefix, topology"]),
        (
            document(top="mgmt: {network: custom}"),
            ["mgmt: this key of containerlab is not supported by this runner, remove it"],
        ),
        (
            document("a: {kind: linux, image: alpine, imgae: b}"),
            ["topology.nodes.a.imgae: unknown key, did you mean `image`?"],
        ),
        (
            document("a: {kind: linux, image: alpine, startup-config: b}"),
            [
                "topology.nodes.a.startup-config: this key of containerlab is not supported by this runner, remove it",
            ],
        ),
        (
            document("a: {kind: nokia_srlinux, image: alpine}"),
            ["topology.nodes.a.kind: kind `nokia_srlinux` cannot be built here, `linux` and `bridge` can"],
        ),
        (
            document(more="  kinds: {ovs-bridge: {}}"),
            ["topology.kinds.ovs-bridge: kind `ovs-bridge` cannot be built here, `linux` and `bridge` can"],
        ),
        (
            document("a: {image: alpine}"),
            ["topology.nodes.a.kind: missing here, in its group and in topology.defaults, write `linux`"],
        ),
        (
            document("a: {kind: linux}"),
            [
                "topology.nodes.a.image: missing here, in its group, its kind and topology.defaults, "
                "`quay.io/frrouting/frr:8.4.1` runs this host's FRR, `localhost/podroute:dev` this podroute",
            ],
        ),
        (
            document("a: {kind: linux, image: alpine, network-mode: bridge}"),
            [
                "topology.nodes.a.network-mode: `bridge` cannot be built here, `none`, `host` and `container:NODE` "
                "can; without it a node has the links of the file and no others",
            ],
        ),
        (
            document("a: {kind: linux, image: alpine, group: tors}", "  groups: {tor: {}}"),
            ["topology.nodes.a.group: no group `tors` in topology.groups, groups there: tor"],
        ),
        (document(f"-a: {NODE}"), ["topology.nodes.-a: `-a` is not a node name, begin with a letter or digit, "]),
        (document(f"host: {NODE}"), ["topology.nodes.host: `host` means something else in links, choose another name"]),
        ("name: x\ntopology: {nodes: {}}", ["topology.nodes: no nodes, name at least one"]),
        (
            "name: x\n",
            ["topology: missing, it holds `nodes` and `links`", "topology.nodes: no nodes, name at least one"],
        ),
        (
            document().replace("name: x", "name: ' x'"),
            ["name: ` x` is not a lab name, begin with a letter or digit, then also `.`, `_` and `-`"],
        ),
        (document().removeprefix("name: x"), ["name: missing, lab names are letters, digits, `.`, `_` and `-`"]),
        (
            document("a: [1]", "  defaults: {kind: linux, image: alpine}"),
            ["topology.nodes.a: a list where a map belongs, write `key: value` lines"],
        ),
        (
            document("a: {kind: linux, image: {x: y}}"),
            ["topology.nodes.a.image: a map where one value belongs, write a single value", "topology.nodes.a.image: "],
        ),
        (
            document("a: {kind: linux, image: alpine, exec: ip link}"),
            ["topology.nodes.a.exec: `ip link` where a list belongs, write `- item` lines"],
        ),
        (
            document("a: {kind: linux, image: alpine, exec: ['echo \"a']}"),
            ['topology.nodes.a.exec[0]: `echo "a`: no closing quotation, close every quote, or escape it'],
        ),
        (
            document("a: {kind: linux, image: alpine, exec: [' ']}"),
            ["topology.nodes.a.exec[0]: no command, write a program and its arguments"],
        ),
        (
            document('a: {kind: linux, image: alpine, cmd: "it\'s"}'),
            ["topology.nodes.a.cmd: `it's`: no closing quotation, close every quote, or escape it"],
        ),
        (
            document("a: {kind: linux, image: alpine, sysctls: {kernel.panic: 1}}"),
            ["topology.nodes.a.sysctls.kernel.panic: not a setting of the network namespace, only `net.*` can be set"],
        ),
        (
            document("a: {kind: linux, image: alpine, binds: [/etc]}"),
            ["topology.nodes.a.binds[0]: `/etc` is not a bind, write `source:target` or `source:target:ro`"],
        ),
        (
            document("a: {kind: linux, image: alpine, binds: ['/etc:/x:Z']}"),
            ["topology.nodes.a.binds[0]: option `Z` is not supported, `ro` and `rw` are"],
        ),
        (
            document("a: {kind: linux, image: alpine, binds: ['/etc:x']}"),
            ["topology.nodes.a.binds[0]: target `x` is not a path in the node, begin it with `/`"],
        ),
        (
            document("a: {kind: linux, image: alpine, binds: ['/etc:/sys/x']}"),
            ["topology.nodes.a.binds[0]: `/sys/x` belongs to the kernel, bind somewhere else"],
        ),
        (link("{endpoints: ['a:eth1']}"), ["topology.links[0].endpoints: 1 endpoints, a link has exactly two"]),
        (link("{endpoints: ['a:e', 'c:e']}"), ["topology.links[0].endpoints: no node `c`, there are: a, b"]),
        (
            link("{endpoints: ['a:e', 'a:e']}"),
            ["topology.links[0].endpoints: a:e is taken by topology.links[0], use another interface name"],
        ),
        (link("{endpoints: [a, 'b:e']}"), ["topology.links[0].endpoints[0]: `a` is not an endpoint, write `node:inte"]),
        (
            link("{endpoints: ['a:e', 'mgmt-net:e']}"),
            ["topology.links[0].endpoints[1]: endpoints of `mgmt-net` cannot be built here, links join two nodes"],
        ),
        (
            link("{endpoints: ['a:sixteen-letters!', 'b:e']}"),
            ["topology.links[0].endpoints[0]: `sixteen-letters!` is not an interface name, 1 to 15 characters "],
        ),
        (link("{endpoints: ['a:e', 'b:lo']}"), ["topology.links[0].endpoints[1]: `lo` is not an interface name, 1 "]),
        (
            link("{endpoints: ['a:e', 'b:e'], mtu: 12}"),
            ["topology.links[0].mtu: `12` is not usable, a whole number from 68 to 65535 is"],
        ),
        (
            link("{endpoints: ['a:e', 'b:e'], ipv4: [1, 2]}"),
            ["topology.links[0].ipv4[0]: `1` is not an IPv4 address, write an address with its prefix length, "],
        ),
        (
            link("{type: vxlan, endpoint: {node: a, interface: e}}"),
            ["topology.links[0].type: links of type `vxlan` cannot be built here, `dummy`, `host`, `veth` can"],
        ),
        (
            link("{type: veth, endpoints: [{node: a, interface: e}, {node: b}]}"),
            ["topology.links[0].endpoints[1].interface: missing, write `eth1` for example"],
        ),
        (
            link("{type: veth, endpoints: [{node: a, interface: e}, {node: b, interface: e, mac: 'aa:bb'}]}"),
            ["topology.links[0].endpoints[1].mac: `aa:bb` is not a MAC address, write six octets like "],
        ),
        (
            link(
                "{type: veth, endpoints: [{node: a, interface: e}, {node: b, interface: e, mac: '01:00:00:00:00:01'}]}"
            ),
            ["topology.links[0].endpoints[1].mac: `01:00:00:00:00:01` is a group address, the first octet must be"],
        ),
        (link("{type: veth, endpoints: [a, {node: b, interface: e}]}"), ["topology.links[0].endpoints[0]: not a map"]),
        ("name: x\nname: y\n", ["2:1: key `name` stands twice in one map; keep one"]),
        ("name: x\n? [a]\n: 1\n", ["2:3: a key must be a plain word"]),
        ("name: [x\n", ["2:1: expected ',' or ']', but got '<stream end>'"]),
        ("name: x\n\ttopology: 1\n", ["2:1: found character '\\t' that cannot start any token"]),
        ("", ["name: missing", "topology: missing", "topology.nodes: no nodes"]),
        ("- x", [" a list where a map belongs", "name: missing", "topology: missing", "topology.nodes: no nodes"]),
    ],
)
def test_what_is_wrong_is_told_with_its_place(faults: Callable[..., list[str]], text: str, expected: list[str]) -> None:
    found = faults(text)
    assert len(found) == len(expected), found
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


def test_all_faults_come_at_once(faults: Callable[..., list[str]]) -> None:
    text = document("a: {kind: linux, image: alpine, x: 1, y: 2}\n    b: {kind: vms}", "  links: [{endpoints: [a, b]}]")
    places = [fault.partition(": ")[0] for fault in faults(text)]
    assert places == [
        "topology.nodes.a.x",
        "topology.nodes.a.y",
        "topology.nodes.b.kind",
        "topology.nodes.b.image",
        "topology.links[0].endpoints[0]",
    ]


def test_a_fault_that_several_nodes_inherit_is_told_once(faults: Callable[..., list[str]], tmp_path: Path) -> None:
    text = document(more="  defaults: {binds: ['nothing:/x']}")
    right = "sources are paths from the topology file's directory"
    assert faults(text) == [f"topology.defaults.binds[0]: {tmp_path}/nothing does not exist, {right}"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.clab.yml"
    if content:
        path.write_bytes(content)
    with pytest.raises(TopologyError, match=r"x\.clab\.yml: (No such file|not a text file)"):
        load_file(path, directories=tmp_path)


MERGING = """
name: x
topology:
  defaults:
    kind: linux
    image: from-defaults
    cmd: sleep 1
    exec: [echo defaults, echo same]
    env: {A: defaults, B: defaults, C: defaults, D: defaults}
    binds: ["/etc:/bound", "/tmp:/also"]
    sysctls: {net.ipv4.ip_forward: 0}
  kinds:
    linux:
      group: of-kind
      image: from-kind
      exec: [echo kind]
      env: {B: kind, C: kind, D: kind}
      labels: {rack: kind}
  groups:
    of-kind: {labels: {group: of-kind}}
    g:
      image: from-group
      exec: [echo group, echo same]
      env: {C: group, D: group}
      binds: ["/usr:/bound:ro"]
      labels: {rack: group}
  nodes:
    n:
      group: g
      image: from-node
      exec: [echo node]
      env: {D: node}
      binds: ["/opt:/bound"]
      sysctls: {net.ipv4.ip_forward: 1}
    plain: ~
    in-group: {group: g, entrypoint: tini --, cmd: "sh -c 'sleep 2'"}
"""


def test_levels_are_merged_as_containerlab_does(read: Loader) -> None:
    nodes = read(MERGING).nodes
    node = nodes["n"]
    assert (node.kind, node.image, node.group) == ("linux", "from-node", "g")
    # Lists run from the least specific level to the most specific, each item once.
    assert [argv[1] for argv in node.exec] == ["defaults", "same", "kind", "group", "node"]
    assert node.env == {"A": "defaults", "B": "kind", "C": "group", "D": "node"}
    assert [(str(bind.source), bind.target, bind.read_only) for bind in node.binds] == [
        ("/tmp", "/also", False),
        ("/opt", "/bound", False),
    ]
    assert node.sysctls == {"net.ipv4.ip_forward": "1"}
    assert node.labels == {"rack": "group"}
    assert node.command == ("sleep", "1")
    assert nodes["plain"].group == "of-kind"
    assert nodes["plain"].image == "from-kind"
    assert nodes["plain"].labels == {"rack": "kind", "group": "of-kind"}
    assert nodes["in-group"].command == ("tini", "--", "sh", "-c", "sleep 2")
    assert nodes["in-group"].binds[1].read_only


def test_the_kind_may_come_from_the_group(read: Loader) -> None:
    text = document("a: {group: g, image: alpine}", "  groups: {g: {kind: linux}}")
    assert read(text).nodes["a"].kind == "linux"


def test_scalars_keep_their_text(read: Loader) -> None:
    env = read(document("a: {kind: linux, image: alpine, env: {A: 010, B: yes, C: 1.50, D: 12:30}}")).nodes["a"].env
    assert env == {"A": "010", "B": "yes", "C": "1.50", "D": "12:30"}


def test_anchors_and_merge_keys(read: Loader) -> None:
    text = f"a: &it {NODE}\n    b: {{<<: *it, image: other}}\n    c: *it"
    assert [node.image for node in read(document(text)).nodes.values()] == ["alpine", "other", "alpine"]


def test_links(read: Loader, tmp_path: Path) -> None:
    extended = (
        "{type: veth, mtu: 1500, labels: {a: b}, endpoints: "
        "[{node: a, interface: e2, mac: '02:00:00:00:00:0A'}, {node: b, interface: e2}]}"
    )
    text = document(more=f"  links:\n    - endpoints: ['a:eth1', 'b:eth1']\n    - {extended}")
    first, second = read(text).links
    assert (str(first.a), str(first.z), first.mtu) == ("a:eth1", "b:eth1", 9500)
    assert first.a.mac.startswith("aa:c1:ab:")
    assert first.z
    assert first.a.mac != first.z.mac
    assert (second.a.mac, second.mtu) == ("02:00:00:00:00:0a", 1500)
    assert first == read(text).links[0], "the same lab has the same addresses each time"
    assert first.a.mac != read(text, name="other").links[0].a.mac, "and another lab has others"


def test_magic_variables(read: Loader, tmp_path: Path) -> None:
    node = (
        "{kind: linux, image: alpine, exec: [echo __clabNodeName__ __clabLabName__], "
        "binds: ['__clabDir__/s:/s', '__clabNodeDir__:/own', '__clabNodeName__.txt:/t']}"
    )
    (tmp_path / "a.txt").touch()
    plan = read(document(f"a: {node}"), name="mine")
    made = plan.nodes["a"]
    directory = tmp_path / "labs/mine/clab"
    assert plan.directory == directory
    assert made.exec == (("echo", "a", "clab-mine"),)
    assert {bind.target: (bind.source, bind.make) for bind in made.binds} == {
        "/s": (directory / "s", True),
        "/own": (directory / "a", True),
        "/t": (tmp_path / "a.txt", False),
    }


def test_the_environment_is_imported_on_request(read: Loader) -> None:
    text = document("a: {kind: linux, image: alpine, env: {__IMPORT_ENVS: true, B: own}}")
    assert read(text, environ={"A": "host", "B": "host"}).nodes["a"].env == {"A": "host", "B": "own"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A ${A}x $AB", "1 1x $AB"),
        ("${B:-two} ${B-two} ${E:-two} ${E-two}", "two two two "),
        ("${B:=two} ${B=two} ${E:=two} ${E=two}", "two two two "),
        ("${A:+two} ${E:+two} ${E+two} ${B+two}|", "two  two |"),
        ("${B:-$A} ${B:-$B}", "1 $B"),
        ("$$A $${A} ${B} $B $1 $ 100$", "$A ${A} ${B} $B $1 $ 100$"),
        ("${A", "${A"),
    ],
)
def test_variables(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "E": ""}) == expected


def test_variables_are_expanded_in_the_file(read: Loader) -> None:
    text = document("a: {kind: linux, image: 'alpine:${TAG:=3}'}")
    assert read(text).nodes["a"].image == "alpine:3"
    assert read(text, environ={"TAG": "4"}).nodes["a"].image == "alpine:4"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_topologies_are_sound(name: str) -> None:
    plan = load(name)
    assert plan.name == name
    assert plan.links


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_topologies_are_containerlabs(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    data = Path(os.environ.get("PODROUTE_DATA", Path(__file__).parents[3] / "shared/data"))
    schema = data / "schemas/clab.schema.json"
    if not schema.exists():
        pytest.skip(f"containerlab's schema is not at {schema}: set PODROUTE_DATA")
    path = TOPOLOGIES / f"{name}.clab.yml"
    document = yaml.safe_load(path.read_text())
    # Not `validate`: it also checks the schema, whose pattern for `ports` is none of Python's.
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    assert [error.message for error in validator.iter_errors(document)] == []
    modes = {node["network-mode"] for node in [document["topology"]["defaults"]]}
    assert modes == {"none"}, "containerlab's management network would give every node a default route"


FRR_IMAGE = "quay.io/frrouting/frr:8.4.1"
OUR_IMAGE = "localhost/podroute:dev"
OTHER_IMAGES = {
    "docker.io/nicolaka/netshoot:latest",
    "docker.io/pierky/bird:2.0.12",
    "docker.io/jauderho/gobgp:v3.10.0",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_topologies_run_public_images_and_ours(name: str) -> None:
    """Ours begins with the program that its Containerfile makes the entrypoint of the image."""
    plan = load(name)
    nodes = [node for node in plan.nodes.values() if node.kind == "linux"]
    assert {node.image for node in nodes} <= {FRR_IMAGE, OUR_IMAGE, *OTHER_IMAGES}
    assert {node.network for node in nodes} == {""}
    for node in nodes:
        if node.image == OUR_IMAGE:
            assert " ".join(node.command).endswith("podroute agent --config /etc/podroute/podroute.yaml")
            assert any(bind.target == "/var/lib/podroute-store" and bind.make for bind in node.binds)
        elif node.image == FRR_IMAGE:
            assert {bind.target for bind in node.binds} >= {"/etc/frr/daemons", "/etc/frr/frr.conf"}
    assert 'ENTRYPOINT ["podroute"]' in (TOPOLOGIES.parents[1] / "Containerfile").read_text()


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(LabError, match=r"no shipped topology of that name: .*one-tor, .*two-racks"):
        load("three-racks")


def test_bridges_have_no_image_and_delays_are_seconds(read: Loader, faults: Callable[..., list[str]]) -> None:
    plan = read(document("a: {kind: bridge}\n    b: {kind: linux, image: alpine, startup-delay: 3}"))
    assert (plan.nodes["a"].kind, plan.nodes["b"].startup_delay) == ("bridge", 3)
    (told,) = faults(document("a-name-that-is-too-long: {kind: bridge}"))
    assert "an interface: at most 15 characters" in told
    (told,) = faults(document("a: {kind: linux, image: alpine, startup-delay: soon}"))
    assert told == "topology.nodes.a.startup-delay: `soon` is not usable, a whole number from 0 to 3600 is"


def test_variables_from_files(read: Loader, faults: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "common.env").write_text("# all\nA=1\nB = 'two words'\n\nC=file\n")
    (tmp_path / "wrong.env").write_text("A=1\nexport B\n")
    levels = "  defaults: {env-files: [common.env], env: {C: given}}"
    assert read(document(f"a: {NODE}", levels)).nodes["a"].env == {"A": "1", "B": "two words", "C": "given"}
    (told,) = faults(document(f"a: {NODE}", levels.replace("common", "wrong")))
    assert told.endswith("wrong.env: line 2: `export B` is not a variable, write lines of `NAME=value`")
    (told,) = faults(document(f"a: {NODE}", levels.replace("common", "absent")))
    assert "absent.env: No such file or directory" in told
