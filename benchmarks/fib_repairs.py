"""How soon podroute's routes are back after somebody else, or a link, took them away."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial

from benchmarks.fib_cases import Run, undisturbed
from benchmarks.fib_lab import PATIENCE, PEER_AS, Podroute, Router, packed, peer_address, running
from benchmarks.fib_streams import Stream, made
from config.kernel import DEFAULT_METRIC, MAIN_TABLE, ROUTE_PROTOCOL
from routes import netlink
from routes.encode import MOST, REPLACE, Placement, delete_shape, route_batch, via_paths, write_shape
from routes.messages import RT_SCOPE_UNIVERSE, RTN_UNICAST, LinkEvent, Path, decode

_PLACE = Placement(4, MAIN_TABLE, DEFAULT_METRIC, ROUTE_PROTOCOL)


class Meddler:
    """Another program that deletes and replaces podroute's routes, as fast as the kernel lets it."""

    def __init__(self, router: Router) -> None:
        self._sock = router.ns.call(lambda: netlink.open_socket(send_buffer=4 << 20, receive_buffer=4 << 20))
        self.up1 = router.ns.call(lambda: socket.if_nametoindex("up1"))
        way = via_paths(4, [Path(packed(peer_address(4, 1)), self.up1)])
        self._elsewhere = write_shape(_PLACE, REPLACE, RTN_UNICAST, RT_SCOPE_UNIVERSE, way)
        self._gone = delete_shape(_PLACE)

    def close(self) -> None:
        self._sock.close()

    def delete(self, *prefixes: bytes) -> None:
        for at in range(0, len(prefixes), MOST):
            self._sock.send(route_batch(self._gone, prefixes[at : at + MOST]))
            netlink.receive_refusals(self._sock)

    def replace(self, prefix: bytes) -> None:
        """Have a route lead over the other uplink."""
        self._sock.send(route_batch(self._elsewhere, [prefix]))
        netlink.receive_refusals(self._sock)


def repairs(run: Run) -> None:
    """One route deleted, one replaced; all of them flushed, with their next-hop objects, with their link."""
    run.attempt("repair", partial(_repairs, run))


def _repairs(run: Run) -> None:
    count = run.sizes.present
    # The peer is on one link and its next hop on the other, so that the session outlives what happens there.
    stream = made(4, count, 200, packed(peer_address(4, 0)), PEER_AS[1])
    with running(Podroute, 1) as router:
        router.feeders[1].send_later(stream.data)
        router.kernel.settle(4, ROUTE_PROTOCOL, count, count)
        meddler = Meddler(router)
        probes = stream.sample[: run.sizes.probes]
        found = run.results.repairs
        with undisturbed():
            found["one route deleted"] = [_deleted(router, meddler, prefix) for prefix in probes]
            found["one route replaced"] = [_replaced(router, meddler, prefix) for prefix in probes]
            flushes: dict[str, Callable[[], object]] = {
                f"{count:,} routes flushed": partial(meddler.delete, *stream.prefixes),
                f"next-hop objects of {count:,} routes flushed": partial(
                    router.ns.run, "ip", "nexthop", "flush", "proto", str(ROUTE_PROTOCOL)
                ),
            }
            for what, cause in flushes.items():
                start = time.perf_counter()
                cause()
                found[what] = [_complete(router, stream) - start]
            start = _carrier_lost_and_back(router)
            found[f"carrier lost and back, {count:,} routes"] = [_complete(router, stream) - start]
        meddler.close()
    for what, seconds in found.items():
        run.say(f"repair: {what}: {max(seconds) * 1000:.1f} ms at most of {len(seconds)}")


def _complete(router: Router, stream: Stream) -> float:
    """Return when the kernel has all routes again."""
    count = len(stream.prefixes)
    end = router.kernel.wait(stream, there=True)
    return max(end, router.kernel.settle(4, ROUTE_PROTOCOL, count, count))


def _deleted(router: Router, meddler: Meddler, prefix: bytes) -> float:
    meddler.delete(prefix)
    return _awaited(lambda: router.kernel.has(4, prefix))


def _replaced(router: Router, meddler: Meddler, prefix: bytes) -> float:
    address = prefix[1:].ljust(4, b"\1")
    meddler.replace(prefix)
    return _awaited(lambda: router.kernel.way(address) != meddler.up1)


def _awaited(holds: Callable[[], bool]) -> float:
    start = time.perf_counter()
    while not holds():
        if time.perf_counter() > start + PATIENCE:
            raise TimeoutError("a route is not repaired")
        time.sleep(0.0001)
    return time.perf_counter() - start


def _carrier_lost_and_back(router: Router) -> float:
    """Take the next hop's link away until all routes are gone, give it back, and return when the kernel said so."""
    watch = router.ns.call(lambda: netlink.open_socket(groups=(1,)))
    with watch:
        router.fabric.run("ip", "link", "set", "down0", "down")
        router.kernel.settle(4, ROUTE_PROTOCOL, 0, 0)
        router.fabric.run("ip", "link", "set", "down0", "up")
        while True:
            data = watch.recv(netlink.RECEIVE)
            events = [decode(data, msg) for msg in netlink.messages(data)]
            if any(isinstance(e, LinkEvent) and e.link.name == "up0" and e.link.up for e in events):
                return time.perf_counter()
