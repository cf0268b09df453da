#!/bin/sh
# Installs the database servers that the tests start, strace, by which they work out
# what a power cut leaves, systemd and what makes hosts of its own for it, and what
# mysqlclient is built with, and curl for the documentation's commands, where that is
# possible.
set -eu
missing=
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -x /usr/sbin/mariadbd ] || command -v mariadbd >/dev/null 2>&1 || missing="$missing mariadb-server"
command -v strace >/dev/null 2>&1 || missing="$missing strace"
[ -x /lib/systemd/systemd ] || missing="$missing systemd"
command -v unshare >/dev/null 2>&1 && command -v nsenter >/dev/null 2>&1 || missing="$missing util-linux"
command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
# pip builds mysqlclient from source.
if ! pkg-config --exists libmariadb 2>/dev/null || ! command -v gcc >/dev/null 2>&1; then
    missing="$missing libmariadb-dev pkg-config gcc libc6-dev"
fi
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, so their tests will not run:$missing" >&2
    exit 0
fi
# Debian's packages start a server of their own at once unless this file says no
# (invoke-rc.d(8)); one that is there already is the machine's own word.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086  # the names are separate words
apt-get install -q -y --no-install-recommends $missing
