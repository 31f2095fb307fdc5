"""Pools, blocks and addresses, and the stores that make a block's owner unique in the cluster."""
