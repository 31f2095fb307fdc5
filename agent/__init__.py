"""One node's process: the only place where bgp, routes, ipam and cni meet."""
