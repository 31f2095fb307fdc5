"""The BGP speaker: bytes in, route changes out. Knows no kernel and no pods."""
