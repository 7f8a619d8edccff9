# Runs as process 1 of a host's new namespaces, while the machine's own file system is still visible: makes the
# host's root from private directories, moves into it and hands over to boot.sh.
#
# $1: the host's directory; $2: boot.sh's text.
set -eu
host=$1
root=$host/root

# Our pid as the machine sees it: /proc is still the machine's own here.
read -r pid _ </proc/self/stat
echo "$pid" >"$host/pid"
hostname "$(cat "$root/etc/hostname")"

mount --bind "$root" "$root"
mount -t overlay -o "lowerdir=/usr,upperdir=$host/usr-upper,workdir=$host/usr-work" overlay "$root/usr"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755,size=64m tmpfs "$root/run"

# A reboot empties /tmp, as systemd-tmpfiles would; it stays on the disk's file system, so direct I/O works in it.
find "$root/tmp" -mindepth 1 -delete

# Only devices that a host of this kind would have; nodes come from the machine, so their numbers are right.
mount -t tmpfs -o mode=755,size=4m,dev tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net" "$root/dev/mapper"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for node in null zero full random urandom tty; do cp -a "/dev/$node" "$root/dev/$node"; done
[ ! -e /dev/fuse ] || cp -a /dev/fuse "$root/dev/fuse"
[ ! -e /dev/net/tun ] || cp -a /dev/net/tun "$root/dev/net/tun"
if [ -e /dev/kvm ]; then
    cp -a /dev/kvm "$root/dev/kvm"
    chown root:kvm "$root/dev/kvm"
    chmod 0660 "$root/dev/kvm"
fi
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

# A namespace cannot have a boot id of its own, so a file stands in for it: new at each boot, as in life.
cp /proc/sys/kernel/random/uuid "$root/run/.boot-id"
mount --bind "$root/run/.boot-id" "$root/proc/sys/kernel/random/boot_id"

# Block devices and small file systems that were added earlier: they survive a reboot.
if [ -e "$host/blocks" ]; then
    while read -r node major minor; do mknod "$root$node" b "$major" "$minor"; done <"$host/blocks"
fi
if [ -e "$host/mounts" ]; then
    while read -r kind image inside; do
        case $kind in
        tmpfs) mount -t tmpfs -o "size=$image" tmpfs "$root$inside" ;;
        *) mount -t "$kind" -o loop "$image" "$root$inside" ;;
        esac
    done <"$host/mounts"
fi
if [ -e "$host/noexec-homes" ]; then
    for home in root home; do
        mount --bind "$root/$home" "$root/$home"
        mount -o remount,bind,noexec "$root/$home"
    done
fi

cd "$root"
mkdir -p .machine
pivot_root . .machine
# The new shell comes from the host's own /usr; nothing of the machine stays visible.
exec /bin/bash -c "$2" init
