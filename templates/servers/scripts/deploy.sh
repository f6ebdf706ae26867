#!/bin/sh
# Installs a machine, which runs some other Linux now: scripts/deploy.sh dev-365 root@192.168.1.101
cd "$(dirname "$0")/.." && exec bento provision "$@"
