#!/bin/sh
# Prints one CPython of each version from 3.11 on: those on PATH, then pyenv's.
set -eu
seen=
for minor in 11 12 13 14 15; do
    for python in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python python3; do
        # A name on PATH may be a shim for a version that is not switched on.
        path=$("$python" -c '
import platform, sys
if platform.python_implementation() == "CPython":
    print(sys.version_info[1], sys.executable)
' 2>/dev/null) || continue
        if [ "${path%% *}" = "$minor" ]; then
            echo "${path#* }"
            seen=yes
            break
        fi
    done
done
[ -n "$seen" ] || { echo "no CPython from 3.11 on was found" >&2; exit 1; }
