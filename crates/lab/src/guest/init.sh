#!/bin/busybox sh
# Process 1 of the lab's guest. Says on the serial console that it runs and what it sees on each disk. With `lab.write` on
# the kernel's command line it then writes numbered records to the first two disks for ever.
/bin/busybox mkdir -p /proc /sys /dev /bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1

for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    insmod "/modules/$module.ko"
done
# Disks appear a moment after their driver.
tries=0
while [ ! -e /dev/vda ] && [ $tries -lt 100 ]; do
    usleep 50000
    tries=$((tries + 1))
done

digest() { dd if="$1" bs=1M count=1 2>/dev/null | sha256sum | cut -d' ' -f1; }
for disk in /dev/vd?; do
    [ -b "$disk" ] || continue
    echo "kvm-clone-guest: ${disk#/dev/} bytes=$(cat "/sys/block/${disk#/dev/}/size")s sha256=$(digest "$disk")"
done
echo "kvm-clone-guest: up disk=$([ -b /dev/vda ] && digest /dev/vda)"

# Record n is 4 KiB in block n of both disks, from 1 MiB on, round and round: its number, then a line that repeats it until
# the block is full. dd's conv=fsync orders them: record n is durable on the first disk before it is written to the second,
# and on both before record n+1 is written. So any copy that is one point in time has all records up to some number, none torn,
# none after, and the first disk is at most one record ahead of the second.
#
# Programs are dear where the processor is emulated, hence the shell's own words; and a guest that never rests takes a whole
# core of the machine from the hosts and from the test.
if grep -q lab.write /proc/cmdline; then
    number=1
    echo "kvm-clone-guest: writing"
    while :; do
        record="kvm-clone record $number
"
        while [ ${#record} -lt 4096 ]; do record=$record$record; done
        printf %s "$record" >/record
        for disk in /dev/vda /dev/vdb; do
            [ -b "$disk" ] || continue
            size=/sys/block/${disk#/dev/}/size
            read -r sectors <"$size"
            dd if=/record of="$disk" bs=4096 count=1 conv=fsync,notrunc \
                seek=$((256 + (number - 1) % (sectors / 8 - 256))) 2>/dev/null
        done
        [ $((number % 2)) -ne 0 ] || echo "kvm-clone-guest: wrote $number"
        number=$((number + 1))
        # The first ones are waited for.
        [ $number -le 20 ] || usleep 100000
    done
fi
while :; do sleep 3600; done
