"""Where the cluster's store is, and what it takes to be let in."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from config.policy import Section
from config.values import AbsolutePath, wrong

ETCD_PORT = 2379
_RIGHT = '"sqlite:///absolute/path/of/store.db" or "etcd://host1,host2,host3" (port 2379 unless given)'
_ENDPOINT = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?))(:(?P<port>\d+))?"
)


class Place(NamedTuple):
    """A store's URL taken apart: a file, or the hosts and ports of etcd's members."""

    scheme: Literal["sqlite", "etcd"]
    path: str = ""
    endpoints: tuple[tuple[str, int], ...] = ()

    @property
    def url(self) -> str:
        if self.scheme == "sqlite":
            return f"sqlite://{self.path}"
        shown = (f"[{host}]" if ":" in host else host for host, _ in self.endpoints)
        ports = ("" if port == ETCD_PORT else f":{port}" for _, port in self.endpoints)
        return "etcd://" + ",".join(host + port for host, port in zip(shown, ports, strict=True))


def parse_store(url: str) -> Place:
    """Return the place of ``sqlite:///absolute/path`` or ``etcd://host,host:port,[fd00::1]``; else ValueError."""
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest.strip("/") and not rest.endswith("/"):
        return Place("sqlite", "/" + rest.lstrip("/"))
    if scheme == "etcd" and separator:
        endpoints = tuple(_endpoint(text) for text in rest.split(","))
        if len(set(endpoints)) == len(endpoints):
            return Place("etcd", "", endpoints)
    raise ValueError(f"{url!r} is no store")


def _endpoint(text: str) -> tuple[str, int]:
    match = _ENDPOINT.fullmatch(text)
    port = int(match["port"] or ETCD_PORT) if match else 0
    if not match or not 1 <= port <= 65535:
        raise ValueError(f"{text!r} is not host or host:port")
    return match["six"] or match["host"], port


def _url(value: Any) -> str:
    try:
        return parse_store(value).url
    except (ValueError, AttributeError):
        raise wrong(value, _RIGHT) from None


class Store(Section):
    """Written as a URL alone, or as a mapping where etcd wants TLS or a password."""

    url: Annotated[str, BeforeValidator(_url)] = Field(description=_RIGHT)
    tls: bool = Field(default=False, description="true (the system's certificate authorities unless ca) or false")
    ca: AbsolutePath | None = Field(default=None, description="the absolute path of a PEM file")
    certificate: AbsolutePath | None = Field(default=None, description="the absolute path of a PEM file")
    key: AbsolutePath | None = Field(default=None, description="the absolute path of a PEM file")
    user: str | None = Field(default=None, min_length=1, description="a user of etcd")
    password_file: AbsolutePath | None = Field(default=None, description="the absolute path of a file")

    @property
    def place(self) -> Place:
        return parse_store(self.url)

    @property
    def secured(self) -> bool:
        """Whether the connection is to use TLS."""
        return self.tls or self.ca is not None or self.certificate is not None


def _short_form(value: Any) -> Any:
    if isinstance(value, dict | Store):
        return value
    return {"url": _url(value)}


StoreOrUrl = Annotated[Store, BeforeValidator(_short_form)]
