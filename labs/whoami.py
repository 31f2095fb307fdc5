"""A TCP server for pods: tells each client the address that it came from, so that a NAT on the way would show.

Stands alone (`python3 -I whoami.py PORT`), because it runs inside a container.
"""

import socket
import socketserver
import sys


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        address = self.client_address[0].removeprefix("::ffff:")
        self.request.sendall(f"{address}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("::", int(sys.argv[1])), Handler) as server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        server.serve_forever()
