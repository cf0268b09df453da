#!/bin/sh
# Installs the database servers that the tests start, where that is possible.
set -eu
missing=
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -x /usr/sbin/mariadbd ] || command -v mariadbd >/dev/null 2>&1 || missing="$missing mariadb-server"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    # RUNLEVEL=1 keeps Debian's packages from starting their own servers.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -q
    # shellcheck disable=SC2086  # the names are separate words
    apt-get install -q -y --no-install-recommends $missing
else
    echo "not installed, so their tests will not run:$missing" >&2
fi
