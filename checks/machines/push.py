"""Everything that can happen to a push: from a desk to machines with a real systemd behind a real sshd, on which nothing of bento is
installed. `run push [SCENARIO...]` runs it.

What each scenario asserts in the end is the same: the machine runs, boots and has as its profile one system, the new one or the old
one, and nothing of the trial is left; and `bento deploy` said which.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from driver import Container, Failure, make_network, options, overlay, perform, run, write_row

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NOTHING = "{ }\n"
# the machine with a systemd that has run0
NEWER = "t11"
INSTALL = """
    set -e
    export NIX_REMOTE=local NIX_CONFIG='sandbox = false
    substituters =
    build-users-group ='
    system=$(nix-build --no-out-link -I nixpkgs=/fixture -E \\
      '(import <nixpkgs/nixos> { configuration = /etc/nixos/configuration.nix; }).config.system.build.toplevel')
    nix-env --profile /nix/var/nix/profiles/system --set "$system"
    "$system/bin/switch-to-configuration" boot
"""

FLAKE = """
{
  inputs.nixpkgs.url = "path:/fixture";
  outputs = { self, nixpkgs }: {
    nixosConfigurations = nixpkgs.lib.genAttrs [ @names@ ] (name: nixpkgs.lib.nixosSystem {
      system = "x86_64-linux";
      modules = [ ./common.nix (./. + "/${name}.nix") (./. + "/change-${name}.nix") ];
    });
  };
}
"""
COMMON = """
{ lib, ... }:
{
  services.openssh.enable = lib.mkDefault true;
  services.openssh.settings.MaxStartups = "200";
  nix.settings = { sandbox = false; substituters = ""; build-users-group = ""; trusted-users = [ "root" "deploy" ]; experimental-features = "nix-command flakes"; };
  users.users.root.openssh.authorizedKeys.keys = lib.mkDefault [ "@admin@" ];
  users.users.deploy = { isNormalUser = true; openssh.authorizedKeys.keys = [ "@admin@" ]; };
  users.groups.users = { };
  # as NixOS has it
  systemd.services.nix-daemon = { wantedBy = [ "multi-user.target" ]; serviceConfig.ExecStart = "/usr/bin/nix-daemon"; serviceConfig.KillMode = "process"; };
}
"""
HOST = """
{ lib, ... }:
{
  networking.hostName = "@name@";
  networking.interfaces.host0.ipv4.addresses = lib.mkDefault [ { address = "192.168.1.@number@"; prefixLength = 24; } ];
}
"""
DESK = """
{
  imports = [ ./hub.nix ];
  networking.hostName = "desk";
  networking.interfaces.host0.ipv4.addresses = [ { address = "192.168.1.1"; prefixLength = 24; } ];
  services.openssh.enable = true;
  services.bento.hub = { enable = true; hosts.t1.keys = [ "@t1@" ]; };
  nix.settings = { sandbox = false; substituters = ""; build-users-group = ""; experimental-features = "nix-command flakes"; };
}
"""
MOTD = 'environment.etc."motd".text = "%s";'
# steps that are long enough to be met
SLOW = MOTD + """
  system.extraSystemBuilderCmds = ''
    sleep 2
    printf '#!/bin/sh\\nsleep 2\\n' > $out/pre-activate-safety-checks
    chmod 755 $out/pre-activate-safety-checks
  '';
  fixture.activation = { hang = 2; actions = [ "test" "boot" ]; };
"""


def change(text):
    """A change of a machine's configuration."""
    return "{ lib, pkgs, ... }:\n{\n" + text + "\n}\n"


def number(name):
    """The last part of a machine's address."""
    return 100 + int(name[1:]) if name[1:].isdigit() else 2


def patient(arguments):
    """Arguments for a push that waits for no longer than scenarios want to."""
    limits = "" if "--activation-timeout" in arguments else "--activation-timeout 20 "
    return f"--confirm-timeout 10 {limits}{arguments}"


class Lab:
    """A desk, and machines that are pushed to; each is installed when it is first needed."""

    def __init__(self, lowers, work, newer=None):
        """`lowers` are the folders that the machines' files come from, the uppermost first; `newer` has those of the one with run0."""
        self.lowers, self.work, self.newer = lowers, Path(work), newer
        run("mount", "-t", "tmpfs", "-o", "size=8g,mode=755", "bento-lab", str(self.work))
        make_network()
        (self.work / "machines").mkdir()
        self.binds = [f"{os.environ['BENTO']}:/usr/local/bin/bento", f"{ROOT}/checks/fixture:/fixture",
                      f"{HERE}/bootctl:/usr/local/bin/bootctl", f"{HERE}/bootloader:/sbin/bootloader"]
        self.keys = {}
        for name in ("desk", "admin", "jump", *(f"t{index}" for index in range(1, 11)), NEWER):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.work / name))
            self.keys[name] = (self.work / f"{name}.pub").read_text().strip()
        self.modules = {"desk": {"configuration.nix": DESK.replace("@t1@", self.keys["t1"]), "hub.nix": (ROOT / "modules/hub.nix").read_text()}}
        self.common = COMMON.replace("@admin@", self.keys["admin"])
        self.machines = {}
        self.desk = self.get("desk")

    def get(self, name):
        """A machine, installed."""
        if name not in self.machines:
            if name != "desk":
                host = HOST.replace("@name@", name).replace("@number@", str(number(name)))
                self.modules[name] = {"configuration.nix": "{ imports = [ ./common.nix ./host.nix ]; }\n", "common.nix": self.common, "host.nix": host}
            self.machines[name] = self.install(name)
        return self.machines[name]

    def install(self, name):
        """A machine on whose disk its first system is installed."""
        layer = self.work / "layers" / name
        lowers = [self.newer] if name == NEWER else self.lowers
        root = overlay(layer, lowers)
        for path in ("usr/local/bin/bento", "usr/local/bin/bootctl", "sbin/bootloader"):
            (root / path).touch()
        (root / "fixture").mkdir()
        (root / "etc/nixos").mkdir()
        for file, text in self.modules[name].items():
            (root / "etc/nixos" / file).write_text(text)
        for kind in ("", ".pub"):
            key = root / f"etc/ssh/ssh_host_ed25519_key{kind}"
            shutil.copy(self.work / f"{name}{kind}", key)
            key.chmod(0o644 if kind else 0o600)
        run("systemd-nspawn", "--quiet", f"--directory={root}", "--register=no", "--keep-unit", "--private-network",
            "--resolv-conf=off", "--timezone=off", "--console=pipe", *[f"--bind-ro={bind}" for bind in self.binds],
            "/bin/sh", "-c", INSTALL, stdin=subprocess.DEVNULL)
        run("umount", str(root))
        # which wants to be asked for before it takes what older kernels have
        words = ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"] if name == NEWER else []
        return Container(name, [layer / "upper", *lowers], self.work / "machines", self.binds, words)

    def fresh(self, *names):
        """The desk and these machines as they were at first, and no other."""
        for machine in self.machines.values():
            machine.crash()
        machines = [self.get(name) for name in ("desk", *names)]
        for machine in machines:
            machine.reset()
            machine.start(wait=False)
        for machine in machines:
            machine.connect()
        desk = self.desk
        hosts = [name for name in names if name != "jump"]
        desk.write("/fleet/flake.nix", FLAKE.replace("@names@", " ".join(f'"{name}"' for name in hosts)))
        desk.write("/fleet/common.nix", self.common)
        for name in hosts:
            desk.write(f"/fleet/{name}.nix", self.modules[name]["host.nix"])
            desk.write(f"/fleet/change-{name}.nix", NOTHING)
        desk.write("/root/.ssh/id_ed25519", (self.work / "admin").read_text())
        desk.write("/root/.ssh/id_ed25519.pub", self.keys["admin"] + "\n")
        known = "".join(f"{name},192.168.1.{number(name)} {self.keys[name]}\n" for name in names)
        desk.write("/root/.ssh/known_hosts", known)
        desk.write("/root/.ssh/config", "".join(f"Host {name}\n  HostName 192.168.1.{number(name)}\n" for name in names))
        desk.succeed("chmod 700 /root/.ssh; chmod 600 /root/.ssh/*; cd /fleet && nix flake lock 2>&1")
        self.first, self.last = {}, ""
        for name in names:
            machine = self.get(name)
            # what NixOS does for its users
            machine.succeed("mkdir -p /home/deploy && chown deploy /home/deploy; grep -q ^deploy: /etc/shadow || echo 'deploy:*:1::::::' >> /etc/shadow")
            self.first[name] = self.running(machine)

    def change(self, text, name="t1"):
        self.desk.write(f"/fleet/change-{name}.nix", change(text))

    def deploy(self, arguments, works=True, timeout=300, before=""):
        """Pushes, with the variables of `before` in the environment; gives what was said."""
        status, said = self.desk.execute(f"cd /fleet && {before} bento deploy {patient(arguments)} 2>&1", timeout)
        self.last = said.rstrip().rsplit("\n", 1)[-1]
        if (status == 0) != works:
            raise Failure(f"bento deploy {arguments} ended with {status}:\n{said}\n{self.journals()}")
        return said

    def begin(self, arguments, before=""):
        """Begins a push, and leaves it alone; its events are in /tmp/events."""
        self.desk.succeed("rm -f /tmp/events /tmp/said /tmp/status; touch /tmp/events")
        self.leave(f"{before} bento deploy --json {patient(arguments)} > /tmp/events 2> /tmp/said")

    def roll(self, arguments):
        """Begins a rollout, and leaves it alone."""
        self.desk.succeed("rm -f /tmp/said /tmp/status")
        self.leave(f"bento rollout {arguments} > /tmp/said 2>&1")

    def leave(self, command):
        """Has a command run by itself."""
        command = f"cd /fleet && {command}; echo $? > /tmp/status"
        self.desk.succeed(f"systemd-run --quiet --unit=push --setenv=PATH=\"$PATH\" --setenv=HOME=/root --setenv=NIX_REMOTE=local -- /bin/sh -c {shlex.quote(command)}")

    def wait_for_step(self, step):
        """Waits until the push has come to a step."""
        self.desk.wait_until_succeeds(f"grep -q '\"step\":\"{step}\"' /tmp/events || test -e /tmp/status", 60)
        self.desk.succeed(f"grep -q '\"step\":\"{step}\"' /tmp/events")

    def end(self, timeout=240):
        """Waits for the end of the push; gives its status and what was said."""
        self.desk.wait_for_file("/tmp/status", timeout)
        return int(self.desk.succeed("cat /tmp/status")), self.desk.succeed("cat /tmp/said")

    def kill(self):
        """Kills the push, and all that it started."""
        self.desk.execute("systemctl kill --signal=KILL push; systemctl stop push; systemctl reset-failed push")

    def outcome(self, *names):
        """What these machines run in the end, in words: the jump host is none of them."""
        now = {name: "the old system" if self.running(self.get(name)) == self.first[name] else "the new system" for name in names if name != "jump"}
        return next(iter(now.values())) if len(set(now.values())) == 1 else "; ".join(f"{name}: {system}" for name, system in now.items())

    def journals(self):
        return "\n".join(machine.execute("cat /run/bento-push/*/log; journalctl -b --no-pager -o cat -u 'bento-*' | tail -n 20")[1]
                         for name, machine in self.machines.items() if name != "desk" and machine.on)

    # --- what is asserted

    def running(self, machine):
        return machine.succeed("readlink /run/current-system").strip()

    def boots(self, machine):
        text = machine.succeed("cat /boot/loader/entries/$(sed -n 's/^default //p' /boot/loader/loader.conf)")
        return re.search(r"init=(\S+)/init", text).group(1)

    def one(self, name="t1"):
        """The one system that the machine runs, boots and has as its profile; nothing of a trial is left."""
        machine = self.get(name)
        machine.wait_until_succeeds("! systemctl list-units --plain --no-legend 'bento-push-*' 'bento-activation*' | grep .", 120)
        system = self.running(machine)
        profile = machine.succeed("readlink -f /nix/var/nix/profiles/system").strip()
        if not system == self.boots(machine) == profile:
            raise Failure(f"{name} runs {system}, boots {self.boots(machine)}, has the profile {profile}\n{self.journals()}")
        machine.succeed("test -z \"$(ls /nix/var/nix/gcroots/bento-push 2> /dev/null)\"", "test -z \"$(ls -d /tmp/bento-push-* 2> /dev/null)\"")
        return system

    def old(self, name="t1"):
        if self.one(name) != self.first[name]:
            raise Failure(f"{name} runs another system than at first\n{self.journals()}")

    def new(self, name="t1"):
        if self.one(name) == self.first[name]:
            raise Failure(f"{name} runs what it ran at first\n{self.journals()}")


SCENARIOS = []
# what scenarios need that may not be there, by their names
NEEDS = {}
HEADING = "| what happens to a push | the machines run | what `bento deploy` said last, or what was counted |"


def scenario(name, *machines, quick=False, needs=None):
    def add(function):
        NEEDS[name] = needs
        SCENARIOS.append((name, machines or ("t1",), quick, function))
        return function
    return add


def says(said, *words):
    for word in words:
        if not re.search(word, said):
            raise Failure(f"it says nothing of {word!r}:\n{said}")


@scenario("push: success", quick=True)
def success(lab):
    lab.change(MOTD % "hello")
    says(lab.deploy("t1"), "pushed /nix/store/", "1 pushed, 0 unchanged, 0 failed")
    lab.new()
    assert lab.get("t1").succeed("cat /etc/motd") == "hello"
    says(lab.deploy("t1"), "unchanged: /nix/store/", "0 pushed, 1 unchanged, 0 failed")
    # the configuration is the one of the name that the machine gives itself
    lab.change(MOTD % "hello again")
    says(lab.deploy("nixos://root@192.168.1.101:22"), "1 pushed")
    assert lab.get("t1").succeed("cat /etc/motd") == "hello again"
    # and it survives a restart
    lab.get("t1").reboot()
    lab.new()


@scenario("push: by an address of the link, IPv6")
def link_local(lab):
    for machine in (lab.desk, lab.get("t1")):
        # until nobody else has it
        machine.wait_until_succeeds("ip -6 address show dev host0 scope link -tentative | grep fe80", 20)
    address = lab.get("t1").succeed("ip -6 -brief address show dev host0 scope link | grep -o 'fe80[^/]*'").strip()
    place = f"{address}%host0"
    lab.desk.write("/root/.ssh/known_hosts", f"{place} {lab.keys['t1']}\n")
    lab.change(MOTD % "hello")
    says(lab.deploy(f"'nixos://root@[{place}]/t1'"), "1 pushed")
    lab.new()


@scenario("push: built on the target")
def on_target(lab):
    lab.change(MOTD % "hello")
    says(lab.deploy("t1 --build-on target"), "1 pushed")
    lab.new()


@scenario("push: built on another machine", "t1", "t2")
def on_builder(lab):
    lab.change(MOTD % "hello")
    says(lab.deploy("t1 --build-on root@t2"), "1 pushed")
    lab.new()
    lab.old("t2")


@scenario("push: a host without a flake")
def without_flake(lab):
    lab.desk.succeed("cd /fleet && mkdir -p hosts/t1 && mv common.nix hosts/t1/ && mv t1.nix hosts/t1/host.nix && rm flake.nix flake.lock")
    for place in ("here", "target"):
        lab.desk.write("/fleet/hosts/t1/change.nix", change(MOTD % place))
        lab.desk.write("/fleet/hosts/t1/configuration.nix", "{ imports = [ ./common.nix ./host.nix ./change.nix ]; }\n")
        # where it is built on the target, by what that machine has
        # (a Nix that has run there leaves a link to no channels)
        lab.get("t1").succeed("rm -rf /root/.nix-defexpr/channels && mkdir -p /root/.nix-defexpr/channels && ln -s /fixture /root/.nix-defexpr/channels/nixpkgs")
        says(lab.deploy(f"t1 --build-on {place}"), "1 pushed")
        assert lab.get("t1").succeed("cat /etc/motd") == place
        lab.new()


@scenario("push: ten machines at once", *(f"t{index}" for index in range(1, 11)))
def ten(lab):
    for index in range(1, 11):
        lab.change(MOTD % f"hello {index}", f"t{index}")
    start = time.monotonic()
    says(lab.deploy(" ".join(f"t{index}" for index in range(1, 11)), timeout=600), "10 pushed, 0 unchanged, 0 failed")
    took = time.monotonic() - start
    for index in range(1, 11):
        lab.new(f"t{index}")
    return f"{took:.0f} s"


@scenario("push: build failure", "t1", "t2", quick=True)
def build_failure(lab):
    lab.change('system.extraSystemBuilderCmds = "echo no luck; exit 3";')
    lab.change(MOTD % "hello", "t2")
    said = lab.deploy("t1 t2", works=False)
    says(said, "t1: failed, nothing was changed: the build failed", "1 pushed, 0 unchanged, 1 failed")
    lab.old()
    lab.new("t2")


@scenario("push: build that takes too long")
def long_build(lab):
    lab.change('system.extraSystemBuilderCmds = "sleep 1000";')
    for place, machine in (("here", lab.desk), ("target", lab.get("t1"))):
        says(lab.deploy(f"t1 --build-timeout 3 --build-on {place}", works=False, timeout=60), "did not end within 3 s and was killed")
        machine.wait_until_fails("pgrep -fx 'sleep 1000'", 20)
        lab.old()


@scenario("push: unhealthy machine", quick=True)
def unhealthy(lab):
    for unit in ("bento-hub", "sick"):
        lab.get("t1").succeed(f"systemd-run --quiet --unit={unit} --property=Type=oneshot /bin/false || true")
    lab.change(MOTD % "hello")
    said = lab.deploy("t1", works=False)
    says(said, r"not healthy: units have failed: bento-hub\.service, sick\.service")
    assert "building" not in said, said
    lab.old()
    says(lab.deploy("t1 --preflight-check=skip"), "1 pushed")
    lab.new()


@scenario("push: its own check is against it", quick=True)
def own_check(lab):
    lab.change("""system.extraSystemBuilderCmds = "printf '#!/bin/sh\\necho not on a Sunday; exit 1\\n' > $out/pre-activate-safety-checks; chmod 755 $out/pre-activate-safety-checks";""")
    says(lab.deploy("t1", works=False), "own check is against activating it", "not on a Sunday")
    lab.old()


@scenario("push: its own check hangs")
def own_check_hangs(lab):
    lab.change("""system.extraSystemBuilderCmds = "printf '#!/bin/sh\\nsleep 1000\\n' > $out/careful; chmod 755 $out/careful";""")
    lab.desk.write("/fleet/bento.toml", '[hub]\ndirectory = "/home/chroot"\n[push]\ncheck-timeout = 2\npre-activate-script = "careful"\n')
    says(lab.deploy("--push t1", works=False), "careful did not end within 2 s and was killed")
    lab.get("t1").fail("pgrep -fx 'sleep 1000'")
    lab.old()


@scenario("push: unit that fails", quick=True)
def failing_unit(lab):
    lab.change('systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "sleep 1; exit 1"; };')
    says(lab.deploy("t1", works=False), r"rolled back to /nix/store/\S+: units failed: bad\.service")
    lab.old()
    # a service of bento's that is not the push's own is one like any other
    lab.change('systemd.services.bento-hub = { wantedBy = [ "multi-user.target" ]; script = "sleep 1; exit 1"; };')
    says(lab.deploy("t1", works=False), r"rolled back to /nix/store/\S+: units failed: bento-hub\.service")
    lab.old()


@scenario("push: activation that fails")
def failing_activation(lab):
    lab.change('fixture.activation = { exitCode = 2; actions = [ "test" ]; };')
    says(lab.deploy("t1", works=False), "rolled back", "the activation failed: it ended with exit status 2")
    lab.old()


@scenario("push: activation that hangs")
def hanging_activation(lab):
    lab.change('fixture.activation = { hang = "infinity"; actions = [ "test" ]; };')
    says(lab.deploy("t1 --activation-timeout 4", works=False), "rolled back", "did not end within 4 s and was killed")
    lab.old()


@scenario("push: boot entry that can't be made")
def failing_boot(lab):
    lab.change('fixture.activation = { exitCode = 1; actions = [ "boot" ]; };')
    says(lab.deploy("t1", works=False), "rolled back", "the boot entry could not be made")
    lab.old()


@scenario("push: sshd turned off", quick=True)
def sshd_off(lab):
    lab.change("services.openssh.enable = false;")
    said = lab.deploy("t1", works=False)
    says(said, "services.openssh.enable is false: nobody could log in any more")
    assert "activating" not in said, said
    lab.old()
    says(lab.deploy("t1 --lockout-check=skip", works=False), "rolled back", "no new connection")
    lab.old()


@scenario("push: key removed")
def key_removed(lab):
    lab.change("users.users.root.openssh.authorizedKeys.keys = [ ];")
    says(lab.deploy("t1", works=False), "the key that you came with", "would not be let in any more")
    lab.old()
    says(lab.deploy("t1 --lockout-check=skip", works=False), "rolled back", "no new connection")
    lab.old()


@scenario("push: firewall closed")
def firewall_closed(lab):
    lab.change("networking.nftables.enable = true; networking.firewall.enable = true; services.openssh.openFirewall = false;")
    says(lab.deploy("t1", works=False), "the firewall would be closed for port 22")
    lab.old()
    says(lab.deploy("t1 --lockout-check=skip", works=False), "rolled back")
    lab.old()


@scenario("push: network removed by the new configuration")
def network_removed(lab):
    lab.change("networking.interfaces.host0.ipv4.addresses = [ ];")
    says(lab.deploy("t1", works=False), "rolled back")
    lab.old()


@scenario("push: address changed by the new configuration")
def address_changed(lab):
    # where it is reached under its old address, it is not confirmed
    lab.change('networking.interfaces.host0.ipv4.addresses = [ { address = "192.168.1.199"; prefixLength = 24; } ];')
    says(lab.deploy("t1", works=False), "rolled back")
    lab.old()


@scenario("push: machine that restarts meanwhile")
def restarted(lab):
    lab.change(SLOW % "hello")
    lab.begin("t1")
    lab.wait_for_step("activate")
    time.sleep(1)
    lab.get("t1").crash()
    lab.get("t1").start()
    status, said = lab.end()
    says(said, "rolled back", "the machine restarted by itself")
    assert status == 1
    lab.old()


STEPS = ("health", "build", "copy", "check", "activate", "confirm", "boot")


@scenario("push: network cut at each step")
def network_cut(lab):
    outcomes = []
    for step in STEPS:
        lab.change(SLOW % step)
        before = lab.one()
        lab.begin("t1 --copy-timeout 10 --connect-timeout 5")
        lab.wait_for_step(step)
        lab.get("t1").block()
        # longer than any trial
        time.sleep(25)
        lab.get("t1").unblock()
        status, said = lab.end()
        # what could not be let go is collected a day later
        lab.get("t1").succeed("rm -f /nix/var/nix/gcroots/bento-push/*; rm -rf /tmp/bento-push-*")
        after = lab.one()
        outcomes.append(f"{step}: {'confirmed' if after != before else 'restored' if step in ('activate', 'confirm', 'boot') else 'unchanged'}")
        if (status == 0) != (after != before):
            raise Failure(f"cut at {step}: it says\n{said}\nand ended with {status}, but the machine went from {before} to {after}")
    return ", ".join(outcomes)


@scenario("push: client killed at each step")
def client_killed(lab):
    outcomes = []
    for step in STEPS:
        lab.change(SLOW % step)
        before = lab.one()
        lab.begin("t1")
        lab.wait_for_step(step)
        if step in ("activate", "boot"):
            time.sleep(0.7)
        lab.kill()
        # what it held on the machine lets go within the trial's time
        lab.get("t1").wait_until_succeeds("! systemctl list-units --plain --no-legend 'bento-push-*' | grep -q .", 90)
        status, said = lab.desk.execute("cd /fleet && bento deploy --resume 2>&1")
        lab.get("t1").succeed("rm -f /nix/var/nix/gcroots/bento-push/*; rm -rf /tmp/bento-push-*")
        after = lab.one()
        confirmed = after != before
        if step != "health":
            says(said, "pushed /nix/store" if confirmed else "rolled back|nothing was changed")
        if confirmed and status != 0:
            raise Failure(f"killed at {step}: {said}")
        outcomes.append(f"{step}: {'confirmed' if confirmed else 'restored' if 'rolled back' in said else 'unchanged'}")
        says(lab.desk.succeed("cd /fleet && bento deploy --resume 2>&1"), "no push was interrupted")
    return ", ".join(outcomes)


@scenario("push: resumed while it is on trial")
def resumed(lab):
    lab.change(SLOW % "hello")
    lab.begin("t1")
    lab.wait_for_step("activate")
    lab.kill()
    says(lab.desk.succeed("cd /fleet && bento deploy --resume --confirm-timeout 10 --activation-timeout 20 2>&1"), "pushed /nix/store")
    lab.new()


@scenario("push: two at once to one machine")
def two_at_once(lab):
    lab.change(SLOW % "hello")
    lab.begin("t1")
    lab.wait_for_step("activate")
    time.sleep(0.5)
    lab.change(MOTD % "other")
    lab.deploy("t1", works=False)
    status, said = lab.end()
    assert status == 0, said
    lab.new()
    assert lab.get("t1").succeed("cat /etc/motd") == "hello"


def allow(lab, rule):
    """Lets the user deploy become root by sudo."""
    lab.get("t1").write("/etc/sudoers", f"root ALL=(ALL) ALL\n{rule}\n")
    lab.get("t1").succeed("chmod 440 /etc/sudoers")


@scenario("push: sudo with one rule", quick=True)
def sudo_rule(lab):
    lab.change(MOTD % "hello")
    allow(lab, "")
    says(lab.deploy("deploy@t1", works=False), "sudo", "bento deploy --helper")
    lab.old()
    helper = re.search(r"NOPASSWD: (\S+)", lab.desk.succeed("bento deploy --helper")).group(1)
    allow(lab, f"deploy ALL=(root) NOPASSWD: {helper}")
    says(lab.deploy("deploy@t1"), "1 pushed")
    lab.new()
    lab.change(MOTD % "hello again")
    says(lab.deploy("deploy@t1 --build-on target"), "1 pushed")


@scenario("push: sudo with a password")
def sudo_password(lab):
    lab.change(MOTD % "hello")
    allow(lab, "deploy ALL=(ALL) ALL")
    lab.get("t1").succeed("echo deploy:secret | chpasswd")
    says(lab.deploy("deploy@t1", works=False), "sudo wants a password: give it with --ask-password or --password-file")
    lab.desk.write("/root/wrong", "terces\n")
    lab.desk.write("/root/password", "secret\n")
    lab.deploy("deploy@t1 --password-file /root/wrong", works=False)
    lab.old()
    says(lab.deploy("deploy@t1 --password-file /root/password"), "1 pushed")
    lab.new()


@scenario("push: doas with a password")
def doas_password(lab):
    lab.change(MOTD % "hello")
    machine = lab.get("t1")
    machine.write("/etc/doas.conf", "permit deploy as root\n")
    machine.succeed("chmod 400 /etc/doas.conf; echo deploy:secret | chpasswd")
    says(lab.deploy("deploy@t1 --escalation doas", works=False), "doas wants a password")
    lab.desk.write("/root/password", "secret\n")
    says(lab.deploy("deploy@t1 --escalation doas --password-file /root/password"), "1 pushed")
    lab.new()


@scenario("push: sshd turned off, and the user's settings have connections shared", quick=True)
def shared_connections(lab):
    lab.desk.write("/root/.ssh/config", "Host t1\n  HostName 192.168.1.101\n  ControlMaster auto\n  ControlPath /root/.ssh/%C\n  ControlPersist 300\n")
    lab.desk.write("/root/password", "secret\n")
    machine = lab.get("t1")
    machine.write("/etc/doas.conf", "permit deploy as root\n")
    machine.succeed("chmod 400 /etc/doas.conf; echo deploy:secret | chpasswd")
    lab.change("services.openssh.enable = false;")
    for user, more in (("root", ""), ("deploy", "--escalation doas --password-file /root/password")):
        lab.desk.succeed(f"ssh -o BatchMode=yes {user}@t1 true")
        says(lab.deploy(f"{user}@t1 --lockout-check=skip {more}", works=False), "rolled back", "no new connection")
        lab.old()


# what an environment says for all of the user's connections
SHARED = "-o ControlMaster=auto -o ControlPath=/root/.ssh/%C -o ControlPersist=300"


@scenario("push: sshd turned off, and NIX_SSHOPTS has connections shared", quick=True)
def shared_by_environment(lab):
    lab.change("services.openssh.enable = false;")
    lab.desk.succeed(f"ssh -o BatchMode=yes {SHARED} root@t1 true")
    says(lab.deploy("root@t1 --lockout-check=skip", works=False, before=f'NIX_SSHOPTS="{SHARED}"'), "rolled back", "no new connection")
    lab.old()


@scenario("push: ssh asks for a passphrase at the terminal")
def asked_at_terminal(lab):
    lab.desk.succeed("ssh-keygen -q -p -N secret -f /root/.ssh/id_ed25519")
    lab.change(MOTD % "hello")
    # somebody who types it whenever it may be asked for
    typed = "while sleep 1; do echo secret; done"
    push = "bento deploy --confirm-timeout 20 --activation-timeout 20 t1"
    status, said = lab.desk.execute(f"cd /fleet && {typed} | timeout 120 script --quiet --return --command '{push}' /dev/null", 180)
    lab.last = said.rstrip().rsplit("\n", 1)[-1].strip()
    says(said, "Enter passphrase for key", "1 pushed, 0 unchanged, 0 failed")
    assert status == 0, said
    lab.new()


FOR_WORK_BY_HAND = """Host t1
  HostName 192.168.1.101
  RemoteCommand tmux new -A
  RequestTTY yes
  PermitLocalCommand yes
  LocalCommand printf title
  LocalForward 127.0.0.1:8080 127.0.0.1:80
  ExitOnForwardFailure yes
  LogLevel QUIET
"""


@scenario("push: the user's settings are for work by hand")
def settings_for_hands(lab):
    lab.desk.write("/root/.ssh/config", FOR_WORK_BY_HAND)
    for place in ("here", "target"):
        lab.change(MOTD % place)
        says(lab.deploy(f"t1 --build-on {place}"), "1 pushed")
        lab.new()
        assert lab.get("t1").succeed("cat /etc/motd") == place


@scenario("push: a proxy that says nothing")
def silent_proxy(lab):
    lab.desk.write("/root/.ssh/config", "Host t1\n  ProxyCommand sleep 1000\n")
    says(lab.deploy("t1 --connect-timeout 3", works=False, timeout=30), "unreachable: t1: no connection within 3 s")


@scenario("push: a login shell that runs nothing, or talks")
def strange_shells(lab):
    machine = lab.get("t1")
    lab.change(MOTD % "hello")
    machine.succeed("usermod --shell /usr/sbin/nologin deploy")
    says(lab.deploy("deploy@t1 --skip-unreachable", works=False), "login shell", "This account is currently not available")
    machine.succeed("usermod --shell /bin/false deploy")
    says(lab.deploy("deploy@t1", works=False), "runs no command")
    machine.succeed("usermod --shell /bin/bash deploy; echo 'echo Have a nice day' > /home/deploy/.bashrc")
    says(lab.deploy("deploy@t1", works=False), "login shell", "Have a nice day")
    lab.old()


@scenario("push: keys whose last line is not ended", quick=True)
def unended_keys(lab):
    helper = re.search(r"NOPASSWD: (\S+)", lab.desk.succeed("bento deploy --helper")).group(1)
    allow(lab, f"deploy ALL=(root) NOPASSWD: {helper}")
    lab.get("t1").succeed(f"mkdir -p /home/deploy/.ssh && printf %s '{lab.keys['admin']}' > /home/deploy/.ssh/authorized_keys && chown -R deploy /home/deploy/.ssh")
    lab.change(MOTD % "hello")
    says(lab.deploy("deploy@t1"), "1 pushed")
    lab.new()


def slow_down(machine, program, how):
    """Puts the lines of shell `how` into the place of a program, which is `$program` to them."""
    machine.succeed(f"mkdir -p /usr/lib/quick && cp -p $(readlink -f /usr/bin/{program}) /usr/lib/quick/{program} && rm /usr/bin/{program}")
    machine.write(f"/usr/bin/{program}", f"#!/bin/sh\nprogram=/usr/lib/quick/{program}\n{how}\n")
    machine.succeed(f"chmod 755 /usr/bin/{program}")


@scenario("push: client killed when the machine was done")
def killed_when_done(lab):
    machine = lab.get("t1")
    slow_down(machine, "systemctl", 'case $1 in is-system-running) sleep 5 ;; esac; exec "$program" "$@"')
    lab.change(SLOW % "hello")
    lab.begin("t1")
    lab.wait_for_step("boot")
    machine.wait_until_succeeds("grep -q phase=kept /run/bento-push/*/state", 60)
    time.sleep(2)
    lab.kill()
    says(lab.desk.succeed("cd /fleet && bento deploy --resume 2>&1"), "pushed /nix/store")
    lab.new()


@scenario("push: client killed while it is only made the one that is booted")
def killed_without_trial(lab):
    machine = lab.get("t1")
    lab.change(SLOW % "hello")
    lab.begin("t1 --test=skip")
    lab.wait_for_step("boot")
    time.sleep(0.7)
    lab.kill()
    says(lab.desk.succeed("cd /fleet && bento deploy --resume 2>&1"), "pushed /nix/store", "a restart is needed")
    assert lab.running(machine) == lab.first["t1"], "it was activated"
    machine.reboot()
    lab.new()


@scenario("push: an answer to the confirmation that is lost")
def lost_answer(lab):
    machine = lab.get("t1")
    allow(lab, "deploy ALL=(ALL) NOPASSWD: ALL")
    # what is confirmed is not heard of in time
    slow_down(machine, "sudo", '"$program" "$@"; status=$?; case "$*" in *" confirm "*) sleep 30 ;; esac; exit $status')
    lab.change(MOTD % "hello")
    says(lab.deploy("deploy@t1"), "pushed /nix/store", "1 pushed")
    lab.new()


@scenario("push: a machine that is slow to begin")
def slow_beginning(lab):
    machine = lab.get("t1")
    slow_down(machine, "systemd-run", 'case "$*" in *--on-active*) sleep 35 ;; esac; exec "$program" "$@"')
    lab.change(MOTD % "hello")
    says(lab.deploy("t1"), "1 pushed")
    lab.new()


@scenario("push: machine that restarts while it is made the one that is booted")
def restarted_while_kept(lab):
    machine = lab.get("t1")
    # the profile is set, and the boot entry not yet
    slow_down(machine, "nix-env", '"$program" "$@"; status=$?; sleep 3; exit $status')
    for way in ("", "--test=skip"):
        lab.change(SLOW % f"hello{way}")
        lab.begin(f"t1 {way}")
        lab.wait_for_step("boot")
        machine.wait_until_succeeds(f"test $(readlink -f /nix/var/nix/profiles/system) != {lab.first['t1']}", 60)
        machine.crash()
        machine.start()
        status, said = lab.end()
        says(said, "rolled back", "the machine restarted by itself")
        assert status == 1
        lab.old()


@scenario("push: garbage is collected meanwhile")
def collected(lab):
    lab.change(MOTD % "hello" + 'systemd.services.gc = { wantedBy = [ "multi-user.target" ]; serviceConfig.Type = "oneshot"; script = "NIX_REMOTE=local /usr/bin/nix-store --gc"; };')
    says(lab.deploy("t1"), "1 pushed")
    lab.new()


# what polkit goes by when somebody starts a unit, which is what run0 does
RULE = """polkit.addRule(function(action, subject) {
  if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "deploy") return polkit.Result.YES;
});
"""


@scenario("push: run0 with a rule", NEWER, needs="newer")
def run0(lab):
    machine = lab.get(NEWER)
    lab.change(MOTD % "hello", NEWER)
    push = f"deploy@{NEWER} --escalation run0"
    says(lab.deploy(push, works=False), "run0 wants a password: give it with --ask-password or --password-file")
    lab.old(NEWER)
    machine.write("/etc/polkit-1/rules.d/10-deploy.rules", RULE)
    machine.succeed("systemctl restart polkit")
    says(lab.deploy(push), "1 pushed")
    lab.new(NEWER)
    # one that does not work out
    before = lab.one(NEWER)
    lab.change('systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "exit 1"; };', NEWER)
    says(lab.deploy(push, works=False), r"rolled back to /nix/store/\S+: units failed: bad\.service")
    if lab.one(NEWER) != before:
        raise Failure("it runs another system than before")
    lab.change(MOTD % "hello again", NEWER)
    says(lab.deploy(f"{push} --build-on target"), "1 pushed")
    lab.new(NEWER)


# who logs in has a session of logind's then, as on NixOS: to one who has none, polkit says no without a question
PAM = "services.openssh.settings.UsePAM = true;"


@scenario("push: run0 with a password", NEWER, needs="newer")
def run0_password(lab):
    machine = lab.get(NEWER)
    lab.change(PAM, NEWER)
    says(lab.deploy(NEWER), "1 pushed")
    machine.succeed("echo deploy:secret | chpasswd; usermod -aG sudo deploy")
    before = lab.one(NEWER)
    lab.change(PAM + MOTD % "hello", NEWER)
    push = f"deploy@{NEWER} --escalation run0"
    says(lab.deploy(push, works=False), "run0 wants a password: give it with --ask-password or --password-file")
    lab.desk.write("/root/wrong", "terces\n")
    lab.desk.write("/root/password", "secret\n")
    says(lab.deploy(f"{push} --password-file /root/wrong", works=False), "run0 does not run the helper", "AUTHENTICATION FAILED")
    if lab.one(NEWER) != before:
        raise Failure("it runs another system than before")
    says(lab.deploy(f"{push} --password-file /root/password"), "1 pushed")
    lab.new(NEWER)


# what ssh finds a token by, and what says its PIN where nobody types it
PROVIDER = "/usr/lib/softhsm/libsofthsm2.so"
ASKPASS = "#!/bin/sh\ncat /root/pin\n"


@scenario("push: a key on a token", needs="token")
def token(lab):
    desk = lab.desk
    desk.write("/etc/softhsm/softhsm2.conf", "directories.tokendir = /var/lib/softhsm/tokens\nobjectstore.backend = file\n")
    # a token that is a folder: its key is made elsewhere, and then nowhere but there
    desk.write("/root/askpass", ASKPASS)
    desk.write("/root/pin", "1234\n")
    key = desk.succeed("mkdir -p /var/lib/softhsm/tokens && softhsm2-util --init-token --free --label desk --pin 1234 --so-pin 4321 > /dev/null",
                       "chmod 755 /root/askpass; cd /root && ssh-keygen -q -t ecdsa -m PKCS8 -N '' -C token -f new && softhsm2-util --import new --token desk --label token --id 01 --pin 1234 > /dev/null",
                       "rm /root/new", "cat /root/new.pub").strip()
    keys = 'users.users.root.openssh.authorizedKeys.keys = [ "%s" ];'
    lab.change(f'users.users.root.openssh.authorizedKeys.keys = [ "{lab.keys["admin"]}" "{key}" ];')
    says(lab.deploy("t1"), "1 pushed")
    first = lab.one()
    # from here on nothing else lets the desk in
    desk.succeed("rm /root/.ssh/id_ed25519*")
    says(lab.deploy("t1", works=False), "Permission denied", "takes none of your keys")
    config = f"Host t1\n  HostName 192.168.1.101\n  PKCS11Provider {PROVIDER}\n"
    desk.write("/root/.ssh/config", config)
    asking = "SSH_ASKPASS=/root/askpass SSH_ASKPASS_REQUIRE=force"
    lab.change(keys % key + MOTD % "by its provider")
    says(lab.deploy("t1", before=asking), "1 pushed")
    second = lab.one()
    assert second != first and lab.get("t1").succeed("cat /etc/motd") == "by its provider"
    # a system that would not let it in is refused, as with any other key
    lab.change(keys % lab.keys["admin"])
    says(lab.deploy("t1", works=False, before=asking), "the key that you came with .SHA256:", "would not be let in any more")
    # a PIN that is wrong
    desk.write("/root/pin", "4711\n")
    lab.change(keys % key + MOTD % "by an agent")
    says(lab.deploy("t1", works=False, before=asking), "unreachable: t1", "its PIN right")
    desk.write("/root/pin", "1234\n")
    # an agent has it
    desk.write("/root/.ssh/config", config.replace("PKCS11Provider", "#"))
    desk.succeed(f"ssh-agent -a /run/agent > /dev/null; SSH_AUTH_SOCK=/run/agent {asking} ssh-add -s {PROVIDER} 2>&1")
    agent = "SSH_AUTH_SOCK=/run/agent"
    says(lab.deploy("t1", before=agent), "1 pushed")
    third = lab.one()
    assert third != second and lab.get("t1").succeed("cat /etc/motd") == "by an agent"
    # it is pulled out while the system is on trial: nobody can confirm that any more
    lab.change(keys % key + SLOW % "without a token")
    lab.begin("t1", before=agent)
    lab.wait_for_step("activate")
    desk.succeed("mv /var/lib/softhsm/tokens /var/lib/softhsm/away && mkdir /var/lib/softhsm/tokens")
    status, said = lab.end()
    says(said, "rolled back", "no new connection")
    if status != 1 or lab.one() != third:
        raise Failure(f"it ended with {status}, and not in what ran before:\n{said}\n{lab.journals()}")
    # and who has none does not get in
    lab.change(keys % key + MOTD % "with the token")
    says(lab.deploy("t1", works=False, before=agent), "unreachable: t1", "is the token plugged in")
    desk.write("/root/.ssh/config", config)
    says(lab.deploy("t1", works=False, before=asking), "unreachable: t1", "by its PKCS11Provider: is the token plugged in")
    assert lab.one() == third
    desk.succeed("rmdir /var/lib/softhsm/tokens && mv /var/lib/softhsm/away /var/lib/softhsm/tokens")
    says(lab.deploy("t1", before=asking), "1 pushed")
    lab.new()


@scenario("push: through a jump host", "t1", "jump")
def jump_host(lab):
    lab.change(MOTD % "hello")
    lab.desk.write("/root/.ssh/config", "Host jump\n  HostName 192.168.1.2\nHost t1\n  HostName 192.168.1.101\n  ProxyJump jump\n")
    # nobody but the jump host gets there
    lab.get("t1").succeed("nft 'table inet gate { chain input { type filter hook input priority 0; ip saddr 192.168.1.1 tcp dport 22 drop; }; }'")
    says(lab.deploy("t1"), "1 pushed")
    lab.new()
    lab.get("jump").succeed("systemctl stop sshd")
    lab.change(MOTD % "hello again")
    says(lab.deploy("t1", works=False), "unreachable: the jump host 192.168.1.2, on the way to t1", "does sshd run there")
    lab.get("jump").succeed("systemctl start sshd")
    lab.get("t1").succeed("systemctl stop sshd")
    says(lab.deploy("t1", works=False), "unreachable: t1, from the jump host jump")


@scenario("push: through a jump host by a key, and on with a password", "t1", "jump")
def jump_by_key(lab):
    desk = lab.desk
    key = desk.succeed("ssh-keygen -q -t ed25519 -N '' -C jump -f /root/.ssh/jump && cat /root/.ssh/jump.pub").strip()
    lab.get("jump").succeed(f"mkdir -p -m 700 /root/.ssh && echo '{key}' >> /root/.ssh/authorized_keys && chmod 600 /root/.ssh/authorized_keys")
    desk.write("/root/.ssh/config", "Host jump\n  HostName 192.168.1.2\n  IdentityFile /root/.ssh/jump\n  IdentitiesOnly yes\n"
                                    "Host t1\n  HostName 192.168.1.101\n  ProxyJump jump\n  PubkeyAuthentication no\n")
    desk.write("/root/askpass", ASKPASS)
    desk.write("/root/pin", "secret\n")
    desk.succeed("chmod 755 /root/askpass")
    machine = lab.get("t1")
    machine.write("/etc/doas.conf", "permit deploy as root\n")
    machine.succeed("chmod 400 /etc/doas.conf; echo deploy:secret | chpasswd")
    # the key is the jump host's affair: the machine need not know it
    lab.change(MOTD % "hello")
    said = lab.deploy("deploy@t1 --escalation doas --password-file /root/pin", before="SSH_ASKPASS=/root/askpass SSH_ASKPASS_REQUIRE=force")
    says(said, "1 pushed")
    lab.new()


@scenario("push: one is unreachable", "t1", "t2", quick=True)
def one_unreachable(lab):
    lab.change(MOTD % "hello")
    lab.change(MOTD % "hello", "t2")
    lab.get("t2").succeed("systemctl stop sshd")
    said = lab.deploy("t1 t2", works=False)
    says(said, "t2: unreachable: t2: .*Connection refused", "1 pushed, 0 unchanged, 1 failed")
    lab.new()
    lab.change(MOTD % "hello again")
    says(lab.deploy("t1 t2 --skip-unreachable"), "1 pushed, 0 unchanged, 1 skipped, 0 failed")


@scenario("push: wrong host key and refused key")
def wrong_keys(lab):
    lab.desk.write("/root/.ssh/known_hosts", f"192.168.1.101 {lab.keys['desk']}\n")
    says(lab.deploy("t1", works=False), "Host key verification failed", "known_hosts")
    lab.desk.write("/root/.ssh/known_hosts", f"192.168.1.101 {lab.keys['t1']}\n")
    lab.desk.write("/root/.ssh/id_ed25519", (lab.work / "jump").read_text())
    lab.desk.succeed("rm /root/.ssh/id_ed25519.pub")
    says(lab.deploy("t1", works=False), "Permission denied", "takes none of your keys")


SETTINGS = """
[hub]
directory = "/home/chroot"
address = "192.168.1.1"
[release]
signing-key = "/root/.ssh/id_ed25519"
[build]
local = false
"""


def status(lab, name="t1"):
    found = json.loads(lab.desk.succeed("cd /fleet && bento status --json 2> /dev/null"))
    return next(host for host in found if host["machine"] == name)


@scenario("push: shown in the status", quick=True)
def in_status(lab):
    lab.desk.write("/fleet/bento.toml", SETTINGS + '[hosts.t1]\npush = "nixos://root@t1"\n')
    lab.change(MOTD % "hello")
    # all of the fleet
    says(lab.deploy(""), "1 pushed")
    shown = status(lab)
    assert shown["state"] == "up-to-date" and shown["serial"] == 1 and "/nix/store/" + shown["remote_version"] == lab.one(), shown
    lab.change('systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "exit 1"; };')
    lab.deploy("t1", works=False)
    shown = status(lab)
    assert shown["state"] == "rollbacked" and shown["serial"] == 2 and "bad.service" in shown["reason"], shown
    lab.change('system.extraSystemBuilderCmds = "exit 3";')
    lab.deploy("t1", works=False)
    shown = status(lab)
    assert shown["state"] == "failing" and shown["serial"] == 3, shown
    lab.change(MOTD % "hello")
    says(lab.deploy("t1"), "1 unchanged")
    shown = status(lab)
    assert shown["state"] == "up-to-date" and shown["serial"] == 4, shown


@scenario("push: the hub is another's when it ends", "t1", "t2")
def hub_taken(lab):
    lab.desk.write("/fleet/bento.toml", SETTINGS)
    for name in ("t1", "t2"):
        lab.change(SLOW % "hello", name)
    lab.begin("--push t1 t2")
    lab.wait_for_step("activate")
    lab.desk.succeed("systemd-run --quiet --unit=other flock /home/chroot/.bento.lock sleep 1000")
    ended, said = lab.end()
    lab.desk.succeed("systemctl stop other")
    says(said, "can't be recorded on the hub.*t1: another deploy is at work.*t2: another deploy is at work")
    assert ended == 1, said
    says(lab.deploy("--push t1 t2"), "2 unchanged")
    for name in ("t1", "t2"):
        lab.new(name)
        assert status(lab, name)["state"] == "up-to-date", status(lab, name)


AGENT = """
  imports = [ ./agent.nix ];
  services.bento.agent = {
    enable = true;
    hub = { address = "192.168.1.1"; hostKeys = [ "@desk@" ]; };
    timeout = 2;
    signers = [ "@admin@" ];
    interval = "2040-01-01";
    bootDelay = "1h";
    settings.confirm = { tries = 2; pause = 1; settle = 1; margin = 5; };
  };
"""


@scenario("push: to a machine that pulls")
def pulling(lab):
    agent = AGENT.replace("@desk@", lab.keys["desk"]).replace("@admin@", lab.keys["admin"])
    lab.desk.write("/fleet/agent.nix", (ROOT / "modules/agent.nix").read_text())
    lab.desk.write("/fleet/bento.toml", SETTINGS)
    lab.change(agent + MOTD % "one")
    # it gets its agent by a push, and its first release with it
    says(lab.deploy("--push t1"), "1 pushed")
    lab.desk.succeed("cd /fleet && bento deploy t1 2>&1")
    lab.get("t1").succeed("systemctl start bento-upgrade")
    shown = status(lab)
    assert shown["state"] == "up-to-date" and shown["serial"] == 1, shown
    lab.change(agent + MOTD % "two")
    says(lab.deploy("--push t1"), "1 pushed")
    pushed = lab.one()
    assert status(lab)["serial"] == 2, status(lab)
    lab.get("t1").succeed("systemctl start bento-upgrade")
    shown = status(lab)
    assert shown["state"] == "up-to-date" and shown["reported_serial"] == 2 and lab.one() == pushed, shown
    # what is refused is not published
    lab.change(agent + 'systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "exit 1"; };')
    lab.deploy("--push t1", works=False)
    assert status(lab)["serial"] == 2 and lab.one() == pushed, status(lab)
    # and pulling goes on where pushing left off
    lab.change(agent + MOTD % "three")
    lab.desk.succeed("cd /fleet && bento deploy t1 2>&1")
    lab.get("t1").succeed("systemctl start bento-upgrade")
    shown = status(lab)
    assert shown["state"] == "up-to-date" and shown["serial"] == 3 and lab.one() != pushed, shown


def pushed_to(lab, *names):
    """Writes settings in which these machines are pushed to."""
    hosts = "".join(f'[hosts.{name}]\npush = "nixos://root@{name}"\n' for name in names)
    lab.desk.write("/fleet/bento.toml", SETTINGS + '[push]\nactivation-timeout = 20\nconfirm-timeout = 10\n' + hosts)


@scenario("push: rolled out in waves", "t1", "t2", "t3")
def rolled_out(lab):
    pushed_to(lab, "t1", "t2", "t3")
    for name in ("t1", "t2", "t3"):
        lab.change(MOTD % "one", name)
    says(lab.desk.succeed("cd /fleet && bento rollout --canary t1 --batch t2 --soak 1s 2>&1"), "t1: done", "t2: done", "t3: done", "finished")
    one = {name: lab.one(name) for name in ("t1", "t2", "t3")}
    for name in ("t1", "t2", "t3"):
        lab.new(name)
        assert status(lab, name)["state"] == "up-to-date", status(lab, name)
        lab.change(MOTD % "two", name)
    lab.change('systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "exit 1"; };', "t2")
    said = lab.desk.fail("cd /fleet && bento rollout --canary t1 --batch t2 --soak 1s 2>&1")
    says(said, "t1: done", "t2: failed: .*bad.service", "t1: back at what was before", "stopped: 1 failed, and 0 may")
    # all run what they ran before, the third has never had anything else, and the hub says so
    assert {name: lab.one(name) for name in one} == one, said
    for name, serial in (("t1", 3), ("t2", 3), ("t3", 1)):
        shown = status(lab, name)
        assert shown["serial"] == serial and "/nix/store/" + shown["local_version"] == one[name], shown
    assert status(lab, "t1")["state"] == "up-to-date", status(lab, "t1")


@scenario("push: a rollout that is killed", "t1", "t2", "t3")
def killed_rollout(lab):
    pushed_to(lab, "t1", "t2", "t3")
    for name in ("t1", "t2", "t3"):
        lab.change(SLOW % "one", name)
    outcomes = []
    # while each wave is at work: its machine tries the system out when nobody is there any more to confirm it
    for number, wave in enumerate(("t1", "t2", "t3")):
        lab.roll("--canary t1 --batch t2 --soak 1s" if number == 0 else "--resume")
        lab.get(wave).wait_until_succeeds("systemctl list-units --plain --no-legend 'bento-activation*' | grep -q .", 120)
        lab.kill()
        outcomes.append(wave)
        lab.one(wave)
    said = lab.desk.succeed("cd /fleet && bento rollout --resume 2>&1", timeout=300)
    says(said, "finished")
    for name in ("t1", "t2", "t3"):
        lab.new(name)
        assert status(lab, name)["state"] == "up-to-date", status(lab, name)
    return f"killed in {len(outcomes)} waves, and gone on with"


@scenario("push: a rollout that loses a machine", "t1", "t2")
def lost_in_rollout(lab):
    pushed_to(lab, "t1", "t2")
    before = {name: lab.one(name) for name in ("t1", "t2")}
    for name in before:
        lab.change(SLOW % "one", name)
    lab.roll("--canary t2 --soak 1s")
    lost = lab.get("t1")
    # it is confirmed, and nobody hears of that
    lost.wait_until_succeeds("grep -q phase=kept /run/bento-push/*/state", 120)
    lost.block()
    lab.desk.wait_until_succeeds("grep -q 't1: failed: lost' /tmp/said", 240)
    status, said = lab.end()
    says(said, "t2: done", "stopped: 1 failed, and 0 may", "t2: back at what was before", "t1: cannot go back", "not back at what was before: t1 ")
    assert status == 1 and lab.one("t2") == before["t2"], said
    # it is there again
    lost.unblock()
    status, said = lab.desk.execute("cd /fleet && bento rollout --resume 2>&1", 300)
    says(said, "t1: back at what was before")
    assert status == 1 and "not back" not in said and {name: lab.one(name) for name in before} == before, said
    says(lab.desk.fail("cd /fleet && bento rollout --resume 2>&1"), "no rollout is under way")


def main():
    parser = options("base", "tools", "token", "newer")
    parser.add_argument("--book", action="store_true")
    arguments = parser.parse_args()

    def row(name, cells=lambda: None):
        if arguments.book:
            write_row(HEADING, [entry[0] for entry in SCENARIOS], name, cells())

    def lacks(entry):
        needs = NEEDS[entry[0]]
        return f"there is no {getattr(arguments, needs)}" if needs and not Path(getattr(arguments, needs)).is_dir() else None

    perform(
        SCENARIOS, arguments,
        make=lambda: Lab([folder for folder in map(Path, (arguments.token, arguments.tools, arguments.base)) if folder.is_dir()], arguments.work, Path(arguments.newer)),
        prepare=lambda lab, machines: lab.fresh(*machines),
        ended=lambda lab, entry, note: row(entry[0], lambda: (lab.outcome(*entry[1]), note or lab.last)) if lab else None,
        broken=lambda lab, entry: row(entry[0]),
        lacks=lacks,
    )


if __name__ == "__main__":
    main()
