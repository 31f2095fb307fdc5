"""Numbers by which podroute's objects in the kernel are known, as `ip route` and `ip nexthop` show them."""

from __future__ import annotations

from config.prefix import Family

ROUTE_PROTOCOL = 201
"""rtnetlink protocol of every route and next-hop object of ours (rtm_protocol, nh_protocol)."""

RULE_PRIORITY = 201
"""Priority of our policy rules: behind the local table, before all others."""

MAIN_TABLE = 254
DEFAULT_METRIC = 20
"""Metric of learned IPv4 routes; those to connected subnets have 0."""
DEFAULT_METRIC_IPV6 = 512
"""Metric of learned IPv6 routes: above that of connected subnets (256, IP6_RT_PRIO_ADDRCONF of the kernel), which would
else be shadowed, and below what router advertisements and `ip -6 route` give (1024)."""

COVER_METRIC = 1
"""Metric of the ``unreachable`` routes over own blocks: below that of learned routes, so that nobody's announcement of
our own block wins over it."""

POD_METRIC: dict[Family, int] = {4: 0, 6: 1}
"""Metric of host routes to pods: the lowest that the family has, below that of learned routes, so that nobody's
announcement of a pod's own address wins over it. (An IPv6 route that states 0 gets 1024.)"""

NEXT_HOP_IDS = range(ROUTE_PROTOCOL << 20, (ROUTE_PROTOCOL + 1) << 20)
"""Ids of our next-hop objects; ids that others took inside are skipped."""
