#!/bin/sh
# install.sh install|uninstall: puts the daemon and its units in place, or takes them
# away again; `make install-service` and `make uninstall-service` call it.
#
# From the environment:
#   PREFIX   where the program goes; /opt/daemon-example if it is not set, as it is a
#            tree of its own (a virtual environment), which goes whole as it came
#            (to uninstall, by default that from which the unit takes it)
#   DESTDIR  put before every path, to have the files elsewhere, as for a package; then
#            nothing is done to the running system
#   PYTHON   the interpreter; python3 if it is not set
set -eu
umask 022
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
python=${PYTHON:-python3}
units=$root/etc/systemd/system
config=$root/etc/daemon-example
sysusers=$root/etc/sysusers.d/daemon-example.conf
prefix=${PREFIX:-$(sed -n 's|^Environment=PATH=\([^:]*\)/bin:.*|\1|p' \
    "$units/daemon-example.service" 2>/dev/null || :)}
prefix=${prefix:-/opt/daemon-example}
venv=$prefix/lib/daemon-example

fail() {
    echo "daemon-example: $1" >&2
    exit 1
}

# They go into units, and into the programs of a virtual environment.
for path in "$prefix" ${root:+"$root"}; do
    case $path in
    *[!A-Za-z0-9/._-]* | / | [!/]*)
        fail "PREFIX and DESTDIR begin with / and have letters, digits and . _ - only; '$path' does not"
        ;;
    esac
done

# Fails if the units hide what is at a path from the service (ProtectHome=, PrivateTmp=).
need_visible() {
    case $1/ in
    /home/* | /root/* | /run/user/* | /tmp/* | /var/tmp/*)
        fail "a service cannot see $1; choose another $2"
        ;;
    esac
}

has_systemd() {
    [ -z "$root" ] && [ -d /run/systemd/system ]
}

install_service() {
    [ -n "$root" ] || need_visible "$prefix" PREFIX
    tell='import sys; print(sys.base_prefix); sys.exit(sys.version_info < (3, 11))'
    base=$("$python" -c "$tell" 2>/dev/null) ||
        fail "CPython 3.11 or later is needed, and $python is none; name one with PYTHON="
    [ -n "$root" ] || need_visible "$base" "PYTHON, such as /usr/bin/python3"
    new=$root$venv.new
    # Made beside the old one, which stays as it is if this fails, or is interrupted.
    mkdir -p "$root$prefix/bin" "${new%/*}"
    rm -rf "$new"
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    "$python" -m venv "$new"
    "$new/bin/pip" install --quiet --disable-pip-version-check \
        "$here/..[daemon,postgresql,mysql]"
    # Programs in a virtual environment have its path in them.
    find "$new/bin" -type f -exec sed -i "s|$new|$venv|g" {} +
    rm -rf "$root$venv"
    mv "$new" "$root$venv"
    # Alone in its folder, which is in the PATH of the tasks: their python3 is not ours.
    ln -sf ../lib/daemon-example/bin/daemon-example "$root$prefix/bin/daemon-example"

    mkdir -p "$units/daemon-example@.service.d" "$config" "${sysusers%/*}"
    for unit in "$here"/*.service "$here"/*.timer; do
        sed "s|/opt/daemon-example|$prefix|g" "$unit" >"$units/${unit##*/}"
    done
    ln -sf ../daemon-example.service \
        "$units/daemon-example@.service.d/00-daemon-example.conf"
    cp "$here/sysusers.conf" "$sysusers"
    [ -e "$config/daemon-example.toml" ] || cp "$here/daemon-example.toml" "$config"
    if [ -z "$root" ] && command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$sysusers"
    fi
    if has_systemd; then
        systemctl daemon-reload
    fi
    cat <<END
Installed in $prefix.  What comes next:
  the settings        $config/daemon-example.toml
  the database's URL  /etc/credstore/daemon-example.store, mode 0600
  start it            systemctl enable --now daemon-example.service
  have it checked     systemctl enable --now daemon-example-check@daemon-example.timer
  if it runs already  systemctl restart daemon-example.service
END
}

uninstall_service() {
    if has_systemd; then
        # The daemons end their tasks as their settings have it.
        systemctl stop 'daemon-example-check@*' 'daemon-example@*' daemon-example || :
    fi
    if [ -e "$units/daemon-example.service" ] && command -v systemctl >/dev/null; then
        # Of a template this takes all instances.
        systemctl ${root:+"--root=$root"} --quiet disable daemon-example.service \
            daemon-example@.service daemon-example-check@.timer || :
    fi
    for unit in "$here"/*.service "$here"/*.timer; do
        rm -f "$units/${unit##*/}"
    done
    rm -f "$units/daemon-example@.service.d/00-daemon-example.conf" "$sysusers"
    rm -f "$root$prefix/bin/daemon-example"
    rm -rf "$root$venv" "$root$venv.new"
    # What somebody has written is theirs.
    if cmp -s "$here/daemon-example.toml" "$config/daemon-example.toml"; then
        rm "$config/daemon-example.toml"
    fi
    for folder in "$units/daemon-example@.service.d" "$config" \
        "$root$prefix/bin" "$root$prefix/lib" "$root$prefix"; do
        rmdir "$folder" 2>/dev/null || :
    done
    if has_systemd; then
        systemctl daemon-reload
        systemctl --quiet reset-failed 'daemon-example*' || :
    fi
    cat <<END
Uninstalled from $prefix.  What is left, if it was there, is yours to remove: the spool
folders with their SQLite files, /var/lib/daemon-example*, edited files in $config,
/etc/credstore/daemon-example*, databases on servers, and the user daemon-example.
END
}

case ${1:-} in
install) install_service ;;
uninstall) uninstall_service ;;
*) fail "install.sh install|uninstall" ;;
esac
