# Sourced by the other scripts, all of them with `set -eu`: a private Python
# environment, a redis-server, and nothing else of the machine is touched.

CHECKOUT=$(cd "$(dirname "$0")/.." && pwd -P)

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# environment [EXTRA]: set PYTHON to the interpreter of a virtual environment with
# this checkout installed in it, and go to the checkout. Made once, and again when
# setup.cfg, the interpreter or the place has changed. With OLDEST set, another one, with
# the oldest libraries that setup.cfg allows.
environment() {
    writable_checkout
    cd "$CHECKOUT"
    ENVIRONMENT=$CHECKOUT/.venv${OLDEST:+-oldest} PYTHON=$CHECKOUT/.venv${OLDEST:+-oldest}/bin/python
    exec 9>"$CHECKOUT/.venv.lock"
    flock 9
    host_python
    stamp="$CHECKOUT $("$HOST_PYTHON" -VV) $(cat setup.cfg pyproject.toml | cksum)"
    if ! { [ "$(cat "$ENVIRONMENT/stamp" 2>/dev/null)" = "$stamp" ] && "$PYTHON" -c ''; }; then
        say "making a private environment in $ENVIRONMENT"
        rm -rf "$ENVIRONMENT"
        "$HOST_PYTHON" -m venv "$ENVIRONMENT" || fail "python3 -m venv failed"
        : >"$ENVIRONMENT/constraints"
        [ -z "${OLDEST:-}" ] || oldest_libraries >"$ENVIRONMENT/constraints"
        install_into_environment .
        printf '%s\n' "$stamp" >"$ENVIRONMENT/stamp"
    fi
    if [ -n "${1-}" ] && ! [ -e "$ENVIRONMENT/stamp-$1" ]; then
        say "adding what the ${1}s need"
        install_into_environment ".[$1]"
        : >"$ENVIRONMENT/stamp-$1"
    fi
    flock -u 9
    exec 9>&-
}

install_into_environment() {
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint "$ENVIRONMENT/constraints" -e "$1" 9>&- ||
        fail "pip could not install $1 and what it needs"
}

# The lower bounds of install_requires and of what is optional, as pip's constraints.
oldest_libraries() {
    sed -n -e '/^install_requires/,/^$/s/^ *\([A-Za-z]*\) >= \([0-9.]*\)$/\1==\2/p' \
        -e '/^metrics =/,/^test =/s/^ *\([A-Za-z-]*\) >= \([0-9.]*\)$/\1==\2/p' setup.cfg
}

# A checkout that belongs to somebody else is left alone: the work is done in a copy.
writable_checkout() {
    [ -w "$CHECKOUT" ] && return
    cache=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}
    mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ] || cache=${TMPDIR:-/tmp}
    [ "$cache" != "${TMPDIR:-/tmp}" ] || export PIP_NO_CACHE_DIR=1
    copy=$cache/ngcp-task-agent-checkout-$(id -u)
    mkdir -p -m 700 "$copy"
    [ -O "$copy" ] && ! [ -L "$copy" ] || fail "$copy belongs to somebody else"
    say "$CHECKOUT cannot be written; working in a copy, $copy"
    tar -C "$CHECKOUT" --exclude='./.venv*' --exclude=./.git --exclude='./.*_cache' -cf - . |
        tar -C "$copy" -xf -
    CHECKOUT=$copy
}

# Set HOST_PYTHON to a Python of at least 3.11 that can make virtual environments.
host_python() {
    for HOST_PYTHON in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        usable_python && return
    done
    apt_install python3 python3-venv ||
        fail "needs Python 3.11 or newer with venv: apt install python3 python3-venv"
    HOST_PYTHON=/usr/bin/python3
    usable_python || fail "$HOST_PYTHON is older than 3.11"
}

usable_python() {
    "$HOST_PYTHON" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# redis_server: make sure that there is a redis-server in PATH; false if not to be had.
redis_server() {
    PATH=$PATH:/usr/bin:/usr/sbin:/usr/local/bin
    export PATH
    command -v redis-server >/dev/null || apt_install redis-server
}

# have_promtool: get it in CI; false if it is not to be had. It comes with a whole server: at
# home that is not worth three tests.
have_promtool() {
    command -v promtool >/dev/null || { [ "${CI:-}" = true ] && apt_install prometheus; }
}

# apt_install PACKAGE...: as root on a Debian; the services of the packages stay off.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing $* (apt)"
    apt_log=$(mktemp)
    keep_services_off
    if DEBIAN_FRONTEND=noninteractive apt-get -q update >"$apt_log" 2>&1 9>&- &&
        DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "$@" \
            >>"$apt_log" 2>&1 9>&-
    then apt_status=0; else apt_status=1; tail -n 20 "$apt_log" >&2; fi
    [ -z "$POLICY" ] || rm -f "$POLICY"
    rm -f "$apt_log"
    return $apt_status
}

keep_services_off() {
    POLICY=
    [ -e /usr/sbin/policy-rc.d ] && return
    POLICY=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
    trap 'rm -f "$POLICY"' EXIT INT TERM
}
