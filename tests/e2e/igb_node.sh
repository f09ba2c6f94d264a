#!/bin/sh
# The first program of a machine that test_igb.py emulates: the checkout is on /mnt.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir /run/site
mount -t 9p -o trans=virtio,version=9p2000.L,ro site /run/site
modprobe -a igb igbvf vfio-pci
cd /mnt || exit
# Debian's own packages come first: what is compiled on the outside is for another Python.
python3 -B -c "import runpy, sys; sys.path.append('/run/site'); runpy.run_module('tests.e2e.igb_node', run_name='__main__')"
echo o >/proc/sysrq-trigger
# No program can be read any more once the disk's driver has shut down.
while :; do :; done
