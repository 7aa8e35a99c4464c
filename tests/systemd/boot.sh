#!/bin/sh
# Becomes PID 1 of a host: systemd over a copy of this machine's files that nothing can write to from inside.
#   boot.sh SCRATCH NAME UNITS PATH[:rw]...
# Runs inside new mount, pid, net, cgroup, uts and ipc namespaces, so that all of it vanishes with the last process.
# UNITS is a folder that is copied to /etc/systemd/system; each PATH keeps its place and is read-only unless it ends in :rw.
set -eu
scratch=$1 name=$2 units=$3
shift 3

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
root=$scratch/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$root"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup" # its root is this host's own group, not the machine's
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

# After /tmp and /run, for a path may lie below them, or on a disk of its own that the overlay does not show.
for path in "$@"; do
    mode=${path##*:}
    [ "$mode" = rw ] && path=${path%:rw}
    mkdir -p "$root$path"
    mount --bind "$path" "$root$path"
    [ "$mode" = rw ] || mount -o remount,bind,ro "$root$path"
done

# None of this machine's own units, only what a minimal system starts; no disk but the above.
rm -f "$root/etc/machine-id"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
: >"$root/etc/fstab"
echo "$name" >"$root/etc/hostname"
rm -rf "$root"/etc/systemd/system/*.wants "$root/var/log/journal"
cp -r "$units/." "$root/etc/systemd/system/"
ip link set lo up

cd "$root"
mkdir .old
pivot_root . .old
umount --lazy /.old
rmdir /.old
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb container=branchd-tests \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
