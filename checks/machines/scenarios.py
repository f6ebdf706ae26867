"""Everything that can happen to a host, each on a real systemd with a real hub: see `run`.

A scenario begins with a host that is up to date and ends when the host has reported; what it shows is asserted, and goes into
the table in docs/src/scenarios.md.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

from driver import Failure, Machine, make_network, memory, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BOOK = ROOT / "docs/src/scenarios.md"

WEB = """
{ lib, ... }:
{
  imports = [ ./agent.nix ./change.nix ];
  networking.hostName = "web";
  networking.interfaces.host0.ipv4.addresses = lib.mkDefault [ { address = "192.168.1.11"; prefixLength = 24; } ];
  services.openssh.enable = lib.mkDefault true;
  nix.settings = { sandbox = false; substituters = ""; build-users-group = ""; };
  services.bento.agent = {
    enable = lib.mkDefault true;
    hub = { address = lib.mkDefault "192.168.1.1"; hostKeys = lib.mkDefault [ "@hub@" ]; };
    timeout = 2;
    signers = [ "@admin@" ];
    # nobody but the scenario starts it
    interval = "2040-01-01";
    # but after a restart it goes on by itself
    bootDelay = "3s";
    settings = {
      nix.search-path = [ "nixpkgs=/fixture" ];
      confirm = { tries = 2; pause = 1; settle = 2; margin = 5; };
      system.activation-timeout = 10;
    };
  };
}
"""
HUB = """
{
  imports = [ ./hub.nix ];
  networking.hostName = "hub";
  networking.interfaces.host0.ipv4.addresses = [ { address = "192.168.1.1"; prefixLength = 24; } ];
  services.openssh.enable = true;
  services.openssh.settings = { PasswordAuthentication = false; MaxStartups = "200"; };
  services.bento.hub = { enable = true; hosts.web.keys = [ "@web@" ]; };
  nix.settings = { sandbox = false; substituters = ""; build-users-group = ""; };
}
"""
NOTHING = "{ }\n"


def change(text):
    """A change of the host's configuration."""
    return "{ lib, pkgs, ... }:\n{\n" + text + "\n}\n"


class Lab:
    """A hub, and hosts."""

    def __init__(self, base, work):
        self.base, self.work = Path(base), Path(work)
        run("mount", "-t", "tmpfs", "-o", "size=4g,mode=755", "bento-lab", str(self.work))
        make_network()
        (self.work / "machines").mkdir()
        self.binds = [f"{bento()}:/usr/local/bin/bento", f"{ROOT}/checks/fixture:/fixture", f"{HERE}/bootctl:/usr/local/bin/bootctl",
                      f"{HERE}/bootloader:/sbin/bootloader"]
        self.keys = {}
        for name in ("hub", "web", "admin", "other"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.work / name))
            self.keys[name] = (self.work / f"{name}.pub").read_text().strip()
        self.modules = {
            "web": {"configuration.nix": WEB.replace("@hub@", self.keys["hub"]).replace("@admin@", self.keys["admin"]), "change.nix": NOTHING,
                    "agent.nix": (ROOT / "modules/agent.nix").read_text()},
            "hub": {"configuration.nix": HUB.replace("@web@", self.keys["web"]), "hub.nix": (ROOT / "modules/hub.nix").read_text()},
        }
        self.hub, self.web = self.machine("hub"), self.machine("web")

    def machine(self, name):
        """A machine on whose disk its first system is installed."""
        layer = self.work / "layers" / name
        for folder in ("upper", "scratch", "root"):
            (layer / folder).mkdir(parents=True)
        root = layer / "root"
        run("mount", "-t", "overlay", "overlay", "-o",
            f"lowerdir={self.base},upperdir={layer}/upper,workdir={layer}/scratch", str(root))
        for path in ("usr/local/bin/bento", "usr/local/bin/bootctl", "sbin/bootloader"):
            (root / path).touch()
        (root / "fixture").mkdir()
        etc = root / "etc/nixos"
        etc.mkdir()
        for file, text in self.modules[name].items():
            (etc / file).write_text(text)
        for kind in ("", ".pub"):
            key = root / f"etc/ssh/ssh_host_ed25519_key{kind}"
            shutil.copy(self.work / f"{name}{kind}", key)
            key.chmod(0o644 if kind else 0o600)
        script = """
            set -e
            export NIX_REMOTE=local NIX_CONFIG='sandbox = false
            substituters =
            build-users-group ='
            system=$(nix-build --no-out-link -I nixpkgs=/fixture -E \
              '(import <nixpkgs/nixos> { configuration = /etc/nixos/configuration.nix; }).config.system.build.toplevel')
            nix-env --profile /nix/var/nix/profiles/system --set "$system"
            "$system/bin/switch-to-configuration" boot
        """
        run("systemd-nspawn", "--quiet", f"--directory={root}", "--register=no", "--keep-unit", "--private-network",
            "--resolv-conf=off", "--timezone=off", "--console=pipe", *[f"--bind-ro={bind}" for bind in self.binds],
            "/bin/sh", "-c", script, stdin=subprocess.DEVNULL)
        run("umount", str(root))
        return Machine(name, [layer / "upper", self.base], self.work / "machines", self.binds)

    def fresh(self):
        """Both as they were at first, and the host up to date."""
        for machine in (self.hub, self.web):
            machine.reset()
            machine.start(wait=False)
        for machine in (self.hub, self.web):
            machine.connect()
        self.hub.write("/fleet/config.sh", "CHROOT_DIR=/home/chroot\nSIGNING_KEY=/root/admin\nNOLOCALBUILD=1\n")
        self.hub.write("/root/admin", (self.work / "admin").read_text())
        self.hub.write("/root/admin.pub", self.keys["admin"] + "\n")
        self.hub.succeed("chmod 600 /root/admin")
        for file, text in self.modules["web"].items():
            self.hub.write(f"/fleet/hosts/web/{file}", text)
        self.deploy()
        self.hub.wait_for_open_port(22)
        # the host may have begun by itself
        try:
            self.web.wait_until_succeeds("systemctl start bento-upgrade", 30)
        except Failure as error:
            more = self.web.execute("systemctl --failed; ip address; systemctl status --no-pager network-addresses-host0; "
                                    "journalctl -b --no-pager -u network-addresses-host0 -u bento-upgrade | tail -n 30")[1]
            raise Failure(f"{error}\n{more}") from error
        # and begins again only when the scenario says so, until the next boot
        self.web.succeed("systemctl stop bento-boot.timer")
        self.web.wait_until_succeeds("test $(systemctl show -p ActiveState --value bento-upgrade) != activating", 60)
        self.expect("up-to-date")
        self.first = self.running()

    def deploy(self):
        return self.hub.succeed("cd /fleet && bento deploy 2>&1")

    def publish(self, text):
        """Publishes a changed configuration."""
        self.hub.write("/fleet/hosts/web/change.nix", text)
        self.deploy()

    def poll(self, works=True, timeout=120):
        """Has the host ask the hub, and waits for the end of that."""
        status, output = self.web.execute("systemctl start bento-upgrade.service", timeout)
        if works is not None and (status == 0) != works:
            raise Failure(f"the agent's run ended with {status}: {output}\n{self.journal()}")

    def journal(self):
        return self.web.execute("journalctl -u bento-upgrade -u bento-watchdog -u bento-activation -n 60 --no-pager -o cat")[1]

    def status(self):
        found = json.loads(self.hub.succeed("cd /fleet && bento status --json 2> /dev/null"))
        return next(host for host in found if host["machine"] == "web")

    def reports(self):
        """What the host has reported, in order."""
        text = self.hub.succeed("cd /home/chroot/web/logs && for file in $(ls -v report-*.json); do cat $file; done")
        decoder, found = json.JSONDecoder(), []
        while text.strip():
            text = text.lstrip()
            report, end = decoder.raw_decode(text)
            found.append(report)
            text = text[end:]
        return found

    def running(self):
        return self.web.succeed("readlink /run/current-system").strip()

    def boots(self):
        """The system of the boot entry."""
        text = self.web.succeed("cat /boot/loader/entries/$(sed -n 's/^default //p' /boot/loader/loader.conf)")
        return re.search(r"init=(\S+)/init", text).group(1)

    def profile(self):
        return self.web.succeed("readlink -f /nix/var/nix/profiles/system").strip()

    def phase(self):
        return json.loads(self.web.succeed("cat /var/lib/bento/state.json"))["phase"]["state"]

    # --- what is asserted

    def expect(self, state, timeout=0):
        """The hub shows the host in this state."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            if status["state"] == state:
                return status
            if time.monotonic() >= deadline:
                raise Failure(f"the state is {status['state']} instead of {state}: {status}\n{self.journal()}")
            time.sleep(0.3)

    def expect_first(self, reason=None):
        """The host runs, and boots, what it did at first; and has said why."""
        for what, system in (("runs", self.running()), ("boots", self.boots()), ("has the profile", self.profile())):
            if system != self.first:
                raise Failure(f"the host {what} {system} instead of {self.first}\n{self.journal()}")
        if reason and not re.search(reason, self.reports()[-1].get("reason") or ""):
            raise Failure(f"the reason {self.reports()[-1].get('reason')!r} says nothing of {reason!r}")
        self.expect_quiet()

    def expect_new(self):
        """The host runs, and boots, something else than at first."""
        new = self.running()
        if new == self.first or self.boots() != new or self.profile() != new:
            raise Failure(f"runs {new}, boots {self.boots()}, profile {self.profile()}\n{self.journal()}")
        self.expect_quiet()
        return new

    def expect_quiet(self):
        """Nothing of the attempt is left: no watchdog, no activation, no report in the outbox."""
        self.web.wait_until_succeeds("! systemctl is-active --quiet bento-watchdog.timer", 20)
        self.web.fail("systemctl is-active --quiet bento-activation.service")
        self.web.wait_until_succeeds("test -z \"$(ls /var/lib/bento/outbox)\"", 20)


def write_book(rows):
    """The table of outcomes, with the rows of the scenarios that were run in the place of their last ones."""
    heading = "| what happens | `bento status` says | the host's reason, or what was counted |\n|---|---|---|\n"
    head, _, table = BOOK.read_text().partition(heading)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()}
    for name, state, reason, note in rows:
        # paths differ from run to run
        reason = re.sub(r"/nix/store/[a-z0-9]{32}-", "…-", reason).replace("|", "\\|").replace("\n", " ")
        said = "; ".join(part for part in (reason, note) if part)
        lines[name] = f"| {name} | {state.replace('-', ' ')} | {said} |"
    BOOK.write_text(head + heading + "".join(lines[name] + "\n" for name, _ in SCENARIOS if name in lines))


SCENARIOS = []


def scenario(name):
    def add(function):
        SCENARIOS.append((name, function))
        return function
    return add


def bento():
    import os
    return os.environ["BENTO"]


@scenario("update")
def update(lab):
    lab.publish(change('environment.etc."motd".text = "hello";'))
    lab.expect("rebuild-pending")
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()
    assert lab.web.succeed("cat /etc/motd") == "hello"


@scenario("no change")
def no_change(lab):
    before = lab.reports()
    lab.deploy()
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_first()
    assert lab.reports() == before


@scenario("broken evaluation")
def broken_evaluation(lab):
    lab.hub.write("/fleet/hosts/web/change.nix", change("environment.nonsense = true;"))
    lab.hub.fail("cd /fleet && bento deploy")
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_first()


@scenario("broken build")
def broken_build(lab):
    lab.publish(change('system.extraSystemBuilderCmds = "echo no luck; exit 3";'))
    lab.poll(works=False)
    lab.expect("failing")
    lab.expect_first("the build failed")


@scenario("unit that fails")
def failing_unit(lab):
    lab.publish(change('systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "exit 1"; serviceConfig.Type = "oneshot"; };'))
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first(r"units failed: bad\.service")


@scenario("unit that fails a little later")
def unit_that_fails_later(lab):
    lab.publish(change('systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "sleep 1; exit 1"; };'))
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first(r"units failed: bad\.service")


@scenario("unit that failed before")
def unit_that_failed_before(lab):
    lab.web.write("/run/systemd/system/sick.service", "[Service]\nExecStart=/bin/false\n")
    lab.web.execute("systemctl daemon-reload; systemctl start sick; sleep 0.3")
    lab.web.succeed("systemctl is-failed sick")
    lab.publish(change('environment.etc."motd".text = "hello";'))
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()
    assert lab.reports()[-1]["failed_units"] == ["sick.service"]


@scenario("unit that hangs")
def hanging_unit(lab):
    lab.publish(change('systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "sleep infinity"; serviceConfig.Type = "oneshot"; };'))
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first("did not end within 10 s")


@scenario("network removed by the new configuration")
def no_network(lab):
    lab.publish(change("networking.interfaces.host0.ipv4.addresses = [ ];"))
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first("the hub could not be reached")


@scenario("sshd and firewall closed")
def closed(lab):
    lab.publish(change("services.openssh.enable = false; networking.nftables.enable = true; networking.firewall.enable = true;"))
    lab.poll()
    # nobody gets in any more, but the agent gets out
    lab.expect("up-to-date")
    lab.expect_new()
    lab.hub.fail("nc -z -w 2 192.168.1.11 22")


@scenario("agent removed by the new configuration")
def no_agent(lab):
    lab.publish(change("services.bento.agent.enable = false;"))
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first("no sound configuration for the agent")


@scenario("the system's own check is against it")
def safety_check(lab):
    lab.publish(change("""system.extraSystemBuilderCmds = "printf '#!/bin/sh\\necho not on a Sunday; exit 1\\n' > $out/pre-activate-safety-checks; chmod 755 $out/pre-activate-safety-checks";"""))
    lab.poll(works=False)
    lab.expect("failing")
    lab.expect_first("the system's own check is against activating it")


@scenario("user's checks")
def user_checks(lab):
    checks = """services.bento.agent.settings.confirm.checks = [
      { name = "page"; http = "http://127.0.0.1:8080/"; tries = 2; pause = 1; timeout = 2; }
    ];"""
    # they count from the next release on: those of the running configuration judge a new one
    serve = """systemd.services.page = { wantedBy = [ "multi-user.target" ]; serviceConfig.Restart = "always";
      script = "printf 'HTTP/1.1 STATUS ok\\r\\nContent-Length: 0\\r\\n\\r\\n' | nc -l -N -p 8080"; serviceConfig.RestartSec = "0.1"; };
      systemd.services.page.unitConfig.StartLimitIntervalSec = 0;"""
    lab.publish(change(checks + serve.replace("STATUS", "200")))
    lab.poll()
    good = lab.expect_new()
    lab.publish(change(checks + serve.replace("STATUS", "500")))
    lab.poll(works=False)
    lab.expect("rollbacked")
    assert "the check page failed: http://127.0.0.1:8080/ answers with the status 500" in lab.reports()[-1]["reason"], lab.reports()[-1]
    assert lab.running() == good


@scenario("agent killed by the activation, for good")
def agent_killed_by_activation(lab):
    lab.publish(change("""
      system.activationScripts.kill = "systemctl kill --signal=KILL bento-upgrade.service || true; systemctl stop bento-upgrade.timer || true";
    """))
    lab.poll(works=False)
    # nobody starts it again but the watchdog
    lab.expect("rollbacked", 90)
    lab.expect_first("interrupted while it tried out")


@scenario("agent and network gone with the activation")
def agent_and_network_gone(lab):
    lab.publish(change("""
      services.bento.agent.enable = false;
      networking.interfaces.host0.ipv4.addresses = [ ];
      system.activationScripts.kill = "systemctl kill --signal=KILL bento-upgrade.service || true";
    """))
    lab.poll(works=False)
    lab.expect("rollbacked", 90)
    lab.expect_first("interrupted while it tried out")


@scenario("power cut while testing")
def power_cut(lab):
    lab.publish(change('systemd.services.slow = { wantedBy = [ "multi-user.target" ]; script = "sleep 5"; serviceConfig.Type = "oneshot"; };'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("systemctl is-active --quiet bento-activation.service && systemctl list-jobs | grep -q slow", 60)
    lab.web.crash()
    lab.web.start()
    lab.expect("rollbacked", 60)
    lab.expect_first("restarted by itself")


@scenario("hub down before")
def hub_down_before(lab):
    lab.publish(change('environment.etc."motd".text = "hello";'))
    lab.hub.succeed("systemctl stop sshd")
    lab.poll(works=False)
    lab.hub.succeed("systemctl start sshd")
    lab.hub.wait_for_open_port(22)
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("hub down when the system could be tried out")
def hub_down_at_check(lab):
    lab.publish(change('''system.extraSystemBuilderCmds = "while [ ! -e /tmp/go ]; do sleep 0.2; done";'''))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("grep -q nix-build /var/lib/bento/attempt.log", 30)
    lab.hub.succeed("systemctl stop sshd")
    lab.web.succeed("touch /tmp/go")
    lab.web.wait_until_succeeds("! systemctl is-active --quiet bento-upgrade && systemctl is-failed --quiet bento-upgrade", 60)
    assert lab.running() == lab.first
    lab.hub.succeed("systemctl start sshd")
    lab.hub.wait_for_open_port(22)
    # it waits a minute by itself
    lab.poll(works=False)
    lab.expect("failing")
    lab.web.succeed("bento agent run --now")
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("hub down while testing")
def hub_down_during(lab):
    lab.publish(change('systemd.services.slow = { wantedBy = [ "multi-user.target" ]; script = "sleep 3"; serviceConfig.Type = "oneshot"; };'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("systemctl is-active --quiet bento-activation.service", 60)
    lab.hub.block()
    lab.web.wait_until_succeeds("systemctl is-failed --quiet bento-upgrade", 90)
    assert lab.running() == lab.first
    lab.hub.unblock()
    lab.web.succeed("bento agent run --now")
    # the release was not at fault, and is taken up
    lab.expect("up-to-date")
    lab.expect_new()
    assert [report["outcome"] for report in lab.reports()] == ["success", "rollback", "success"], lab.reports()


@scenario("hub down after")
def hub_down_after(lab):
    lab.publish(change('systemd.services.slow = { wantedBy = [ "multi-user.target" ]; script = "true"; };'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("grep -q 'the hub can be reached' /var/lib/bento/attempt.log && systemctl is-active --quiet slow || systemctl cat slow", 60)
    lab.web.wait_until_succeeds("grep -c 'the hub can be reached' /var/lib/bento/attempt.log | grep -q 2", 60)
    lab.hub.succeed("systemctl stop sshd")
    lab.web.wait_until_succeeds("systemctl is-failed --quiet bento-upgrade", 60)
    assert lab.running() != lab.first
    lab.expect("rebuild-pending")
    lab.hub.succeed("systemctl start sshd")
    lab.hub.wait_for_open_port(22)
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("wrong key")
def wrong_key(lab):
    lab.publish(change('services.bento.agent.hub.hostKeys = lib.mkForce [ "%s" ];' % lab.keys["other"]))
    # the running agent knows the right one, but no later run would
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first("the hub could not be reached")


@scenario("tampered file")
def tampered(lab):
    lab.publish(change('environment.etc."motd".text = "hello";'))
    lab.hub.succeed("sed -i s/hello/hullo/ /home/chroot/web/releases/2/change.nix")
    lab.poll(works=False)
    lab.expect("failing")
    lab.expect_first("its BLAKE3 hash is not the manifest's")


@scenario("two triggers at once")
def two_at_once(lab):
    lab.publish(change('systemd.services.slow = { wantedBy = [ "multi-user.target" ]; script = "sleep 2"; serviceConfig.Type = "oneshot"; };'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("systemctl is-active --quiet bento-activation.service", 60)
    assert "another run of the agent is at work" in lab.web.fail("bento agent run")
    lab.web.wait_until_succeeds("test $(systemctl show -p ActiveState --value bento-upgrade) = inactive", 60)
    lab.expect("up-to-date")
    lab.expect_new()
    assert len(lab.reports()) == 2


@scenario("secrets, and a power cut")
def secrets(lab):
    lab.hub.succeed("rm /fleet/config.sh")
    lab.hub.write("/fleet/bento.toml", '[hub]\ndirectory = "/home/chroot"\n[release]\nsigning-key = "/root/admin"\n'
                  f'[build]\nlocal = false\n[hosts.web]\nkeys = [ "{lab.keys["web"]}" ]\n')
    lab.hub.write("/fleet/hosts/web/secrets/password", "sesame\n")
    lab.hub.write("/fleet/hosts/web/secrets/secrets.toml", '[password]\nowner = "reader"\n')
    # the same system brings the secret's owner, and a service that can't do without
    lab.publish(change("""users.users.reader = { isSystemUser = true; group = "reader"; };
        users.groups.reader = { };
        systemd.services.reader = {
          wantedBy = [ "multi-user.target" ];
          serviceConfig = { Type = "oneshot"; RemainAfterExit = true; User = "reader"; };
          script = "grep -q ^ses /run/bento/secrets/password";
        };"""))
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()
    there = "systemctl is-active reader && test \"$(stat -c '%U %a' /run/bento/secrets/password)\" = 'reader 400'"
    lab.web.succeed(there)
    lab.web.crash()
    lab.web.start()
    lab.web.wait_until_succeeds(there, 60)
    lab.web.succeed("systemctl is-active bento-secrets")
    lab.web.fail("grep -rq sesame /var/lib/bento /nix/store")
    lab.hub.fail("grep -rq sesame /home/chroot")


@scenario("kernel change, restarted by somebody")
def kernel_change(lab):
    lab.publish(change('boot.kernelPackages = pkgs.linuxPackages_latest;'))
    lab.poll()
    assert lab.phase() == "waiting" and lab.boots() == lab.first and lab.profile() == lab.running()
    assert lab.reports()[-1]["stage"] == "reboot"
    lab.web.reboot()
    lab.web.wait_until_succeeds("grep -q reported /var/lib/bento/state.json", 60)
    lab.expect("up-to-date", 30)
    lab.expect_new()
    stages = [report["stage"] for report in lab.reports()]
    assert stages == ["done", "reboot", "done"], stages


@scenario("kernel change, restarted by itself")
def kernel_reboot(lab):
    lab.hub.succeed("touch /fleet/hosts/web/REBOOT")
    boot = lab.web.boot_id()
    lab.publish(change('boot.kernelPackages = pkgs.linuxPackages_latest;'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_for_reboot(boot)
    lab.web.wait_until_succeeds("grep -q reported /var/lib/bento/state.json", 60)
    lab.expect("up-to-date", 30)
    lab.expect_new()
    stages = [report["stage"] for report in lab.reports()]
    assert stages == ["done", "reboot", "done"], stages


@scenario("a kernel that panics")
def panic(lab):
    lab.hub.succeed("touch /fleet/hosts/web/REBOOT")
    boot = lab.web.boot_id()
    lab.publish(change('boot.kernelPackages = pkgs.linuxPackages_latest; boot.kernelParams = [ "panic" ];'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_for_reboot(boot)
    lab.expect("rollbacked", 60)
    lab.expect_first("did not come up for good")


@scenario("a system that loses the hub when it is booted")
def deaf_when_booted(lab):
    lab.hub.succeed("touch /fleet/hosts/web/REBOOT")
    boot = lab.web.boot_id()
    # works as long as nobody restarts
    lab.publish(change("""
      boot.kernelPackages = pkgs.linuxPackages_latest;
      systemd.services.deaf = { wantedBy = [ "multi-user.target" ]; after = [ "network-addresses-host0.service" ];
        unitConfig.ConditionPathExists = "!/run/bento-was-here"; script = "ip address flush dev host0"; serviceConfig.Type = "oneshot"; };
      system.activationScripts.here = "[ ! -d /run/systemd/system ] || touch /run/bento-was-here";
    """))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_for_reboot(boot)
    lab.expect("rollbacked", 120)
    lab.expect_first("booted, it does not work")


@scenario("rollback target garbage-collected")
def collected(lab):
    lab.publish(change("""system.activationScripts.collect = "nix-store --gc > /dev/null 2>&1 || true; nix-env -p /nix/var/nix/profiles/system --delete-generations old || true; nix-store --gc > /dev/null";
      systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "exit 1"; serviceConfig.Type = "oneshot"; };"""))
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first("units failed")


@scenario("cut transfer, at every tenth of it")
def cut_transfer(lab):
    files = "".join(f'environment.etc."part{n}".text = "{str(n) * 4000}";\n' for n in range(10))
    lab.publish(change(files))
    serial = lab.status()["serial"]
    # the whole of it, counted without being taken up: the host holds the lock of its own agent
    lab.hub.succeed("nft 'table inet cut { counter sent { }; chain output { type filter hook output priority 0; tcp sport 22 counter name sent; }; }'")
    size = int(lab.hub.succeed("du -sb /home/chroot/web/releases/%d | cut -f1" % serial)) + 12000
    for tenth in range(10):
        lab.hub.succeed("nft delete table inet cut; nft 'table inet cut { chain output { type filter hook output priority 0; "
                        f"tcp sport 22 quota over {size * tenth // 10} bytes drop; }}; }}'")
        lab.poll(works=False)
        if lab.running() != lab.first:
            raise Failure(f"took up a part, cut after {tenth} tenths")
    lab.hub.succeed("nft delete table inet cut")
    lab.web.succeed("bento agent run --now")
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("release replaced while testing")
def replaced(lab):
    slow = 'systemd.services.slow = { wantedBy = [ "multi-user.target" ]; script = "sleep 3"; serviceConfig.Type = "oneshot"; };'
    lab.publish(change(slow))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("systemctl is-active --quiet bento-activation.service", 60)
    lab.publish(change('environment.etc."motd".text = "the third";'))
    lab.web.wait_until_succeeds("test $(systemctl show -p ActiveState --value bento-upgrade) = inactive", 60)
    lab.expect("rebuild-pending")
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()
    assert [(report["serial"], report["outcome"]) for report in lab.reports()] == [(1, "success"), (2, "success"), (3, "success")]


@scenario("agent updated by its own activation")
def agent_updated(lab):
    lab.publish(change("""services.bento.agent.package = pkgs.writeScriptBin "bento" "#!/bin/sh\\nBENTO_NEW=1 exec /usr/local/bin/bento \\"$@\\"\\n";"""))
    lab.poll()
    lab.expect("up-to-date")
    new = lab.expect_new()
    assert len(lab.reports()) == 2
    # the run was the old program's to its end, the next one is the new one's
    text = lab.web.succeed("cat $(systemctl show -p ExecStart --value bento-upgrade | grep -o '/nix/store[^ ;]*bento' | head -n 1)")
    assert "BENTO_NEW" in text, text
    lab.poll()
    assert lab.running() == new


@scenario("clock wrong by a year")
def clock(lab):
    library = lab.web.succeed("ls /usr/lib/*/faketime/libfaketime.so.1").strip()
    for number, offset in enumerate(("+365d", "-365d")):
        lab.web.write("/run/systemd/system/bento-upgrade.service.d/clock.conf",
                      f'[Service]\nEnvironment=LD_PRELOAD={library} FAKETIME={offset} FAKETIME_DONT_FAKE_MONOTONIC=1\n')
        lab.web.succeed("systemctl daemon-reload")
        lab.publish(change(f'environment.etc."motd".text = "{number}";'))
        lab.poll()
        status = lab.expect("up-to-date")
        assert lab.web.succeed("cat /etc/motd") == str(number)
        year = time.strftime("%Y")
        # the hub believes the host only as far as its own clock allows
        assert status["reported"][:4] <= year, status
    lab.expect_new()


@scenario("disk full: download")
def disk_full_download(lab):
    lab.publish(change("".join(f'environment.etc."part{n}".text = "{str(n) * 30000}";\n' for n in range(10))))
    small_disk(lab, "700k")
    lab.web.execute("dd if=/dev/zero of=/var/lib/bento/fill bs=1k count=150 2>/dev/null")
    lab.poll(works=False)
    assert lab.running() == lab.first
    large_disk(lab)
    lab.web.succeed("bento agent run --now")
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("disk full: build")
def disk_full_build(lab):
    lab.publish(change("""system.extraSystemBuilderCmds = "dd if=/dev/zero of=$TMPDIR/large bs=1k count=3000";"""))
    lab.web.succeed("mount -t tmpfs -o size=2m tmpfs /tmp")
    lab.poll(works=False)
    assert lab.running() == lab.first
    lab.expect("failing")
    lab.web.succeed("umount /tmp")
    # it is no fault of the release's: it is tried again
    lab.web.succeed("bento agent run --now")
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("disk full: journal and report")
def disk_full_journal(lab):
    lab.publish(change("""system.activationScripts.fill = "dd if=/dev/zero of=/var/lib/bento/fill bs=1k count=20000 2> /dev/null || true";"""))
    small_disk(lab, "4m")
    lab.poll(works=None)
    large_disk(lab)
    lab.web.succeed("bento agent run --now || true")
    status = lab.status()
    assert status["reported_serial"] == 2, status
    if status["state"] == "up-to-date":
        lab.expect_new()
    else:
        lab.expect_first()


def small_disk(lab, size):
    lab.web.succeed(f"cp -a /var/lib/bento /root/b; mount -t tmpfs -o size={size} tmpfs /var/lib/bento; cp -a /root/b/. /var/lib/bento/")


def large_disk(lab):
    lab.web.succeed("rm -f /var/lib/bento/fill; mount -o remount,size=1g /var/lib/bento")


# what the agent does durably, and what the hub sees of it, happens with these system calls
STEPS = "rename,renameat,renameat2,fsync"


def interrupted(lab, number, signal):
    """Runs the agent, and sends it a signal at the step of this number; gives whether it got that far."""
    status, output = lab.web.execute(f"strace -qq -o /tmp/strace -e trace={STEPS} -e inject={STEPS}:signal={signal}:when={number} bento agent run --now", 120)
    return "killed by SIGKILL" in lab.web.execute("tail -n 1 /tmp/strace")[1] or status == 137, status, output


def expect_consistent(lab, serial):
    """The host runs, boots and reports one and the same, and has reported this release once."""
    system = lab.running()
    if not system == lab.boots() == lab.profile():
        raise Failure(f"runs {system}, boots {lab.boots()}, profile {lab.profile()}\n{lab.journal()}")
    lab.expect_quiet()
    reports = [report for report in lab.reports() if report["serial"] == serial]
    if len(reports) != 1 or reports[0]["running"] != system:
        raise Failure(f"{len(reports)} reports of release {serial}: {reports}")
    return reports[0]["outcome"]


@scenario("agent killed at every step")
def killed_everywhere(lab):
    outcomes = []
    for number in range(1, 100):
        lab.publish(change(f'environment.etc."motd".text = "{number}";'))
        killed, status, output = interrupted(lab, number, "KILL")
        if not killed:
            if status != 0:
                raise Failure(f"step {number}: the agent ended with {status}: {output}")
            expect_consistent(lab, lab.status()["serial"])
            break
        # the next run, which the timer would start
        lab.web.execute("bento agent run --now")
        outcomes.append(expect_consistent(lab, lab.status()["serial"]))
    else:
        raise Failure("there is no end of steps")
    if set(outcomes) != {"success", "rollback"}:
        raise Failure(f"it was not killed in all of its states: {outcomes}")
    return f"{len(outcomes)} steps: {outcomes.count('success')} ended in the new system, {outcomes.count('rollback')} in the old one"


@scenario("power cut at every step")
def cut_everywhere(lab):
    outcomes = []
    for number in range(1, 100):
        lab.publish(change(f'environment.etc."motd".text = "{number}";'))
        killed, status, output = interrupted(lab, number, "KILL")
        if not killed:
            if status != 0:
                raise Failure(f"step {number}: the agent ended with {status}: {output}")
            break
        lab.web.crash()
        lab.web.start()
        # nobody starts the agent but its timer
        lab.web.wait_until_succeeds("test -n \"$(systemctl show -p ExecMainExitTimestamp --value bento-upgrade)\"", 30)
        lab.web.wait_until_succeeds("! systemctl is-active --quiet bento-upgrade && test $(systemctl show -p ActiveState --value bento-upgrade) != activating", 60)
        # that may have been too early for the network
        lab.poll(works=None)
        outcomes.append(expect_consistent(lab, lab.status()["serial"]))
    else:
        raise Failure("there is no end of steps")
    if set(outcomes) != {"success", "rollback"}:
        raise Failure(f"the power was not cut in all of its states: {outcomes}")
    return f"{len(outcomes)} steps: {outcomes.count('success')} ended in the new system, {outcomes.count('rollback')} in the old one"


@scenario("what a poll costs")
def costs(lab):
    lab.hub.succeed("nft 'table inet count { counter sent { }; counter got { }; chain output { type filter hook output priority 0; tcp sport 22 counter name sent; }; "
                    "chain input { type filter hook input priority 0; tcp dport 22 counter name got; }; }'")
    lab.web.succeed("/usr/bin/time -o /tmp/time -f %M bento agent run")
    counters = json.loads(lab.hub.succeed("nft -j list counters"))["nftables"]
    counted = {found["counter"]["name"]: found["counter"]["bytes"] for found in counters if "counter" in found}
    resident = int(lab.web.succeed("cat /tmp/time"))
    if resident > 64 << 10 or counted["sent"] > 6000 or counted["got"] > 6000:
        raise Failure(f"a poll takes {resident} KiB of memory and {counted} bytes")
    return f"{resident / 1024:.0f} MiB of memory, {counted['sent']} bytes from the hub, {counted['got']} to it"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--book", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    known = [name for name, _ in SCENARIOS]
    unknown = [name for name in arguments.names if not any(name in other for other in known)]
    if unknown:
        sys.exit(f"no scenario of this name: {', '.join(unknown)}; there are: {', '.join(known)}")
    begin = time.monotonic()
    lab = Lab(arguments.base, arguments.work)
    print(f"two machines are installed ({time.monotonic() - begin:.0f} s)", flush=True)
    failed, rows = 0, []
    for name, function in SCENARIOS:
        if arguments.names and not any(given in name for given in arguments.names):
            continue
        start = time.monotonic()
        try:
            lab.fresh()
            note = function(lab)
            status = lab.status()
            rows.append((name, status["state"], status["reason"] or "", note or ""))
            print(f"ok: {name} ({time.monotonic() - start:.1f} s): {status['state']}" + (f"; {note}" if note else ""), flush=True)
        # whatever it is, the others are run too
        except Exception as error:
            failed += 1
            print(f"FAILED: {name} ({time.monotonic() - start:.1f} s): {error}", flush=True)
            if not isinstance(error, Failure):
                traceback.print_exc()
    for machine in (lab.hub, lab.web):
        machine.crash()
    if arguments.book:
        write_book(rows)
    print(f"{len(rows)} passed, {failed} failed ({time.monotonic() - begin:.0f} s)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
