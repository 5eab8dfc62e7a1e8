#!/bin/sh
# What pip cannot install: a Python with venv, git and bubblewrap. As root they are installed with apt-get;
# otherwise the command to run is named. Bubblewrap is optional (the `process` sandbox works without).
set -eu
export DEBIAN_FRONTEND=noninteractive

install() { # install PACKAGE, when root on a system with apt
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
    echo "setup: installing $1" >&2
    { apt-get update -qq && apt-get install -y -qq "$1"; } >/dev/null 2>&1
}
need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || install "$2"
}

# `setup-system.sh tests`: a container engine for the docker sandbox's tests, which start it on a
# private socket themselves (where systemd runs, the package would start one for the whole machine),
# and the compiler with which DeepSpeed builds what it needs on a CPU.
if [ "${1:-}" = tests ]; then
    command -v dockerd >/dev/null 2>&1 || { [ ! -d /run/systemd/system ] && install docker.io; } ||
        echo "setup: dockerd is missing, so the docker sandbox's tests are skipped: run 'sudo apt-get install docker.io' to have them." >&2
    need g++ g++ ||
        echo "setup: g++ is missing, so DeepSpeed's tests are skipped: run 'sudo apt-get install g++' to have them." >&2
    exit 0
fi

find_python() { # the name of a Python that is new enough
    for name in python3.11 python3.12 python3.13 python3; do
        command -v "$name" >/dev/null 2>&1 || continue
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        echo "$name"
        return 0
    done
    return 1
}
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$(find_python)" || { install python3 && PYTHON="$(find_python)"; } ||
        { install python3.11 && PYTHON="$(find_python)"; } || {
        found="$(python3 -V 2>/dev/null)" || found="no python3"
        echo "setup: Python 3.11 or newer is needed, and here is $found: install one (apt-get install python3 python3-venv), or name it (PYTHON=/path/to/python), and run make again." >&2
        exit 1
    }
fi
need git git || {
    echo "setup: git is needed: run 'sudo apt-get install git' and make again." >&2
    exit 1
}
need bwrap bubblewrap || echo "setup: bubblewrap is missing, so commands of agents will run WITHOUT isolation: run 'sudo apt-get install bubblewrap' to have it." >&2

if [ ! -x "$VENV/bin/pip" ]; then
    package="$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    has_venv() { "$PYTHON" -c 'import ensurepip' 2>/dev/null; }
    has_venv || install "$package" || true
    has_venv || {
        echo "setup: $PYTHON has no venv module: run 'sudo apt-get install $package' and make again." >&2
        exit 1
    }
    "$PYTHON" -m venv "$VENV"
fi
