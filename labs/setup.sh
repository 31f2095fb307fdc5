#!/bin/sh
# Make a Debian 12 machine ready for podroute: Debian packages (no unit left running or enabled), and a virtual
# environment under .venv whose packages are pinned and checked by hash. What is there already is skipped.
#   setup.sh                what the demo needs (packages need root)
#   setup.sh --tests        and what the tests compare with
#   setup.sh --no-packages  only the virtual environment
#   setup.sh --lock         resolve setup.cfg anew into requirements.lock
set -eu
cd "$(dirname "$0")/.."

PACKAGES="frr iproute2 iputils-ping nftables ethtool tcpdump procps python3 python3-venv"
# What only the tests and benchmarks compare with and run on.
TEST_PACKAGES="bird2 gobgpd etcd-server etcd-client openssl iperf3 containernetworking-plugins containerd runc podman \
busybox-static gcc libc6-dev python3-dev debootstrap"
# Daemons that start when their package is installed; podroute starts its own, inside network namespaces. PACKAGE:UNIT
UNITS="frr:frr.service bird2:bird.service gobgpd:gobgpd.service etcd-server:etcd.service iperf3:iperf3.service \
containerd:containerd.service podman:podman.socket podman:podman.service \
podman:podman-restart.service podman:podman-auto-update.service podman:podman-auto-update.timer"
PYTHON=/usr/bin/python3

step() { printf '  %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

install_packages() {
    missing=""
    for package in $PACKAGES; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || fail "apt-get not found: install by hand:$missing"
    [ "$(id -u)" = 0 ] || fail "Debian packages are missing:$missing; run with sudo"
    step "Debian packages:$missing"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod 755 $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        trap 'exit 130' INT TERM HUP
    fi
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    # shellcheck disable=SC2086  # a list of words on purpose
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } > "$log" 2>&1 \
        || { cat "$log" >&2; rm -f "$log"; fail "apt-get failed"; }
    rm -f "$log"
    for unit in $UNITS; do
        # A unit of a package that was here before is the owner's business.
        case " $missing " in *" ${unit%%:*} "*) systemctl disable --quiet "${unit#*:}" 2>/dev/null || true ;; esac
    done
}

install_venv() {
    want=$(cat requirements.lock setup.cfg labs/setup.sh | sha256sum)
    [ "$(cat .venv/.complete 2>/dev/null)" = "$want" ] && return 0
    [ -x $PYTHON ] || fail "$PYTHON not found"
    step "virtual environment .venv: $(grep -c '==' requirements.lock) packages, pinned and checked by hash"
    rm -rf .venv
    $PYTHON -m venv .venv || fail "cannot make .venv: is the Debian package python3-venv installed?"
    quiet .venv/bin/pip install --require-hashes -r requirements.lock
    quiet .venv/bin/pip install --no-deps --no-build-isolation --no-index -e .
    rm -rf build
    echo "$want" > .venv/.complete
}

quiet() {
    log=$(mktemp)
    "$@" --quiet --disable-pip-version-check --no-input > "$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; fail "$* failed"; }
    rm -f "$log"
}

write_lock() {
    tools=$(mktemp -d)
    trap 'rm -rf "$tools"' EXIT
    $PYTHON -m venv "$tools/venv"
    quiet "$tools/venv/bin/pip" install pip-tools
    printf 'setuptools>=66\nwheel\n' > "$tools/build.in"
    "$tools/venv/bin/pip-compile" --quiet --generate-hashes --allow-unsafe --strip-extras --extra dev --no-header \
        --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
        -o requirements.lock setup.cfg "$tools/build.in"
}

case "${1:-}" in
    "") install_packages; install_venv ;;
    --tests) PACKAGES="$PACKAGES $TEST_PACKAGES"; install_packages; install_venv ;;
    --no-packages) install_venv ;;
    --lock) write_lock ;;
    *) fail "unknown option $1: one of --tests, --no-packages, --lock" ;;
esac
