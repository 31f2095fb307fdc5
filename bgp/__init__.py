"""The BGP speaker: bytes in, route changes out. Knows no kernel and no pods."""

from config.compiled import search_path

__path__ = search_path(__name__, __path__)
