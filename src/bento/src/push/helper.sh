#!/bin/sh
# What `bento deploy` does as root on a machine that it pushes to, and all that it does there as root: see `bento deploy --helper`.
#
# It lies in the Nix store, so its path says what is in it, and one rule of sudo (or doas) for that path is enough. A run is
# named by a nonce. Its trial is one unit that outlives every connection: it activates the system for a test, waits for a verdict,
# and keeps the system or brings back the one that ran before. If that unit is gone, a timer that knows nothing of it brings back
# what ran before. What a run came to is in /run/bento-push/NONCE/state, for everybody to read.
set -u
umask 022
export LC_ALL=C
export PATH=/run/current-system/sw/bin:/run/wrappers/bin:/nix/var/nix/profiles/default/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin

run=/run/bento-push
roots=/nix/var/nix/gcroots/bento-push
profile=/nix/var/nix/profiles/system
agent_lock=/var/lib/bento/lock

die() {
  echo "bento-push: error: $*"
  exit 1
}
ok() {
  echo "bento-push: ok: $*"
  exit 0
}

# words NAME VALUE: only what can be no option, no path upwards and no shell's business
number() {
  case $1 in '' | *[!0-9]*) die "$1 is no number" ;; esac
}
plain_nonce() {
  case $1 in '' | *[!0-9a-f]*) die "$1 names no run" ;; esac
}
store_path() {
  case $1 in
    /nix/store/*/* | /nix/store/.* | *[!a-zA-Z0-9/+._?=-]*) die "$1 is no path directly in /nix/store" ;;
    /nix/store/*) ;;
    *) die "$1 is no path directly in /nix/store" ;;
  esac
}

# --- what is known of a run

here() { state=$run/$nonce; }
known() {
  here
  [ -d "$state" ] || die "this machine knows no run $nonce: it has restarted since, or the run never began"
}
# note PHASE [REASON]
note() {
  {
    echo "phase=$1"
    [ $# -lt 2 ] || echo "reason=$2"
    [ ! -e "$state/exit" ] || echo "exit=$(cat "$state/exit")"
    [ ! -e "$state/failed" ] || echo "failed=$(tr '\n' ' ' < "$state/failed")"
  } > "$state/state.new"
  mv -f "$state/state.new" "$state/state"
  echo "bento: $*" >> "$state/log"
}
phase() { sed -n 's/^phase=//p' "$state/state" 2> /dev/null; }
# verdict WORD: the first one counts
verdict() {
  ln -s "$1" "$state/verdict" 2> /dev/null
  [ "$(readlink "$state/verdict")" = "$1" ]
}

# --- units

show() { systemctl show "$1" -p "$2" --value 2> /dev/null; }
failing() {
  systemctl list-units --all --state=failed,auto-restart --plain --no-legend --no-pager 2> /dev/null |
    sed 's/^[^a-zA-Z0-9]*//; s/ .*//' | grep -v '^bento-\(activation\|booted\|push-\|upgrade\|watchdog\)' | sort
}
# activate SYSTEM WORD SECONDS: sets $ended to the exit status, or to what went wrong
activate() {
  unit=bento-activation
  systemctl stop $unit.service 2> /dev/null
  systemctl reset-failed $unit.service 2> /dev/null
  echo "bento: running $1/bin/switch-to-configuration $2" >> "$state/log"
  if ! systemd-run --quiet --unit=$unit --description="bento: activate a system" --property=Type=exec \
    --property=RemainAfterExit=yes --property=RuntimeMaxSec="$3" --property=TimeoutStopSec=10 \
    --property=StandardOutput=append:"$state/log" --property=StandardError=append:"$state/log" \
    --setenv=PATH="$PATH" -- "$1/bin/switch-to-configuration" "$2" >> "$state/log" 2>&1; then
    ended="systemd did not start it"
    return
  fi
  while :; do
    # systemd does not answer while it replaces itself
    case $(show $unit.service ActiveState)/$(show $unit.service SubState) in
      active/exited | failed/* | inactive/*) break ;;
    esac
    sleep 0.2
  done
  case $(show $unit.service Result)/$(show $unit.service ExecMainCode) in
    timeout/*) ended="it did not end within $3 s and was killed" ;;
    */1) ended=$(show $unit.service ExecMainStatus) ;;
    *) ended="it did not end by itself: $(show $unit.service Result)" ;;
  esac
  systemctl stop $unit.service 2> /dev/null
  systemctl reset-failed $unit.service 2> /dev/null
}
# release: lets go of what is kept from being collected
release() { rm -f "$roots/$nonce" "$roots/$nonce-previous" "$roots/$nonce-profile" "$roots/$nonce-helper"; }
disarm() {
  release
  systemctl stop "bento-push-watchdog-$nonce.timer" 2> /dev/null
}

# --- the end of a trial

# for good: profile and boot entry
keep() {
  note keeping
  if ! nix-env --profile $profile --set "$(readlink "$state/toplevel")" >> "$state/log" 2>&1; then
    bring_back "the profile could not be set"
    return
  fi
  activate "$(readlink "$state/toplevel")" boot "$(cat "$state/seconds")"
  if [ "$ended" != 0 ]; then
    bring_back "the boot entry could not be made: switch-to-configuration boot: $ended"
    return
  fi
  note kept
  disarm
}
# bring_back REASON
bring_back() {
  note restoring "$1"
  previous=$(readlink "$state/previous")
  before=$(readlink "$state/profile")
  PATH=$previous/sw/bin:$PATH
  # what failed in the new system says nothing of the old one; what fails on the way back does
  for unit in $(failing); do
    grep -qxF -e "$unit" "$state/before" || systemctl reset-failed "$unit" 2> /dev/null
  done
  if [ "$(readlink -f $profile)" != "$before" ]; then
    nix-env --profile $profile --set "$before" >> "$state/log" 2>&1
    activate "$before" boot "$(cat "$state/seconds")"
  fi
  activate "$previous" test "$(cat "$state/seconds")"
  case $ended in
    0 | 4)
      note restored "$1"
      disarm ;;
    *)
      # the boot entry still names what was before: a restart is the last way there
      note stuck "$1; going back failed too: switch-to-configuration test: $ended; the machine restarts"
      sync
      systemctl reboot ;;
  esac
}

# --- what the deploying side asks for

[ $# -gt 0 ] || die "this is bento's helper for pushes: bento deploy calls it"
verb=$1
shift
case $verb in
  # hello: whether it can be run at all
  hello) ok "$(id -u)" ;;

  # serve ...: takes store paths, as the other end of `nix copy`
  serve) exec nix-store --serve --write ;;

  # hold NONCE PATH: keeps a system from being collected, also before it is there
  hold)
    nonce=$1
    plain_nonce "$nonce"
    store_path "$2"
    mkdir -p $roots
    # what runs left that never came to a trial
    find $roots -type l -mmin +1440 -delete 2> /dev/null
    # and this program, which nothing else keeps
    ln -sfn "$2" "$roots/$nonce" && ln -sfn "$0" "$roots/$nonce-helper" || die "cannot keep $2 from being collected"
    ok held ;;

  # drop NONCE: the run came to no trial, or the machine has restarted since
  drop)
    nonce=$1
    plain_nonce "$nonce"
    [ ! -d "$run/$nonce" ] || die "the run $nonce ends by itself"
    # a restart may have come between the profile and the boot entry: what came up has both again
    toplevel=$(readlink "$roots/$nonce")
    before=$(readlink "$roots/$nonce-profile" || echo "$toplevel")
    if [ "$before" != "$toplevel" ] && [ "$(readlink -f $profile)" = "$toplevel" ] && [ "$(readlink -f /run/booted-system)" != "$toplevel" ]; then
      nix-env --profile $profile --set "$before" 2>&1 && timeout -k 5 300 "$before/bin/switch-to-configuration" boot 2>&1 ||
        die "profile and boot entry could not be set back to $before"
    fi
    release
    ok dropped ;;

  # check NONCE PROGRAM SECONDS: has the system itself say whether it may be activated
  check)
    nonce=$1
    plain_nonce "$nonce"
    number "$3"
    case /$2/ in *[!a-zA-Z0-9/+._-]* | */../*) die "$2 is no program within the system" ;; esac
    program=$(readlink "$roots/$nonce")/$2
    [ -x "$program" ] || ok "there is no $2"
    timeout -k 5 "$3" "$program" < /dev/null 2>&1
    status=$?
    case $status in
      0) ok passed ;;
      124 | 137) die "$2 did not end within $3 s and was killed" ;;
      *) die "$2 ended with exit status $status" ;;
    esac ;;

  # boot NONCE SECONDS: makes the system the one that is booted, without a trial
  # begin NONCE SECONDS SETTLE CONFIRM: arms the watchdog and begins the trial. An activation may take SECONDS; units have SETTLE
  # seconds to fail; CONFIRM seconds later at the latest a new connection has to have confirmed
  boot | begin)
    nonce=$1
    plain_nonce "$nonce"
    for figure in "$2" "${3:-0}" "${4:-0}"; do number "$figure"; done
    toplevel=$(readlink "$roots/$nonce") || die "nothing is held for the run $nonce"
    [ -x "$toplevel/bin/switch-to-configuration" ] || die "$toplevel is no system of NixOS"
    here
    mkdir -p $run
    mkdir "$state" 2> /dev/null || die "the run $nonce has begun already"
    for unit in bento-upgrade.service bento-watchdog.timer bento-activation.service; do
      case $(show $unit ActiveState) in
        active | activating)
          rm -rf "$state"
          die "the machine's agent is at work ($unit): try again when it is done" ;;
      esac
    done
    ln -s "$toplevel" "$state/toplevel"
    ln -s "$(readlink -f /run/current-system)" "$state/previous"
    ln -s "$(readlink -f $profile)" "$state/profile"
    echo "$2" > "$state/seconds"
    failing > "$state/before"
    ln -sfn "$(readlink "$state/previous")" "$roots/$nonce-previous"
    ln -sfn "$(readlink "$state/profile")" "$roots/$nonce-profile"
    # the store may lose this file while it is needed
    cp "$0" "$state/helper"
    if [ "$verb" = boot ]; then
      exec 8> $run/lock
      flock -n 8 || { rm -rf "$state"; die "another push to this machine is under way"; }
      keep
      [ "$(phase)" = kept ] || die "$(sed -n 's/^reason=//p' "$state/state")"
      ok kept
    fi
    note armed
    # what was armed last is what is awaited least: twice the activation, the wait, and an activation to go back
    deadline=$(($2 + $3 + $4 + $2 + 30))
    systemd-run --quiet --unit="bento-push-watchdog-$nonce" --description="bento: bring back the system that ran before" \
      --on-active=$deadline --timer-property=OnUnitInactiveSec=60 --timer-property=AccuracySec=1 \
      --setenv=PATH="$PATH" -- /bin/sh "$state/helper" watch "$nonce" 2>&1 || { rm -rf "$state"; die "the watchdog could not be armed"; }
    systemd-run --quiet --collect --unit="bento-push-$nonce" --description="bento: a system on trial" --property=Type=exec \
      --setenv=PATH="$PATH" -- /bin/sh "$state/helper" try "$nonce" "$3" "$4" 2>&1 || { disarm; rm -rf "$state"; die "the trial could not be started"; }
    ok begun ;;

  # confirm NONCE, refuse NONCE: the verdict
  confirm | refuse)
    nonce=$1
    plain_nonce "$nonce"
    known
    verdict "$verb" || die "it was decided already: $(readlink "$state/verdict")"
    ok "$verb" ;;

  # try NONCE SETTLE CONFIRM: the trial, in its unit
  try)
    nonce=$1
    known
    exec 8> $run/lock
    if ! flock -n 8; then
      note restored "another push to this machine is under way"
      disarm
      exit 1
    fi
    # an agent takes nothing up meanwhile
    if [ -d "${agent_lock%/*}" ]; then
      exec 9>> $agent_lock
      if ! flock -w 5 9; then
        note restored "the machine's agent is at work"
        disarm
        exit 1
      fi
    fi
    note testing
    activate "$(readlink "$state/toplevel")" test "$(cat "$state/seconds")"
    echo "$ended" > "$state/exit"
    case $ended in
      0 | 4)
        sleep "$2"
        failing > "$state/failed"
        note tested
        left=$(($3 * 5))
        while [ ! -L "$state/verdict" ] && [ $left -gt 0 ]; do
          sleep 0.2
          left=$((left - 1))
        done
        verdict expired ;;
      *) verdict failed ;;
    esac
    case $(readlink "$state/verdict") in
      confirm) keep ;;
      refuse) bring_back "it was refused" ;;
      expired) bring_back "no new connection confirmed it within $3 s" ;;
      failed)
        case $ended in *[!0-9]*) ;; *) ended="it ended with exit status $ended" ;; esac
        bring_back "the activation failed: $ended" ;;
    esac ;;

  # watch NONCE: the watchdog, when its time has come
  watch)
    nonce=$1
    known
    case $(phase) in kept | restored) disarm; exit 0 ;; esac
    verdict expired
    systemctl stop "bento-push-$nonce.service" 2> /dev/null
    systemctl stop bento-activation.service 2> /dev/null
    bring_back "the trial did not come to its end" ;;

  *) die "there is no $verb" ;;
esac
