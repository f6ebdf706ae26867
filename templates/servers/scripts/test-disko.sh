#!/bin/sh
# Also builds what partitions the disks, and tries it out in a virtual machine
cd "$(dirname "$0")/.." && exec bento check "$@"
