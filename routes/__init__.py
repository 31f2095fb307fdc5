"""The kernel's FIB, links, neighbours and next-hop resolution, over netlink. Knows no BGP."""

from config.compiled import search_path

__path__ = search_path(__name__, __path__)
