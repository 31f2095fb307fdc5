"""The kernel's FIB, links, neighbours and next-hop resolution, over netlink. Knows no BGP."""
