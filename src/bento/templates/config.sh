# read, not executed: lines VARIABLE=value; `bento config check` looks at them
# where the hub's hosts have their directories
CHROOT_DIR=/home/chroot
# the hub, as the hosts reach it
REMOTE_IP=hub.example.org
REMOTE_PORT=22
# seconds to wait for it
TIMEOUT=20
# who signs the releases: a private key, or the public key of one that an ssh agent holds
@SIGNING_KEY@
# a directory with the hosts' public keys, as NAME.pub: for secrets, and to believe reports
#HOST_KEYS=keys
