"""Topologies in containerlab format, and a runner that builds them from network namespaces."""
