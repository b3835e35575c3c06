#!/bin/sh
# Whether this machine can boot VMs: mount what their disks are made of, in namespaces of their own, and make control
# groups. Where it cannot, it says what is missing and ends with 1.
set -u
trial='mount -t tmpfs none /mnt && mkdir /mnt/lower /mnt/upper /mnt/work /mnt/root &&
  mount -t overlay none -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root'
said=$(unshare --mount --pid --uts --ipc --net --fork sh -c "$trial" 2>&1) || {
    echo "no namespaces with disks of their own (${said:-unshare failed})"
    exit 1
}
group=/sys/fs/cgroup
[ -f $group/cgroup.controllers ] || group=$group/systemd
if ! mkdir "$group/vm-agent-trial" 2>/dev/null; then
    echo "no control group can be made below $group"
    exit 1
fi
rmdir "$group/vm-agent-trial"
