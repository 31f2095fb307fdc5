"""The executable that a container runtime runs: it carries the call to the agent and the answer back.

``podroute cni install`` copies this file to the runtime's plugin directory, with an interpreter line in front and the
two paths below filled in. An interpreter takes longer to start than the agent takes to wire a pod, so the file imports
only modules that cost next to nothing, parses nothing, and leaves without tidying up.

Protocol, version 1 (``cni/wire.py`` is the agent's half), integers big-endian:

    request: b"PRCN", version (2), number of fields (2), length of the rest (4), then per field: length (4), bytes
        field 1: the environment's CNI_* variables, ``KEY=value`` joined by NUL
        field 2: standard input as read
        field 3: errno of opening CNI_NETNS in decimal digits, b"0" where it was opened or is not set
        The descriptor of the open namespace travels with the first byte (SCM_RIGHTS).
    answer: b"PRCN", version (2), exit status (2), length (4), then what goes to standard output

A later version may append fields; an agent ignores those that it does not know.

PODROUTE_FAULT in the environment is the errno with which ``cni/plugin.c`` gave up: then there is no further attempt.

With the agent away ADD and CHECK fail with code 11 and STATUS with 50, DEL succeeds and leaves its request as a file
that the agent works off at its next start. VERSION needs no agent. Exit status: 0 or 1, as CNI 1.1.0 says.
"""

# ruff: noqa: SIM105 -- contextlib costs a millisecond
import _socket
import posix
import sys
import time

SOCKET = "/run/podroute/cni.sock"
NOTES = "/var/lib/podroute/cni-deletions"
PATIENCE = 60.0
"""Seconds without a byte from the agent after which it counts as away."""

MAGIC = b"PRCN"
VERSION = 1
SUPPORTED = '["0.3.1","0.4.0","1.0.0","1.1.0"]'
CURRENT = "1.1.0"
SILENT = "the agent closed the connection without an answer"
FOREIGN = "what listens there is not podroute's agent"


def main() -> int:
    environment = {key: value for key, value in posix.environ.items() if key.startswith(b"CNI_")}
    verb = environment.get(b"CNI_COMMAND", b"")
    if not verb:
        write(2, b"podroute CNI plugin; a container runtime runs it. CNI versions: " + SUPPORTED.encode() + b"\n")
        return 0
    stdin = read(0)
    if verb == b"VERSION":
        return leave(0, f'{{"cniVersion":"{CURRENT}","supportedVersions":{SUPPORTED}}}\n'.encode())

    fault = 0
    netns = -1
    if environment.get(b"CNI_NETNS"):
        try:
            netns = posix.open(environment[b"CNI_NETNS"], posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
        except OSError as error:
            fault = error.errno or 5
    frame = request(environment, stdin, fault)
    try:
        if given_up := posix.environ.get(b"PODROUTE_FAULT"):
            raise fault_of(int(given_up))
        return leave(*ask(frame, netns))
    except OSError as error:
        why = str(error)
        hangs = isinstance(error, TimeoutError)

    if verb == b"DEL" and environment.get(b"CNI_CONTAINERID") and environment.get(b"CNI_IFNAME"):
        return postpone(frame, stdin, why, hangs)
    if verb in (b"ADD", b"CHECK", b"GC"):
        return fail(stdin, 11, "podroute's agent does not answer", f"{SOCKET}: {why}; start `podroute agent`")
    if verb == b"STATUS":
        return fail(stdin, 50, "podroute's agent is not running", f"{SOCKET}: {why}")
    return fail(stdin, 4, "CNI_COMMAND or a variable that it needs is missing or unknown", repr(environment))


def request(environment: dict[bytes, bytes], stdin: bytes, fault: int) -> bytes:
    """Return a request as bytes."""
    variables = b"\0".join(key + b"=" + value for key, value in environment.items())
    body = b"".join(len(field).to_bytes(4, "big") + field for field in (variables, stdin, str(fault).encode()))
    return MAGIC + VERSION.to_bytes(2, "big") + (3).to_bytes(2, "big") + len(body).to_bytes(4, "big") + body


def ask(frame: bytes, netns: int) -> tuple[int, bytes]:
    """Return the agent's exit status and output. Raises OSError where there is no (whole) answer."""
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    agent.settimeout(PATIENCE)
    agent.connect(SOCKET)
    ancillary = []
    if netns >= 0:
        ancillary.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, netns.to_bytes(4, sys.byteorder)))
    try:
        sent = agent.sendmsg([frame], ancillary)
        agent.sendall(frame[sent:])
    except (BrokenPipeError, ConnectionResetError):
        pass  # an agent that refuses a request says why before it has read all of it
    answer = b""
    length = 12
    while len(answer) < length:
        data = agent.recv(65536)
        if not data:
            raise ConnectionError(SILENT)
        answer += data
        if len(answer) >= 12 and length == 12:
            if answer[:4] != MAGIC:
                raise ConnectionError(FOREIGN)
            length = 12 + int.from_bytes(answer[8:12], "big")
    return int.from_bytes(answer[6:8], "big"), answer[12:length]


def fault_of(number: int) -> OSError:
    """Return the error that an errno of ``cni/plugin.c``'s stands for."""
    import errno

    if number in (errno.ECONNRESET, errno.EPROTO):
        return ConnectionError(SILENT if number == errno.ECONNRESET else FOREIGN)
    return OSError(number, posix.strerror(number))


def postpone(frame: bytes, stdin: bytes, why: str, hangs: bool) -> int:
    """Leave a deletion for the agent's next start, then try once more: that start may have been in between.

    An agent that hangs is not asked again; the runtime has waited long enough.
    """
    name = f"{time.time_ns()}-{posix.getpid()}"
    note = f"{NOTES}/{name}.del"
    hidden = f"{NOTES}/.{name}"
    try:
        try:
            posix.mkdir(NOTES, 0o700)
        except FileExistsError:
            pass
        file = posix.open(hidden, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
        write(file, frame)
        posix.fsync(file)
        posix.close(file)
        posix.rename(hidden, note)
    except OSError as error:
        return fail(stdin, 5, "podroute's agent is away and the deletion cannot be noted", f"{why}; {error}")
    try:
        if hangs:
            raise TimeoutError
        status, output = ask(frame, -1)
    except OSError:
        write(2, f"podroute's agent is away ({why}); it works this deletion off at its next start\n".encode())
        return 0
    try:
        posix.unlink(note)
    except FileNotFoundError:
        pass  # the agent has just worked it off
    return leave(status, output)


def fail(stdin: bytes, code: int, message: str, details: str) -> int:
    """Answer with an error in the version that the configuration asks for."""
    import json

    version = CURRENT
    try:
        asked = json.loads(stdin)["cniVersion"]
        if asked in json.loads(SUPPORTED):
            version = asked
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    error = {"cniVersion": version, "code": code, "msg": message, "details": details}
    return leave(1, json.dumps(error).encode() + b"\n")


def leave(status: int, output: bytes) -> int:
    write(1, output)
    return status


def read(file: int) -> bytes:
    parts: list[bytes] = []
    while True:
        data = posix.read(file, 65536)
        if not data:
            return b"".join(parts)
        parts.append(data)


def write(file: int, data: bytes) -> None:
    while data:
        data = data[posix.write(file, data) :]


if __name__ == "__main__":
    posix._exit(main())
