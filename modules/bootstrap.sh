#!/bin/sh
# Makes a machine that has only NixOS a host of a fleet, as root on that machine:
#
#   sh bootstrap.sh --hub ADDRESS --host-key KEY --signer KEY [OPTION...]
#
#   --hub ADDRESS      the hub, as this machine reaches it
#   --host-key KEY     the hub's public host key, as "ssh-ed25519 AAAA...": no other is talked to, not even the first time
#   --signer KEY       the public key of whoever signs releases, as `bento keys` shows it
#   --port PORT        the hub's port; 22
#   --host NAME        this machine's name in the fleet; its host name
#   --identity FILE    the private key to log in with; /etc/ssh/ssh_host_ed25519_key, which is made if it isn't there
#   --bento WHAT       bento, as a flake or as a program that is here; the flake of the version that this script belongs to
#   --state-dir DIR    where the agent keeps its state; /var/lib/bento
#   --settings FILE    more lines for the agent's configuration
#
# It takes up the release that the hub has for this machine, by the agent itself: the release is verified, built, tried out and
# reported, and what fails leaves the machine as it was. What the agent remembers of that is what the timer of the new system finds:
# it does nothing a second time.
set -eu

hub='' host_key='' signer='' port=22 settings=''
host=$(uname -n)
identity=/etc/ssh/ssh_host_ed25519_key
bento=github:bento-nix/bento/v0.1.0
state=/var/lib/bento

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  option=$1
  case $option in
    -h | --help)
      sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --hub | --host-key | --signer | --port | --host | --identity | --bento | --state-dir | --settings) ;;
    *) fail "there is no option $option: --help says which there are" ;;
  esac
  [ $# -ge 2 ] || fail "$option needs a value"
  case $option in
    --hub) hub=$2 ;;
    --host-key) host_key=$2 ;;
    --signer) signer=$2 ;;
    --port) port=$2 ;;
    --host) host=$2 ;;
    --identity) identity=$2 ;;
    --bento) bento=$2 ;;
    --state-dir) state=$2 ;;
    --settings) settings=$2 ;;
  esac
  shift 2
done

[ "$(id -u)" = 0 ] || fail "only root can do that"
[ -n "$hub" ] || fail "--hub says where the hub is"
[ -n "$host_key" ] || fail "--host-key is the hub's public key: without it anything could pose as the hub"
[ -n "$signer" ] || fail "--signer is the public key of whoever signs releases: without it the hub could have this machine run anything"
case $port in '' | *[!0-9]*) fail "--port is a number, not $port" ;; esac
# they become strings of a TOML file
for value in "$hub" "$host_key" "$signer" "$host" "$identity" "$state"; do
  case $value in *[\"\\]* | *'
'*) fail "a quotation mark, a backslash or a line break can't be in $value" ;; esac
done
if [ -e /etc/bento/agent.toml ] || [ -e "$state/bootstrapped" ]; then
  fail "this machine is a host already: \`bento agent status\` says where it stands, \`bento agent run\` asks the hub"
fi

if [ ! -e "$identity" ]; then
  mkdir -p "$(dirname "$identity")"
  ssh-keygen -q -t ed25519 -N '' -C "root@$host" -f "$identity"
  printf 'This machine had no key. The hub has to know the new one, as a key of %s; then run this again:\n' "$host"
  cat "$identity.pub"
  exit 3
fi

case $bento in
  /*) ;;
  *)
    built=$(nix --extra-experimental-features 'nix-command flakes' build --no-link --print-out-paths "$bento") || fail "bento can't be built from $bento"
    bento=$built/bin/bento
    ;;
esac
[ -x "$bento" ] || fail "$bento is no program"

mkdir -p "$state"
chmod 700 "$state"
# the runs that bring an interrupted one to an end need it too
config=$state/bootstrap.toml
{
  printf 'host = "%s"\nstate-dir = "%s"\nsigners = ["%s"]\n' "$host" "$state" "$signer"
  printf '[hub]\naddress = "%s"\nport = %s\nuser = "%s"\nhost-keys = ["%s"]\nidentity = "%s"\n' "$hub" "$port" "$host" "$host_key" "$identity"
  [ -z "$settings" ] || cat "$settings"
} > "$config"

if ! "$bento" agent run --now --config "$config"; then
  printf 'This machine runs what it ran before. Once that is mended:\n  %s agent run --now --config %s\n' "$bento" "$config" >&2
  exit 1
fi
touch "$state/bootstrapped"
"$bento" agent status --config "$config"
