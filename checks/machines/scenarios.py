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
    timeout = 5;
    # nobody but the scenario starts it
    interval = "2040-01-01";
    settings = {
      nix.search-path = [ "nixpkgs=/fixture" ];
      confirm = { tries = 3; pause = 1; settle = 2; };
      system.activation-timeout = 15;
    };
  };
  # after a restart it goes on by itself
  systemd.timers.bento-upgrade.timerConfig.OnBootSec = lib.mkForce "2s";
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
        for name in ("hub", "web", "other"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.work / name))
            self.keys[name] = (self.work / f"{name}.pub").read_text().strip()
        self.modules = {
            "web": {"configuration.nix": WEB.replace("@hub@", self.keys["hub"]), "change.nix": NOTHING,
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
        self.hub.write("/fleet/config.sh", "CHROOT_DIR=/home/chroot\n")
        for file, text in self.modules["web"].items():
            self.hub.write(f"/fleet/hosts/web/{file}", text)
        self.deploy()
        self.hub.wait_for_open_port(22)
        # the host may have begun by itself
        self.web.wait_until_succeeds("systemctl start bento-upgrade", 30)
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
        left = self.web.succeed("ls /var/lib/bento/outbox")
        if left:
            raise Failure(f"undelivered: {left}")


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
    lab.expect_first("did not end within 15 s")


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
    lab.expect_first("would not ask the hub again")


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
            print(f"ok: {name} ({time.monotonic() - start:.1f} s): {status['state']}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAILED: {name} ({time.monotonic() - start:.1f} s): {error}", flush=True)
            if not isinstance(error, Failure):
                traceback.print_exc()
    for machine in (lab.hub, lab.web):
        machine.crash()
    print(f"{len(rows)} passed, {failed} failed ({time.monotonic() - begin:.0f} s)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
