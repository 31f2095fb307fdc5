"""A black-box conformance suite for BGP speakers: raw BGP at whatever listens, judged by what comes back.

Nothing here uses podroute's own code (but ``podroute``, which starts it): what podroute gets wrong would otherwise be
wrong on both sides, and agree with itself.
"""
