#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs by apt what building needs: a C compiler, Python's headers and venv. Usage: install-deps.sh PYTHON
# What the VMs of demo and tests need is installed by coloproxy itself (coloproxy/testbed/requirements.py).
set -eu
python=${1:-python3}
want=""

command -v cc >/dev/null 2>&1 || want="$want gcc libc6-dev"
command -v make >/dev/null 2>&1 || want="$want make"
if ! command -v "$python" >/dev/null 2>&1; then
    want="$want python3 python3-venv python3-dev"
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || want="$want python3-venv"
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        want="$want python3-dev"
fi
# The link between two hosts is TLS: OpenSSL's headers.
if ! command -v cc >/dev/null 2>&1 || ! echo '#include <openssl/ssl.h>' | cc -E - >/dev/null 2>&1; then
    want="$want libssl-dev"
fi
[ -n "$want" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "coloproxy: this machine lacks:$want; install them (needs root and apt-get to do it for you)" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of names
apt-get install -y -qq --no-install-recommends $want >/dev/null
