#!/bin/sh
# init.sh FOLDER TARGET: makes the mount namespace that it runs in look like a host of
# its own, and becomes that host's systemd.  See box.py, which alone calls it.
set -eu
folder=$1 target=$2

# The box's cgroup is the root of the hierarchy that is seen from its namespace.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# The host's kernel log and console, and what sysctl(8) sets, are none of the box's.
mount --bind /dev/null /dev/kmsg
mount --bind /dev/null /dev/console
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys

mount -t tmpfs -o mode=755 tmpfs /run
for name in etc opt var; do
    mkdir -p "/run/box/$name" "/run/box/$name.work"
    mount -t overlay -o "lowerdir=/$name,upperdir=/run/box/$name,workdir=/run/box/$name.work" \
        overlay "/$name"
done

# What has to be seen under paths of its own: a line each, with a tab between the two.
while IFS='	' read -r from to; do
    mkdir -p "$to"
    mount --bind "$from" "$to"
done <"$folder/binds"
# No unit of the host's, but for the targets that every host has.
mount -t tmpfs -o mode=755 tmpfs /etc/systemd/system
cp -R "$folder/root/." /
mkdir /run/units
for unit in basic.target sysinit.target sockets.target timers.target paths.target \
    slices.target multi-user.target network.target network-online.target \
    shutdown.target umount.target final.target exit.target systemd-exit.service \
    systemd-journald.service systemd-journald.socket; do
    ln -s "/lib/systemd/system/$unit" /run/units
done
ldconfig
sh "$folder/prepare"
# Last, as the folder and what was bound may be below.
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
# As systemd makes it where it is in no container: by this credentials reach a service.
mount --make-rshared /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    container=box SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units \
    /lib/systemd/systemd --system --unit="$target" --show-status=no
