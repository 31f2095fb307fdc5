"""A black-box conformance suite for BGP speakers: raw BGP at whatever listens, judged by what comes back.

Nothing here uses podroute's own code: what podroute would get wrong on both sides would otherwise agree with itself.
"""
