#!/bin/sh
# Install podroute on this machine, or another release beside the one that runs (docs/install.md). Starts nothing, stops
# nothing, and changes no file of the operator's.
#   install.sh            into /opt/podroute-RELEASE, which becomes /opt/podroute; the unit; the command on the PATH
#   install.sh --remove   take all of that away again, all releases; configuration and state stay
# PYTHON=/path is the interpreter to run it with, if not Debian's.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-/usr/bin/python3}
UNIT=/etc/systemd/system/podroute.service
COMMAND=/usr/local/bin/podroute
PROTOCOL=/etc/iproute2/rt_protos.d/podroute.conf
SOURCES="LICENSE README.md pyproject.toml setup.cfg requirements.lock agent bgp cni config ipam labs routes"

step() { printf '  %s\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }
quiet() {
    "$@" > "$work/log" 2>&1 || { cat "$work/log" >&2; fail "$* failed"; }
}

# The version and a digest of the sources: two releases never share a directory, and one is not installed twice.
release() {
    # shellcheck disable=SC2086  # a list of words on purpose
    digest=$(find $SOURCES -type f ! -path '*/__pycache__/*' | LC_ALL=C sort | tr '\n' '\0' | xargs -0 sha256sum | sha256sum)
    printf '%s-%.8s\n' "$(sed -n 's/^version = //p' setup.cfg)" "$digest"
}

# Of the locked packages, all checked by hash, a release gets those that podroute asks for: none that only tests need.
install_release() {
    step "$1: the locked packages, checked by hash"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    quiet $PYTHON -m venv "$work/venv"
    pip="$work/venv/bin/pip --disable-pip-version-check --no-input"
    quiet $pip download --require-hashes --requirement requirements.lock --dest "$work/wheels"
    quiet $pip install --no-index --find-links "$work/wheels" setuptools wheel mypy
    mkdir "$work/sources"
    # shellcheck disable=SC2086
    tar -c --exclude=__pycache__ $SOURCES | tar -x -C "$work/sources"
    quiet $pip wheel --no-index --no-deps --no-build-isolation --wheel-dir "$work/wheels" "$work/sources"
    rm -rf "$1"
    quiet $PYTHON -m venv --without-pip "$1"
    quiet $pip --python "$1/bin/python" install --no-index --find-links "$work/wheels" podroute
    # Where there is no compiler it says so, and podroute runs as plain Python.
    (cd / && PYTHONPATH=$(echo "$1"/lib/python3*/site-packages) "$work/venv/bin/python" -m config.compiling) || :
    touch "$1/.complete"
}

reload_units() {
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
}

case "${1:-}" in
    "")
        [ "$(id -u)" = 0 ] || fail "/opt and /etc are root's: run with sudo"
        $PYTHON -c 'import ensurepip, venv' || fail "$PYTHON has no venv: apt-get install python3-venv"
        [ -L /opt/podroute ] || [ ! -e /opt/podroute ] || fail "/opt/podroute is no link to a release: move it away"
        place=podroute-$(release)
        [ -e "/opt/$place/.complete" ] || install_release "/opt/$place"
        mkdir -p "$(dirname $UNIT)" "$(dirname $COMMAND)" "$(dirname $PROTOCOL)"
        install -d -m 700 /etc/podroute
        install -m 644 agent/podroute.service $UNIT
        echo "201 podroute" > $PROTOCOL
        ln -sfn "$place" /opt/podroute
        ln -sfn /opt/podroute/bin/podroute $COMMAND
        reload_units
        step "/opt/podroute is $place"
        ;;
    --remove)
        rm -rf /opt/podroute /opt/podroute-[0-9]* $UNIT $COMMAND $PROTOCOL
        reload_units
        ;;
    *) fail "unknown option $1: only --remove" ;;
esac
