"""Everything that can happen to a host, each on a real systemd with a real hub: see `run`.

A scenario begins with a host that is up to date and ends when the host has reported; what it shows is asserted, and goes into
the table in docs/src/scenarios.md.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import time
from pathlib import Path

import emulated
import hub  # noqa: F401, its scenarios are run too
import shared
from driver import SLOWNESS, Container, make_network, options, overlay, perform, run, write_row
from emulated import Emulated
from fleet import SCENARIOS, Failure, Fleet, scenario

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

HOST = """
{ lib, ... }:
{
  imports = [ ./agent.nix ./machine.nix ./change.nix ];
  networking.hostName = "@name@";
  networking.interfaces.host0.ipv4.addresses = lib.mkDefault [ { address = "@address@"; prefixLength = 24; } ];
  services.openssh.enable = lib.mkDefault true;
  nix.settings = { sandbox = false; substituters = ""; build-users-group = ""; };
  services.bento.agent = {
    enable = lib.mkDefault true;
    hub = { address = lib.mkDefault "192.168.1.1"; hostKeys = lib.mkDefault [ "@hub@" ]; };
    timeout = @patience@;
    signers = [ "@admin@" ];
    # nobody but the scenario starts it
    interval = "2040-01-01";
    # but after a restart it goes on by itself
    bootDelay = "3s";
    settings = {
      nix.search-path = [ "nixpkgs=/fixture" ];
      confirm = { tries = 2; pause = 1; settle = 2; margin = 5; };
      system.activation-timeout = @limit@;
    };
  };
}
"""
HUB = """
{
  imports = [ ./hub.nix ./change.nix ];
  networking.hostName = "hub";
  networking.interfaces.host0.ipv4.addresses = [ { address = "192.168.1.1"; prefixLength = 24; } ];
  services.openssh.enable = true;
  services.openssh.settings = { PasswordAuthentication = false; MaxStartups = "200"; };
  services.bento.hub = { enable = true; hosts.web.keys = [ "@web@" ]; };
  nix.settings = { sandbox = false; substituters = ""; build-users-group = ""; };
}
"""
NOTHING = "{ }\n"
# makes what is in /etc/nixos the system of a machine
INSTALL = """
    system=$(nix-build --no-out-link -I nixpkgs=/fixture -E \\
      '(import <nixpkgs/nixos> { configuration = /etc/nixos/configuration.nix; }).config.system.build.toplevel')
    nix-env --profile /nix/var/nix/profiles/system --set "$system"
    "$system/bin/switch-to-configuration" boot
"""
# a unit that fails
BAD = 'systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "exit 1"; serviceConfig.Type = "oneshot"; };'


def change(text):
    """A change of the host's configuration."""
    return "{ lib, pkgs, ... }:\n{\n" + text + "\n}\n"


class Lab(Fleet):
    """A hub, and hosts, of the fixture distribution."""

    slowness = SLOWNESS

    def __init__(self, base, packages, work):
        self.base, self.packages, self.work = Path(base), Path(packages), Path(work)
        run("mount", "-t", "tmpfs", "-o", "size=8g,mode=755", "bento-lab", str(self.work))
        make_network()
        (self.work / "machines").mkdir()
        self.binds = [f"{bento()}:/usr/local/bin/bento", f"{ROOT}/checks/fixture:/fixture", f"{HERE}/bootctl:/usr/local/bin/bootctl",
                      f"{HERE}/bootloader:/sbin/bootloader"]
        self.keys = {}
        for name in ("hub", "web", "admin", "other"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.work / name))
            self.keys[name] = (self.work / f"{name}.pub").read_text().strip()
        self.modules = {
            "web": self.configuration("web", "192.168.1.11"),
            "hub": {"configuration.nix": HUB.replace("@web@", self.keys["web"]), "change.nix": NOTHING,
                    "hub.nix": (ROOT / "modules/hub.nix").read_text()},
        }
        self.first_hub = self.hub = self.machine("hub")
        self.web = self.machine("web")
        self.kinds = {"container": (self.web, self.modules["web"])}
        # of each kind of emulated machines: the hub, and the system that the host began with
        self.frozen = {}

    @property
    def machines(self):
        return {"hub": self.hub, "web": self.web}

    def journals(self):
        return self.journal()

    def configuration(self, name, address, change=NOTHING, machine=NOTHING):
        """The files of a host's configuration: `machine` is about what it runs on, `change` is what scenarios change."""
        text = HOST
        for place, value in (("name", name), ("address", address), ("hub", self.keys["hub"]), ("admin", self.keys["admin"]),
                            ("limit", f"{10 * SLOWNESS:.0f}"), ("patience", f"{2 * SLOWNESS:.0f}")):
            text = text.replace(f"@{place}@", value)
        return {"configuration.nix": text, "change.nix": change, "machine.nix": machine,
                "changes.nix": (HERE / "changes.nix").read_text(), "agent.nix": (ROOT / "modules/agent.nix").read_text()}

    def layer(self, name, etc, script, lowers=None, finish=None):
        """Files over the base's: those below /etc/nixos, and what a script makes that runs among them. Gives the folder, and
        what the script prints. `finish` is called with the whole tree."""
        layer = self.work / "layers" / name
        root = overlay(layer, lowers or [self.base])
        for path in ("usr/local/bin/bento", "usr/local/bin/bootctl", "sbin/bootloader"):
            (root / path).touch()
        (root / "fixture").mkdir()
        for file, text in etc.items():
            path = root / "etc/nixos" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        script = f"""
            set -e
            export NIX_REMOTE=local NIX_CONFIG='sandbox = false
            substituters =
            build-users-group ='
            {script}
        """
        said = run("systemd-nspawn", "--quiet", f"--directory={root}", "--register=no", "--keep-unit", "--private-network",
                   "--resolv-conf=off", "--timezone=off", "--console=pipe", *[f"--bind-ro={bind}" for bind in self.binds],
                   "/bin/sh", "-c", script, stdin=subprocess.DEVNULL)
        if finish:
            finish(root)
        run("umount", str(root))
        return layer / "upper", said

    def machine(self, name):
        """A machine on whose disk its first system is installed."""
        layer, _ = self.layer(name, self.modules[name], INSTALL)
        put_key(layer, self.work / name)
        return Container(name, [layer, self.base], self.work / "machines", self.binds)

    def emulated(self, loader):
        """The host on a machine with firmware and this boot loader."""
        if loader not in self.kinds:
            enable = {"systemd-boot": "boot.loader.systemd-boot = { enable = true; bootCounting = { enable = true; tries = 3; }; };",
                      "grub": "boot.loader.grub.enable = true;"}[loader]
            about = f"{{\n  imports = [ ./emulated.nix ];\n  {enable}\n}}\n"
            files = self.configuration("web", "192.168.1.11", machine=about) | {"emulated.nix": (HERE / "emulated.nix").read_text()}
            folder, disk = self.work / "layers" / f"web-{loader}", self.work / f"{loader}.disk"
            kernel = self.work / "kernel"
            if not kernel.exists():
                emulated.make_kernel(self.packages, kernel / "machine")

            def finish(root):
                put_key(root, self.work / "web")
                shutil.copy(bento(), root / "usr/local/bin/bento")
                shutil.copytree(ROOT / "checks/fixture", root / "fixture", dirs_exist_ok=True)
                for name in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/modules", "usr/local/bin/bootctl"):
                    path = root / name
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                emulated.make_disk(disk, root, self.packages, loader)

            self.layer(folder.name, files, INSTALL, [kernel, self.packages, self.base], finish)
            shutil.rmtree(folder, ignore_errors=True)
            self.kinds[loader] = Emulated("web", disk, self.work / "emulated"), files
        return self.kinds[loader]

    def fresh(self, kind):
        """Both as they were at first, and the host up to date; it is a container or another kind of machine."""
        # there is one host, whatever it runs on, and one hub
        for machine in (self.hub, self.web):
            machine.crash()
        self.web, files = self.kinds["container"] if kind == "container" else self.emulated(kind)
        self.patience = self.web.patience
        if kind != "container":
            if kind not in self.frozen:
                self.hub = self.first_hub
                self.begin(files)
                self.freeze(kind)
            self.thaw(kind)
        else:
            self.hub = self.first_hub
            self.begin(files)

    def begin(self, files):
        """Both are installed, and the host brought up to date."""
        for machine in (self.hub, self.web):
            machine.reset()
            machine.start(wait=False)
        for machine in (self.hub, self.web):
            machine.connect()
        self.hub.write("/fleet/config.sh", "CHROOT_DIR=/home/chroot\nSIGNING_KEY=/root/admin\nNOLOCALBUILD=1\n")
        self.hub.write("/root/admin", (self.work / "admin").read_text())
        self.hub.write("/root/admin.pub", self.keys["admin"] + "\n")
        self.hub.succeed("chmod 600 /root/admin")
        for file, text in files.items():
            self.hub.write(f"/fleet/hosts/web/{file}", text)
        self.deploy()
        self.hub.wait_for_open_port(22)
        # the host may have begun by itself
        try:
            self.web.wait_until_succeeds("systemctl start bento-upgrade", self.patience)
        except Failure as error:
            more = self.web.execute("systemctl --failed; ip address; systemctl status --no-pager network-addresses-host0; "
                                    "journalctl -b --no-pager -u network-addresses-host0 -u bento-upgrade | tail -n 30")[1]
            raise Failure(f"{error}\n{more}") from error
        # and begins again only when the scenario says so, until the next boot
        self.web.succeed("systemctl stop bento-boot.timer")
        self.web.wait_until_succeeds("test $(systemctl show -p ActiveState --value bento-upgrade) != activating", 60)
        self.expect("up-to-date")
        self.first = self.running()

    def freeze(self, kind):
        """Keeps an emulated host as it is now, with its hub: it takes long to get there."""
        self.web.freeze(self.work / "frozen" / kind / "web")
        self.hub.shutdown()
        disk = self.work / "frozen" / kind / "hub"
        shutil.move(self.hub.work / "upper", disk)
        self.frozen[kind] = Container("hub", [disk, *self.hub.lowers], self.work / "machines", self.binds), self.first

    def thaw(self, kind):
        """Makes both what they were when they were frozen."""
        self.hub, self.first = self.frozen[kind]
        self.hub.reset()
        self.web.thaw(self.work / "frozen" / kind / "web")
        for machine in (self.hub, self.web):
            machine.start()
        # its clock stood still
        self.web.succeed(f"date --set=@{time.time():.3f}")
        self.hub.wait_for_open_port(22)

    def publish(self, text):
        """Publishes the host's configuration with a change, which is the text of a module."""
        self.hub.write("/fleet/hosts/web/change.nix", text)
        self.deploy()

    def publish_change(self, name):
        self.publish(f'(import ./changes.nix {{ interface = "host0"; }}).{name}\n')

    def wait_for_restart(self, boot):
        self.web.wait_for_reboot(boot)


def put_key(root, key):
    """Makes a key a machine's own."""
    (root / "etc/ssh").mkdir(parents=True, exist_ok=True)
    for kind in ("", ".pub"):
        file = root / f"etc/ssh/ssh_host_ed25519_key{kind}"
        shutil.copy(f"{key}{kind}", file)
        file.chmod(0o644 if kind else 0o600)


def install(root, system):
    """Makes a system of a machine's store, which is off, the one of its profile and of its boot loader."""
    profiles = root / "nix/var/nix/profiles"
    (profiles / "system-1-link").symlink_to(system)
    (profiles / "system").symlink_to("system-1-link")
    loader = root / "boot/loader"
    (loader / "entries").mkdir(parents=True)
    (loader / "entries/first.conf").write_text(f"options init={system}/init\n")
    (loader / "loader.conf").write_text("default first.conf\n")


HEADING = "| what happens | `bento status` says | the host's reason, or what was counted |"


def bento():
    return os.environ["BENTO"]


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


@scenario("unit that fails, and may")
def unit_that_may_fail(lab):
    # the running system's settings judge the next one
    accept = 'services.bento.agent.confirm.failedUnits = "accept";'
    lab.publish(change(accept))
    lab.poll()
    before = lab.expect_new()
    lab.publish(change(accept + BAD))
    lab.poll()
    lab.expect("up-to-date")
    assert lab.expect_new() != before
    assert lab.reports()[-1]["failed_units"] == ["bad.service"], lab.reports()[-1]


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


@scenario("hub down when the system could be tried out")
def hub_down_at_check(lab):
    lab.publish(change('''system.extraSystemBuilderCmds = "while [ ! -e /tmp/go ]; do sleep 0.2; done";'''))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.wait_for_phase(2, "fetched")
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


@scenario("hub back late")
def hub_back_late(lab):
    # the running system's settings judge the next one
    patient = "services.bento.agent.settings.confirm.tries = lib.mkForce 30;"
    lab.publish(change(patient))
    lab.poll()
    lab.publish(change(patient + 'systemd.services.slow = { wantedBy = [ "multi-user.target" ]; script = "sleep 2"; serviceConfig.Type = "oneshot"; };'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.wait_for_phase(3, "testing")
    lab.hub.block()
    lab.web.wait_until_succeeds("grep -q 'try 2 of 30 to reach the hub' /var/lib/bento/attempt.log", 60)
    lab.hub.unblock()
    lab.wait_for_phase(3, "reported")
    lab.expect("up-to-date", 30)
    lab.expect_new()
    assert [report["outcome"] for report in lab.reports()] == ["success"] * 3, lab.reports()


@scenario("more time for the hub than the watchdog knew of")
def more_time(lab):
    # a trial in this one may take 31 s
    short = """services.bento.agent.settings = { system.activation-timeout = lib.mkForce 10; confirm.margin = lib.mkForce 1; };
      services.bento.agent.timeout = lib.mkForce @timeout@;"""
    lab.publish(change(short.replace("@timeout@", "2")))
    lab.poll()
    good = lab.expect_new()
    lab.publish(change(short.replace("@timeout@", "18") + 'systemd.services.slow = { wantedBy = [ "multi-user.target" ]; script = "sleep 2"; serviceConfig.Type = "oneshot"; };'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.wait_for_phase(3, "testing")
    # connections are taken, and nobody answers
    lab.hub.succeed("systemctl kill --signal=STOP sshd")
    lab.web.wait_until_succeeds("grep -q 'going back' /var/lib/bento/attempt.log", 120)
    lab.hub.succeed("systemctl kill --signal=CONT sshd")
    lab.expect("rollbacked", lab.patience)
    assert lab.running() == good
    assert "the hub could not be reached" in lab.reports()[-1]["reason"], lab.reports()[-1]


@scenario("hub down after")
def hub_down_after(lab):
    lab.publish(change('systemd.services.slow = { wantedBy = [ "multi-user.target" ]; script = "true"; };'))
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
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


@scenario("secrets, and a power cut")
def secrets_after_a_power_cut(lab):
    lab.hub.succeed("rm /fleet/config.sh")
    lab.hub.write("/fleet/bento.toml", '[hub]\ndirectory = "/home/chroot"\n[release]\nsigning-key = "/root/admin"\n'
                  f'[build]\nlocal = false\n[hosts.web]\nkeys = [ "{lab.keys["web"]}" ]\n')
    lab.hub.write("/fleet/hosts/web/secrets/password", "sesame\n")
    lab.hub.write("/fleet/hosts/web/secrets/secrets.toml", '[password]\nowner = "reader"\nunits = [ "reader.service" ]\n')
    # the same system brings the secret's owner, and a service that can't do without
    lab.publish(change("""users.users.reader = { isSystemUser = true; group = "reader"; };
        users.groups.reader = { };
        systemd.services.reader = {
          wantedBy = [ "multi-user.target" ];
          unitConfig = { StartLimitBurst = 1; StartLimitIntervalSec = 3600; };
          serviceConfig = { Type = "oneshot"; RemainAfterExit = true; User = "reader"; };
          script = "grep ^ses /run/bento/secrets/password";
        };"""))
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()
    there = "systemctl is-active reader && test \"$(stat -c '%U %a' /run/bento/secrets/password)\" = 'reader 400'"
    lab.web.succeed(there)
    # whoever reads it is restarted, also one that was started as often as it may be
    lab.hub.write("/fleet/hosts/web/secrets/password", "sesame!\n")
    lab.deploy()
    lab.poll()
    lab.expect("up-to-date")
    lab.web.succeed(there, "journalctl -b -u reader | grep -q 'sesame!'")
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
    assert lab.journal_of_agent() == (2, "waiting") and lab.boots() == lab.first and lab.profile() == lab.running()
    assert lab.reports()[-1]["stage"] == "reboot"
    lab.web.reboot()
    # that it waits for the restart is reported too: the last report says that it is over
    lab.expect_stages(0, "done", "reboot", "done")
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("kernel change, published again before it was booted")
def kernel_change_again(lab):
    new_kernel = 'boot.kernelPackages = pkgs.linuxPackages_latest;'
    lab.publish(change(new_kernel))
    lab.poll()
    lab.publish(change('system.extraSystemBuilderCmds = "exit 3";'))
    lab.poll(works=False)
    lab.expect("failing")
    # that the system runs and is the profile's does not mean that it boots
    lab.publish(change(new_kernel))
    lab.poll()
    assert lab.journal_of_agent() == (4, "waiting") and lab.boots() == lab.first and lab.profile() == lab.running()
    lab.web.reboot()
    lab.expect_stages(0, "done", "reboot", "build", "reboot", "done")
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("a kernel that panics")
def panic(lab):
    lab.restart(lambda: lab.publish(change('boot.kernelPackages = pkgs.linuxPackages_latest; boot.kernelParams = [ "panic" ];')), "reboot", "boot")
    lab.expect("rollbacked")
    lab.expect_first("did not come up for good")


# works as long as nobody restarts; see changes.nix
DEAF = """
systemd.services.deaf = { wantedBy = [ "multi-user.target" ]; after = [ "network-addresses-host0.service" ];
  unitConfig.ConditionPathExists = "!/run/bento-was-here"; script = "ip address flush dev host0"; serviceConfig.Type = "oneshot"; };
system.activationScripts.here = "[ ! -d /run/systemd/system ] || touch /run/bento-was-here";
"""


@scenario("a system that loses the hub when it is booted")
def deaf_when_booted(lab):
    lab.restart(lambda: lab.publish(change("boot.kernelPackages = pkgs.linuxPackages_latest;" + DEAF)), "reboot", "boot")
    lab.expect("rollbacked")
    lab.expect_first("booted, it does not work")


@scenario("a real kernel changes, by systemd-boot", "systemd-boot")
def real_systemd_boot(lab):
    lab.restart(lambda: lab.publish(change('emulated.kernel = "2";')), "reboot", "done")
    lab.expect("up-to-date")
    new = lab.expect_new()
    # the boot was good, also for the boot loader, which no longer counts
    lab.web.wait_until_succeeds("systemctl is-active --quiet boot-complete.target systemd-bless-boot.service", lab.web.patience)
    lab.web.succeed(f"test -e /boot/loader/entries/nixos-{new.removeprefix('/nix/store/')}.conf")


@scenario("a real kernel changes, by GRUB", "grub")
def real_grub(lab):
    lab.restart(lambda: lab.publish(change('emulated.kernel = "2";')), "reboot", "done")
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("a real kernel changes, by kexec", "systemd-boot")
def real_kexec(lab):
    kexec = "services.bento.agent.reboot.kexec = true;"
    lab.publish(change(kexec))
    lab.poll()
    starts = lab.web.firmware_starts()
    lab.restart(lambda: lab.publish(change(kexec + 'emulated.kernel = "2";')), "reboot", "done")
    lab.expect("up-to-date")
    lab.expect_new()
    if lab.web.firmware_starts() != starts:
        raise Failure("the firmware started the new kernel, not the old one")


@scenario("a real kernel panics, by systemd-boot", "systemd-boot")
@scenario("a real kernel panics, by GRUB", "grub")
def real_panic(lab):
    lab.restart(lambda: lab.publish(change('emulated.kernel = "2"; boot.kernelParams = [ "broken" ];')), "reboot", "boot")
    lab.expect("rollbacked")
    lab.expect_first("did not come up for good")
    if "Kernel panic - not syncing: sysrq triggered crash" not in lab.web.all_console():
        raise Failure("no kernel has panicked")


# QEMU is killed: what the guest has not written to its disk is lost
scenario("a real machine is reset while testing", "systemd-boot")(shared.power_cut)


# a build in a sandbox, whatever Nix is set to: it sees nothing of the machine
SHUT_IN = """
derivation {
  name = "shut-in";
  system = "x86_64-linux";
  builder = "/bin/sh";
  args = [ "-c" "if [ -e /boot ]; then echo open; else echo shut; fi > $out" ];
}
"""
BUILD = """#!/bin/sh
exec nix-build --no-out-link --option sandbox true --option sandbox-paths /bin/sh=/usr/bin/busybox /root/shut-in.nix > /root/built
"""


@scenario("Nix shuts its builds in, in the agent's unit", "systemd-boot")
def builds_are_shut_in(lab):
    # the unit is the module's, but for what runs in it
    lab.web.write("/root/shut-in.nix", SHUT_IN)
    lab.web.write("/root/build", BUILD)
    lab.web.write("/etc/systemd/system/bento-upgrade.service.d/build.conf", "[Service]\nExecStart=\nExecStart=/bin/sh /root/build\n")
    lab.web.succeed("systemctl daemon-reload")
    lab.poll()
    said = lab.web.succeed("cat $(cat /root/built)")
    if said != "shut\n":
        raise Failure(f"the build saw the machine: {said}")
    lab.expect("up-to-date")
    lab.expect_first()


@scenario("a real machine loses the hub when it is booted", "systemd-boot")
def real_deaf(lab):
    lab.restart(lambda: lab.publish(change('emulated.kernel = "2";' + DEAF)), "reboot", "boot")
    lab.expect("rollbacked")
    lab.expect_first("booted, it does not work")
    # one boot of it was counted, and never called good
    lab.web.succeed("ls /boot/loader/entries | grep -q '+2-1.conf$'")
    assert lab.web.firmware_starts() == 3, lab.web.firmware_starts()


@scenario("rollback target garbage-collected")
def collected(lab):
    lab.publish(change("""system.activationScripts.collect = "nix-store --gc > /dev/null 2>&1 || true; nix-env -p /nix/var/nix/profiles/system --delete-generations old || true; nix-store --gc > /dev/null";\n""" + BAD))
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first("units failed")


@scenario("cut transfer, at every tenth of it")
def cut_transfer(lab):
    def files(letter):
        # random: what is sent is as large as it looks
        return change("".join(f'environment.etc."part{n}".text = "{letter}{secrets.token_hex(2000)}";\n' for n in range(10))
                      + 'system.extraSystemBuilderCmds = "while [ ! -e /tmp/go ]; do sleep 0.2; done";')
    sent = "table inet cut {{ chain output {{ type filter hook output priority 0; tcp sport 22 {}; }}; }}"
    # the whole of one like it
    lab.publish(files("a"))
    lab.hub.succeed(f"nft '{sent.format('counter')}'")
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.wait_for_phase(2, "fetched")
    size = int(re.search(r"bytes (\d+)", lab.hub.succeed("nft list table inet cut; nft delete table inet cut")).group(1))
    lab.web.succeed("touch /tmp/go")
    lab.wait_for_phase(2, "reported")
    lab.web.wait_until_succeeds("test $(systemctl show -p ActiveState --value bento-upgrade) = inactive", 60)
    before = lab.running()
    lab.publish(files("b"))
    for tenth in range(10):
        lab.hub.succeed(f"nft '{sent.format(f'quota over {size * tenth // 10} bytes drop')}'")
        lab.poll(works=False)
        if lab.running() != before or lab.journal_of_agent() not in ((2, "reported"), (3, "idle")):
            raise Failure(f"took up a part, cut after {tenth} tenths: {lab.journal_of_agent()}")
        lab.hub.succeed("nft delete table inet cut")
    lab.web.succeed("bento agent run --now")
    lab.expect("up-to-date")
    assert lab.expect_new() != before
    return f"{size} bytes"


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


def ask_page(machine, request, body="", by="127.0.0.1 51337", user=0):
    """What the page for the user at the machine answers to a request."""
    host = "localhost:51337" if by[0].isdigit() else "localhost"
    text = f"{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    machine.write("/tmp/request", text)
    # it does not say that it has nothing more to say before it is answered: no browser does
    return machine.succeed(f"(cat /tmp/request; sleep 2) | setpriv --reuid {user} --regid {user} --clear-groups nc {by}")


@scenario("the page's button, behind systemd's socket")
def page_button(lab):
    lab.publish_change("update")
    # nothing of it runs until somebody looks
    lab.web.fail("systemctl is-active --quiet bento-page.service")
    shown = ask_page(lab.web, "GET /")
    lab.web.succeed("systemctl is-active --quiet bento-page.service")
    for answer in (shown, ask_page(lab.web, "GET /", by="-U /run/bento/page.sock", user=1234)):
        if not answer.startswith("HTTP/1.1 200") or lab.first.removeprefix("/nix/store/") not in answer:
            raise Failure(f"the page does not show what runs: {answer}")
    refused = ask_page(lab.web, "GET /", by="-U /run/bento/page.sock", user=65534)
    if not refused.startswith("HTTP/1.1 403"):
        raise Failure(f"a service is shown the page: {refused}")
    # it is for this machine alone
    lab.hub.fail(f"nc -z -w 2 {lab.address} 51337")
    token = re.search(r'name="token" value="([0-9a-f]+)"', shown).group(1)
    answer = ask_page(lab.web, "POST /update", f"token={token}")
    if not answer.startswith("HTTP/1.1 303"):
        raise Failure(f"the button does nothing: {answer}\n{lab.web.execute('journalctl -u bento-page --no-pager -o cat | tail')[1]}")
    lab.expect("up-to-date", lab.patience)
    new = lab.expect_new()
    shown = ask_page(lab.web, "GET /")
    if new.removeprefix("/nix/store/") not in shown:
        raise Failure(f"the page does not show what runs now: {shown}")


@scenario("a machine that has only NixOS becomes a host")
def bootstrapped(lab):
    lab.web.write("/etc/nixos/change.nix", change("services.bento.agent.enable = lib.mkForce false;"))
    lab.web.succeed(f"set -e; {INSTALL}\n\"$system/bin/switch-to-configuration\" test; rm -rf /var/lib/bento")
    lab.web.fail("test -e /etc/bento/agent.toml", "systemctl cat bento-upgrade.service")
    lab.hub.succeed("rm -f /home/chroot/web/logs/*")
    lab.first = lab.running()
    lab.web.write("/root/bootstrap.sh", (ROOT / "modules/bootstrap.sh").read_text())
    lab.web.write("/root/settings.toml", 'timeout = 2\n[nix]\nsearch-path = ["nixpkgs=/fixture"]\n[confirm]\ntries = 2\npause = 1\nsettle = 2\n')
    command = "sh /root/bootstrap.sh --hub 192.168.1.1 --bento /usr/local/bin/bento --settings /root/settings.toml --signer '{}' --host-key '{}' 2>&1"
    # whoever poses as the hub is not believed, not even the first time
    lab.web.fail(command.format(lab.keys["admin"], lab.keys["other"]))
    if lab.running() != lab.first or lab.reports():
        raise Failure("another hub than the right one was listened to")
    lab.web.succeed(command.format(lab.keys["admin"], lab.keys["hub"]))
    lab.expect("up-to-date")
    new = lab.expect_new()
    lab.web.wait_for_unit("bento-upgrade.timer", 20)
    # its own agent finds nothing left to do, and neither does the script
    lab.poll()
    if lab.running() != new or len(lab.reports()) != 1:
        raise Failure(f"it was done twice: {lab.reports()}")
    lab.expect("up-to-date")
    lab.web.fail(command.format(lab.keys["admin"], lab.keys["hub"]))


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


# what the agent does durably, and what the hub sees of it, happens with these system calls; and what it does to its journal, with these
STEPS = ("rename,renameat,renameat2,fsync", "")
JOURNAL_STEPS = ("rename,renameat,renameat2", "-P /var/lib/bento/state.json")


def ends_of(outcomes):
    """How many of these outcomes of releases are which, in words."""
    return f"{outcomes.count('success')} ended in the new system, {outcomes.count('rollback')} in the old one"


def killed_at(lab, number, steps=STEPS):
    """Runs the agent, and kills it at the step of this number; gives whether it got that far."""
    calls, which = steps
    status, output = lab.web.execute(f"strace -qq -o /tmp/strace {which} -e trace={calls} -e inject={calls}:signal=KILL:when={number} bento agent run --now",
                                     2 * lab.patience * lab.slowness)
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
        killed, status, output = killed_at(lab, number)
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
    return f"{len(outcomes)} steps: {ends_of(outcomes)}"


def cut_at_each(lab, steps):
    """Cuts the host's power at each of these steps of the agent; gives what came of it, and the states that the agent was in."""
    outcomes, states = [], set()
    for number in range(1, 100):
        lab.publish(change(f'environment.etc."motd".text = "{number}";'))
        killed, status, output = killed_at(lab, number, steps)
        if not killed:
            if status != 0:
                raise Failure(f"step {number}: the agent ended with {status}: {output}")
            break
        states.add(lab.journal_of_agent()[1])
        lab.web.crash()
        lab.web.start()
        # nobody starts the agent but its timer
        lab.web.wait_until_succeeds("test -n \"$(systemctl show -p ExecMainExitTimestamp --value bento-upgrade)\"", lab.patience)
        lab.web.wait_until_succeeds("! systemctl is-active --quiet bento-upgrade && test $(systemctl show -p ActiveState --value bento-upgrade) != activating", lab.patience)
        # that may have been too early for the network
        lab.poll(works=None)
        outcomes.append(expect_consistent(lab, lab.status()["serial"]))
    else:
        raise Failure("there is no end of steps")
    if set(outcomes) != {"success", "rollback"}:
        raise Failure(f"the power was not cut in all of its states: {outcomes}")
    return outcomes, states


@scenario("power cut at every step")
def cut_everywhere(lab):
    outcomes, _ = cut_at_each(lab, STEPS)
    return f"{len(outcomes)} steps: {ends_of(outcomes)}"


# QEMU is killed, as above
@scenario("a real machine is reset at every step of the journal", "systemd-boot")
def real_reset_everywhere(lab):
    outcomes, states = cut_at_each(lab, JOURNAL_STEPS)
    return f"{len(outcomes)} steps, in {len(states)} states; {ends_of(outcomes)}"


# the agent as systemd starts it, killed in one of its runs when it is about to write its journal for the so manieth time
KILLER = """#!/bin/sh
if read -r run time < /root/kill; then
  if [ "$run" = 1 ]; then
    rm /root/kill
    strace -qq -o /root/strace -P /var/lib/bento/state.json -e inject=rename,renameat,renameat2:signal=KILL:when=$time bento agent run --now
    grep -q 'killed by SIGKILL' /root/strace && cp /var/lib/bento/state.json /root/killed.json
    exit 1
  fi
  echo "$((run - 1)) $time" > /root/kill
fi
exec bento agent run --now
"""


def states_of_agent():
    """All states that the agent can be in, from the drawing of them, which is made by the program."""
    drawing = re.search(r"```mermaid\n(.*?)```", (ROOT / "docs/src/agent.md").read_text(), re.DOTALL).group(1)
    return {name for line in drawing.splitlines() if "-->" in line for name in re.match(r"\s*(\S+) --> (\S+?):?(?:\s|$)", line).groups() if name != "[*]"}


@scenario("agent killed in every state, also across restarts")
def killed_in_every_state(lab):
    restarts = "boot.kernelPackages = pkgs.linuxPackagesOf \"%s\";"
    # what becomes of a release, and the runs in which that happens
    kinds = {"rollback": (BAD, 1), "restart": (restarts, 2), "restart and back": (restarts + DEAF, 3)}
    lab.hub.succeed("touch /fleet/hosts/web/REBOOT")
    lab.web.write("/root/killer", KILLER)
    lab.web.write("/etc/systemd/system/bento-upgrade.service.d/killer.conf", "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=\nExecStart=/root/killer\n")
    lab.web.succeed("chmod 755 /root/killer; systemctl daemon-reload")
    seen, outcomes, serial = {}, [], 1
    for kind, (text, runs) in kinds.items():
        for run_number in range(1, runs + 1):
            for time_number in range(1, 30):
                serial += 1
                lab.web.execute("rm -f /root/killed.json; echo %d %d > /root/kill" % (run_number, time_number))
                lab.publish(change(f'environment.etc."motd".text = "{serial}";' + text.replace("%s", f"6.18.{serial}")))
                lab.web.execute("systemctl start --no-block bento-upgrade.service")
                # whatever the timers do, the agent is asked to go on until it is through
                lab.wait_for(lambda: (lab.ask_on(), lab.journal_of_agent())[1], lambda now: now == (serial, "reported"), 150, f"release {serial} reported")
                lab.wait_for(lambda: [report for report in lab.reports() if report["serial"] == serial and report["stage"] != "reboot"],
                             lambda found: len(found) == 1, 30, f"one report of release {serial}")
                lab.expect_quiet()
                system = lab.running()
                if not system == lab.boots() == lab.profile() == lab.reports()[-1]["running"]:
                    raise Failure(f"{kind}: runs {system}, boots {lab.boots()}, profile {lab.profile()}\n{lab.journal()}")
                outcomes.append(lab.reports()[-1]["outcome"])
                status, text_of_state = lab.web.execute("cat /root/killed.json")
                if status != 0:
                    break
                state = json.loads(text_of_state)["phase"]["state"]
                seen[state] = seen.get(state, 0) + 1
            else:
                raise Failure("there is no end of steps")
    missing = states_of_agent() - set(seen)
    if missing:
        raise Failure(f"it was never killed when it was {', '.join(sorted(missing))}, but when it was {seen}")
    return f"killed {sum(seen.values())} times, in {len(seen)} states; {ends_of(outcomes)}"


CROWD = 50


@scenario("50 hosts updating at once")
def crowd(lab):
    names = [f"node{number:02}" for number in range(1, CROWD + 1)]
    # so many at once on few cores take their time
    patient = """services.bento.agent.timeout = lib.mkForce 60;
      services.bento.agent.settings.system.activation-timeout = lib.mkForce 300;
      services.bento.agent.settings.confirm.tries = lib.mkForce 6;"""
    etc, users = {}, []
    for number, name in enumerate(names, 1):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(lab.work / name))
        users.append(f'hosts.{name}.keys = [ "{(lab.work / name).with_suffix(".pub").read_text().strip()}" ];')
        for file, text in lab.configuration(name, f"192.168.1.{100 + number}", change(patient)).items():
            etc[f"{name}/{file}"] = text
            lab.hub.write(f"/fleet/hosts/{name}/{file}", text)
    lab.hub.write("/etc/nixos/change.nix", "{ services.bento.hub = { " + " ".join(users) + " }; }\n")
    lab.hub.succeed("$(nix-build --no-out-link -I nixpkgs=/fixture -E '(import <nixpkgs/nixos> { configuration = /etc/nixos/configuration.nix; })"
                    ".config.system.build.toplevel')/bin/switch-to-configuration test")
    layer, said = lab.layer("crowd", etc, f"""
        nix-build --no-out-link -I nixpkgs=/fixture -E 'map (name: (import <nixpkgs/nixos> {{ configuration = /etc/nixos + "/${{name}}/configuration.nix"; }})
          .config.system.build.toplevel) [ {" ".join(f'"{name}"' for name in names)} ]'
    """)
    first = dict(zip(names, [line for line in said.splitlines() if line.startswith("/nix/store/")][-CROWD:]))
    nodes = [Container(name, [layer, lab.base], lab.work / "machines", lab.binds) for name in names]
    # each systemd watches a handful of files; no name space has a number of its own
    watched = Path("/proc/sys/fs/inotify/max_user_instances")
    allowed = watched.read_text()
    try:
        watched.write_text(str(max(int(allowed), 16 * CROWD)))
        for node in nodes:
            node.reset()
            put_key(node.root, lab.work / node.name)
            install(node.root, first[node.name])
        for node in nodes:
            node.start()
            node.succeed("systemctl stop bento-boot.timer")
        for name in names:
            lab.hub.write(f"/fleet/hosts/{name}/change.nix", change(patient + f'environment.etc."motd".text = "{name}";'))
        lab.deploy()
        begin = time.monotonic()
        for node in nodes:
            node.succeed("systemctl start --no-block bento-upgrade.service")
        lab.wait_for(lambda: [host["state"] for host in lab.all_status() if host["machine"] in first],
                     lambda states: states == ["up-to-date"] * CROWD, 600, "all up to date")
        took = time.monotonic() - begin
        for node in nodes:
            system = node.succeed("readlink /run/current-system").strip()
            reports = lab.reports(node.name)
            if system == first[node.name] or node.succeed("cat /etc/motd") != node.name:
                raise Failure(f"{node.name} runs {system}")
            if [(report["host"], report["outcome"], report["running"]) for report in reports] != [(node.name, "success", system)]:
                raise Failure(f"{node.name} has reported {reports}")
    finally:
        for node in nodes:
            node.destroy()
        watched.write_text(allowed)
    return f"all of them within {took:.0f} s"


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


# what takes minutes, and is begun first
LONG = (killed_in_every_state, cut_everywhere, killed_everywhere, cut_transfer, crowd, real_reset_everywhere)


def main():
    parser = options("base", "packages")
    parser.set_defaults(lanes=3, busy_lanes=2)
    parser.add_argument("--book", action="store_true")
    parser.add_argument("--only", choices=("containers", "emulated"))
    arguments = parser.parse_args()
    lacks = emulated.lacks() if Path(arguments.packages).is_dir() else "the packages for emulated machines can't be had"

    def row(lab, entry, note):
        if not arguments.book:
            return
        if lab:
            status = lab.status()
            cells = (status["state"].replace("-", " "), "; ".join(filter(None, (status["reason"], note))))
        else:
            cells = ("skipped", note)
        write_row(HEADING, [name for name, *_ in SCENARIOS], entry[0], cells)

    def broken(lab, entry):
        if arguments.book:
            write_row(HEADING, [name for name, *_ in SCENARIOS], entry[0])
        print(f"the end of its console:\n{lab.web.console()}", flush=True)

    ours = [entry for entry in SCENARIOS if arguments.only is None or (arguments.only == "containers") == (entry[2] == "container")]
    # the few that begin with GRUB are not begun when there is no other work left
    ours.sort(key=lambda entry: (LONG.index(entry[1]) if entry[1] in LONG else len(LONG), entry[2] != "grub"))
    perform(
        [(name, kind, kind == "container" and function not in LONG, function) for name, function, kind in ours],
        arguments,
        make=lambda: Lab(arguments.base, arguments.packages, arguments.work),
        prepare=lambda lab, kind: lab.fresh(kind),
        ended=row, broken=broken,
        lacks=lambda entry: lacks if entry[1] != "container" else None,
        busy=lambda entry: entry[1] != "container",
    )


if __name__ == "__main__":
    main()
