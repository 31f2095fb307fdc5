"""Does a CNI plugin do what the specification says? A black-box suite for any plugin that makes interfaces.

    python -m tests.conformance.cni --plugin /usr/lib/cni/ptp --conf ptp.conf

Root, iproute2 and Python's standard library are all it needs. It works in network namespaces of its own.
"""
