# What an init system does at boot, then process 1 of the host for the rest of its life. Settings are files that were
# laid out with the root; nothing is passed in.
set -eu
cd /
umount -l /.machine
rmdir /.machine
umask 022

mkdir -p /run/sshd /run/lock /run/libvirt /run/user /run/sudo
ip link set lo up
ip address replace "$(cat /etc/lab/address)" dev eth0
ip link set eth0 up
# The network namespace outlives a reboot; what was set up in it must not.
ip link del virbr0 2>/dev/null || :
ip link add virbr0 type bridge
ip link set virbr0 up

# sshd goes into the background before it listens, and writes this file once it does (its `sshd.c`, `main`).
rm -f /run/sshd.pid
/usr/sbin/sshd
for _ in $(seq 1000); do
    if [ -s /run/sshd.pid ]; then break; fi
    sleep 0.01
done

if [ -e /etc/lab/libvirt ]; then
    /usr/sbin/virtlogd -d
    /usr/sbin/libvirtd -d
    # The socket first: starting virsh costs more than libvirtd's own start while it is asked again and again.
    answers() {
        [ -S /run/libvirt/libvirt-sock ] || return
        ! command -v virsh || virsh -q -c qemu:///system version
    }
    for _ in $(seq 400); do
        if answers >/dev/null 2>&1; then break; fi
        sleep 0.05
    done
    if [ "$(cat /etc/lab/libvirt)" = modular ]; then
        # What a client of the modular daemons sees: one virtqemud serves storage and networks too.
        mv /run/libvirt/libvirt-sock /run/libvirt/virtqemud-sock
        mv /run/libvirt/libvirt-sock-ro /run/libvirt/virtqemud-sock-ro
    fi
fi
echo kvm-clone-lab: ready
exec </dev/null >/dev/null 2>&1

# Adopt and reap orphans for ever: bash reaps every child that ends, also those it did not start.
while :; do
    sleep infinity &
    wait $! || :
done
