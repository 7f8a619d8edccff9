# Removes every trace of a lab that can exist in the kernel and on disk. Everything is found by the lab's number alone, so it
# works whatever state the lab died in, and a second run does no harm. The caller holds the lab's lock.
#
# $1: the lab's directory; $2: its number.
dir=$1
number=$2
prefix=kclab$number

[ -d "$dir" ] || exit 0
[ ! -e "$dir/kept" ] || [ "${3:-}" = kept-too ] || exit 0

# A frozen file system would outlive its host.
for mounts in "$dir"/hosts/*/mounts; do
    [ -e "$mounts" ] || continue
    pid=$(cat "${mounts%/mounts}/pid" 2>/dev/null) || continue
    while read -r _ _ inside; do
        fsfreeze --unfreeze "/proc/$pid/root$inside" 2>/dev/null
    done <"$mounts"
done
for path in /run/netns/"$prefix"-*; do
    [ -e "$path" ] || continue
    netns=${path#/run/netns/}
    for _ in $(seq 200); do
        pids=$(ip netns pids "$netns" 2>/dev/null)
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086  # one word a pid
        kill -9 $pids 2>/dev/null
        sleep 0.02
    done
    ip netns del "$netns"
done
# By their whole names: those of lab 23 are no part of lab 2.
for path in /sys/class/net/"$prefix"br /sys/class/net/"$prefix"h*; do
    [ ! -e "$path" ] || ip link del "${path##*/}" 2>/dev/null
done
# Those on files that the machine does not see by that name.
for record in "$dir"/hosts/*/loops/*; do
    [ ! -e "$record" ] || losetup --detach "/dev/${record##*/}"
done
losetup --list --noheadings --output NAME,BACK-FILE | while read -r loop file; do
    case $file in "$dir"/*) losetup --detach "$loop" ;; esac
done
# Retried: a loop device lets go of its file a moment after the last mount went.
for _ in $(seq 50); do
    rm -rf --one-file-system "$dir" 2>/dev/null
    [ -e "$dir" ] || exit 0
    sleep 0.1
done
echo "could not remove $dir" >&2
exit 1
