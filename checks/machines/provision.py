"""Provisioning: from a desk to a machine with Debian, a real systemd and a real sshd, which becomes a host whose agent reports to a real
hub. `run --provision [SCENARIO...]` runs it.

On a container there is nothing for nixos-anywhere to install: a program in its place is told what nixos-anywhere would be told,
records it, and does on the machine what its phases come to, but for the kernel: the machine restarts as an installer, has its
disk laid out, gets the system and the files that come with it, and restarts into that.

nixos-anywhere itself installs an emulated machine (bare.py): BENTO_NIXOS_ANYWHERE and BENTO_NIXOS_IMAGES name checkouts of it and of
nixos-images, BENTO_CORPORA the folder with nixpkgs-26.11, and BENTO_NIX the one of C++ Nix's programs. BENTO_RECORD names a file for
every command that was run.
"""

import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import bare
import emulated
import push
from bare import TARGET
from driver import Container, Failure, overlay, run
from push import AGENT, ROOT, change, says

HERE = Path(__file__).resolve().parent
# what a container lacks that a machine has: firmware, a kernel that can start another one, and no word of containers
BARE = """#!/bin/sh
ip address replace 192.168.1.101/24 dev host0
ip link set host0 up
mount -o remount,rw /sys
mkdir -p /sys/firmware/efi
mount -t tmpfs none /sys/kernel && : > /sys/kernel/kexec_loaded
mkdir -p /run/sshd
"""
UNIT = """[Unit]
DefaultDependencies=no
After=sysinit.target
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/bare
[Install]
WantedBy=multi-user.target
"""
FLAKE = """
{
  inputs.nixpkgs.url = "path:/fixture";
  outputs = { self, nixpkgs }: {
    nixosConfigurations.t1 = nixpkgs.lib.nixosSystem {
      system = "x86_64-linux";
      modules = [ ./disko.nix ./disk.nix ./common.nix ./t1.nix ./machine.nix ./change-t1.nix ];
    };
  };
}
"""
DISK = """
{
  disko.devices.disk.main = { type = "disk"; device = "@device@"; content = { type = "gpt"; partitions = {
    ESP = { size = "512M"; type = "EF00"; content = { type = "filesystem"; format = "vfat"; mountpoint = "/boot"; }; };
    root = { size = "100%"; content = { type = "filesystem"; format = "ext4"; mountpoint = "/"; }; };
  }; }; };
  boot.loader.systemd-boot.enable = true;
}
"""
# a kernel, and disks that are laid out
REAL = """
{ config, lib, pkgs, ... }:
{
  boot.kernelPackages = pkgs.linuxPackagesFor (pkgs.runCommand "linux-1" { version = "1"; passthru.target = "bzImage"; }
    "mkdir -p $out/lib/modules; cp /machine/kernel $out/bzImage");
  system.build.initialRamdisk = lib.mkForce (pkgs.runCommand "initrd-1" { } "mkdir $out; cp /machine/initrd $out/initrd");
  boot.kernelParams = [ "root=/dev/vda2" "console=ttyS0" "quiet" "systemd.getty_auto=0" "systemd.show_status=0" "systemd.journald.forward_to_console=1" ];
  # it is a slow machine
  services.bento.agent.timeout = lib.mkForce 20;
  system.build.diskoScript = lib.mkForce (pkgs.writeScript "disko" ''
    #!/bin/sh
    set -eux
    disk=${config.disko.devices.disk.main.device}
    ! mountpoint -q /mnt || umount -R /mnt
    wipefs -a $disk
    printf 'label: gpt\\nsize=512M, type=U, name=disk-main-ESP\\ntype=L, name=disk-main-root\\n' | sfdisk $disk
    udevadm settle
    mkfs.vfat -F 32 /dev/disk/by-partlabel/disk-main-ESP
    mkfs.ext4 -q /dev/disk/by-partlabel/disk-main-root
    mkdir -p /mnt
    mount /dev/disk/by-partlabel/disk-main-root /mnt
    mkdir -p /mnt/boot
    mount /dev/disk/by-partlabel/disk-main-ESP /mnt/boot
  '');
}
"""
SETTINGS = """
[hub]
directory = "/srv/hub"
address = "192.168.1.1"
[release]
signing-key = "/root/.ssh/id_ed25519"
[build]
local = false
"""
# what is typed to end the input, and to interrupt
END, INTERRUPT = "\x04", "\x03"
# in nixos-anywhere's place
INSTALLER = r"""#!/bin/sh
set -eu
echo "$*" >> /tmp/recorded
script= system= extra= target=
while [ $# -gt 0 ]; do
  case $1 in
    --phases) phase=$2; shift ;;
    --store-paths) script=$2 system=$3; shift 2 ;;
    --extra-files) extra=$2; shift ;;
    --target-host) target=root@${2#*@}; shift ;;
    --kexec) shift ;;
    *) echo "unknown: $1" >&2; exit 9 ;;
  esac
  shift
done
on() { ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 "$target" "$@" < /dev/null; }
restart() {
  boot=$(on cat /proc/sys/kernel/random/boot_id)
  on systemctl reboot --no-block
  while now=$(on cat /proc/sys/kernel/random/boot_id) && [ "$now" = "$boot" ]; do sleep 0.2; done
}
echo "### $phase ###"
if [ "$(cat /tmp/hang 2> /dev/null)" = "$phase" ]; then
  case $phase in
    # what works there goes on when nobody is connected any more
    disko) on "sh -c 'sleep 600; :' $script" ;;
    install) on "sh -c 'sleep 600; :' nixos-install --system $system" ;;
    *) sleep 600 ;;
  esac
fi
[ "$(cat /tmp/fail 2> /dev/null)" != "$phase" ] || { echo "no luck" >&2; exit 7; }
export NIX_SSHOPTS="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
case $phase in
  kexec)
    on "rm /etc/os-release; printf 'PRETTY_NAME=installer\nVARIANT_ID=installer\n' > /etc/os-release"
    restart ;;
  disko)
    nix-copy-closure --to "$target" "$script"
    on "$script; umount /mnt 2> /dev/null; mkdir -p /mnt; mount -t tmpfs none /mnt" ;;
  install)
    nix-copy-closure --to "$target" "$system"
    tar -C "$extra" -cpf- . | ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "$target" "rm -rf /new; mkdir /new; tar -C /new -xpf- --no-same-owner"
    on "touch /etc/NIXOS; rm -f /etc/systemd/system/multi-user.target.wants/* /boot/loader/entries/debian.conf
        nix-env --profile /nix/var/nix/profiles/system --set $system && $system/bin/switch-to-configuration boot" ;;
  reboot)
    # the disk that it was all written to is the machine's own from now on
    on "cp -a /new/. / && chmod 755 /"
    restart ;;
esac
sleep "$(cat /tmp/pause 2> /dev/null || echo 0)"
"""
PHASES = ["look", "check", "consent", "key", "build", "publish", "kexec", "disko", "install", "reboot", "return", "report"]


# for how long phases may last, in seconds: of a container, and of an emulated machine
LIMITS = {"kexec": (60, 600), "disko": (60, 300), "install": (120, 600), "reboot": (60, 300), "return": (90, 300), "report": (90, 300)}


class Lab(push.Lab):
    """A desk with a hub, and a machine with Debian: a container, or a bare one."""

    def __init__(self, base, packages, disks, work):
        self.base, self.packages, self.disks = Path(base), Path(packages), Path(disks)
        self.kinds, self.bare = {}, False
        # nothing but what is in Debian's base is needed at the desk, and on a container
        super().__init__([self.base], work)

    def get(self, name):
        if name == "t1":
            make = self.emulated if self.bare else self.debian
            if self.bare not in self.kinds:
                self.kinds[self.bare] = make()
            self.machines[name] = self.kinds[self.bare]
        return super().get(name)

    def emulated(self):
        """A machine with a kernel and disks of its own. The desk gets what it is provisioned with."""
        kernel = self.work / "kernel"
        emulated.make_kernel(self.packages, kernel)
        lowers = [self.disks, self.packages, self.base]
        disk, archive = self.work / "debian.disk", self.work / "installer.tar"
        bare.make_debian(disk, lowers, self.packages, kernel, self.work / "t1", self.keys["admin"])
        program = self.work / "bento"
        run("strip", "-o", program, os.environ["BENTO"])
        bare.make_installer(archive, lowers, self.packages, kernel, {"usr/local/bin/bento": program, "fixture": ROOT / "checks/fixture"})
        nix = Path(os.environ["BENTO_NIX"]).resolve().parent
        self.desk.binds += [f"{nix}:{nix}", f"{kernel}:/machine", f"{archive}:/installer.tar",
                            f"{Path(os.environ['BENTO_NIXOS_ANYWHERE']).resolve()}/src:/usr/local/lib/nixos-anywhere"]
        return bare.Bare("t1", "192.168.1.101", disk, self.work / "emulated", self.desk)

    def debian(self):
        """A machine on whose disk there is Debian, with an sshd that lets the administrator in."""
        layer = self.work / "layers" / "t1"
        root = overlay(layer, [self.base])
        for path in ("usr/local/bin/bento", "usr/local/bin/bootctl", "sbin/bootloader"):
            (root / path).touch()
        for folder in ("fixture", "root/.ssh", "boot/loader/entries", "etc/systemd/system/multi-user.target.wants"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "etc/NIXOS").unlink()
        (root / "etc/hostname").write_text("debian\n")
        (root / "boot/loader/loader.conf").write_text("default debian.conf\n")
        (root / "boot/loader/entries/debian.conf").write_text("options init=/lib/systemd/systemd\n")
        (root / "root/.ssh/authorized_keys").write_text(self.keys["admin"] + "\n")
        for path, text in (("usr/local/sbin/bare", BARE), ("usr/local/bin/systemd-detect-virt", "#!/bin/sh\necho none\n"), ("usr/bin/cpio", "#!/bin/sh\nexit 1\n")):
            (root / path).write_text(text)
            (root / path).chmod(0o755)
        (root / "etc/systemd/system/bare.service").write_text(UNIT)
        wants = root / "etc/systemd/system/multi-user.target.wants"
        (wants / "bare.service").symlink_to("/etc/systemd/system/bare.service")
        (wants / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
        for kind in ("", ".pub"):
            key = root / f"etc/ssh/ssh_host_ed25519_key{kind}"
            key.write_text((self.work / f"t1{kind}").read_text())
            key.chmod(0o644 if kind else 0o600)
        run("umount", str(root))
        return Container("t1", [layer / "upper", self.base], self.work / "machines", self.binds)

    def fresh(self, agent=True, bare=False):
        """The desk with a fleet, and the machine as it was at first."""
        for machine in self.machines.values():
            machine.crash()
        self.bare = bare
        desk, machine = (self.get(name) for name in ("desk", "t1"))
        for one in (desk, machine):
            one.reset()
            one.start(wait=False)
        desk.connect()
        desk.write("/root/.ssh/id_ed25519", (self.work / "admin").read_text())
        desk.write("/root/.ssh/id_ed25519.pub", self.keys["admin"] + "\n")
        desk.write("/root/.ssh/known_hosts", f"192.168.1.101 {self.keys['t1']}\n")
        desk.succeed("chmod 700 /root/.ssh; chmod 600 /root/.ssh/*")
        # it may be reached by the desk alone
        machine.connect()
        desk.write("/usr/local/bin/nixos-anywhere", INSTALLER)
        desk.write("/fleet/bento.toml", SETTINGS)
        desk.write("/fleet/flake.nix", FLAKE)
        desk.write("/fleet/common.nix", self.common)
        desk.write("/fleet/t1.nix", push.HOST.replace("@name@", "t1").replace("@number@", "101"))
        desk.write("/fleet/disko.nix", (ROOT / "src/bento/tests/disko/module.nix").read_text())
        desk.write("/fleet/machine.nix", REAL if bare else push.NOTHING)
        desk.write("/fleet/agent.nix", (ROOT / "modules/agent.nix").read_text())
        desk.write("/fleet/hosts/t1/secrets/password", "geheim")
        desk.succeed("chmod 755 /usr/local/bin/nixos-anywhere")
        # a hub that knows hosts by the settings, as they are now
        desk.succeed("mkdir -p /srv/hub; BENTO_DIR=/fleet systemd-run --quiet --unit=hub --setenv=PATH=\"$PATH\" --setenv=BENTO_DIR=/fleet "
                     "-- bento hub serve --listen 0.0.0.0:2022")
        desk.wait_for_open_port(2022, timeout=30)
        hub = desk.succeed("ssh-keyscan -p 2022 127.0.0.1 2> /dev/null | sed -n 's/^[^ ]* \\(ssh-ed25519 .*\\)/\\1/p'").strip()
        text = AGENT.replace("@desk@", hub).replace("@admin@", self.keys["admin"]).replace('address = "192.168.1.1";', 'address = "192.168.1.1"; port = 2022;')
        desk.write("/fleet/change-t1.nix", change(text if agent else ""))
        # the disk that is meant, or whatever disk this machine has
        facts = [json.loads(line) for line in self.provision("--dry-run --json", works=None).splitlines() if line.startswith("{")]
        disks = next(event["facts"]["disks"] for event in facts if event["event"] == "facts")
        if not disks:
            raise Failure("this machine has no disk that could be named")
        self.disk = next((disk for disk in disks if disk["serial"] == TARGET), disks[0])
        self.word = self.disk["serial"] or self.disk["device"]

    def arguments(self, more):
        limits = " ".join(f"--timeout {phase}={seconds[self.bare]}" for phase, seconds in LIMITS.items())
        return f"provision t1 root@192.168.1.101 {limits} {more}"

    def provision(self, more, works=True, timeout=400):
        """Provisions; gives what was said."""
        if not hasattr(self, "disk") or works is None:
            self.desk.write("/fleet/disk.nix", DISK.replace("@device@", "/dev/nothing"))
        self.desk.succeed("cd /fleet && nix flake lock 2>&1")
        status, said = self.desk.execute(f"cd /fleet && bento {self.arguments(more)} 2>&1", timeout)
        if works is not None and (status == 0) != works:
            raise Failure(f"bento provision {more} ended with {status}:\n{said}\n{self.console_of_t1()}")
        return said

    def on_terminal(self, command, *talk, timeout=240):
        """Runs a command at the desk, on a terminal; `talk` says what is waited for, and what is typed then (or for how many seconds
        nothing is). Gives its status, and what was on the terminal."""
        words, environment = self.desk.inside(f"script --quiet --return --flush --command {shlex.quote(command)} /dev/null")
        terminal = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, seen, talk, deadline = "", 0, list(talk), time.monotonic() + timeout
        while True:
            if talk and talk[0][0] in said[seen:]:
                seen = said.index(talk[0][0], seen) + len(talk[0][0])
                _, typed = talk.pop(0)
                if isinstance(typed, str):
                    os.write(terminal.stdin.fileno(), typed.encode())
                else:
                    time.sleep(typed)
                continue
            if not select.select([terminal.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                terminal.kill()
                raise Failure(f"it does not end within {timeout} s, or does not say {talk}:\n{said}")
            part = os.read(terminal.stdout.fileno(), 65536)
            if not part:
                break
            said += part.decode(errors="replace")
        terminal.stdin.close()
        if talk:
            raise Failure(f"it has ended, and did not say {talk}:\n{said}")
        return terminal.wait(20), said

    def name_disk(self):
        self.desk.write("/fleet/disk.nix", DISK.replace("@device@", self.disk["device"]))

    def console_of_t1(self):
        machine = self.get("t1")
        return machine.execute("journalctl -b --no-pager -o cat -u 'bento-*' -u sshd -u ssh | tail -n 20")[1] + machine.console()[-1500:]

    def kill_in(self, phase, delay, more):
        """Provisions, and kills it and all that it started as soon as it says that it is in a phase, and a while later."""
        self.desk.succeed("rm -f /tmp/said")
        command = (f"cd /fleet && bento {self.arguments('--json ' + more)} 2> /tmp/said | while read -r line; do "
                   f"case $line in *'\"phase\":\"{phase}\"'*) sleep {delay}; systemctl kill --signal=KILL provision ;; esac; done")
        self.desk.succeed(f"systemd-run --quiet --unit=provision --setenv=PATH=\"$PATH\" --setenv=HOME=/root --setenv=NIX_REMOTE=local -- /bin/sh -c {shlex.quote(command)}")
        self.desk.wait_until_fails("systemctl is-active --quiet provision", 240)
        if "Result=signal" not in self.desk.execute("systemctl show -p Result provision")[1]:
            raise Failure(f"it had ended before it could be killed in {phase}: " + self.desk.execute("cat /tmp/said")[1])
        self.desk.succeed("systemctl reset-failed provision")

    def recorded(self):
        """The phases that nixos-anywhere was asked for, in order."""
        lines = self.desk.execute("cat /tmp/recorded 2> /dev/null")[1].splitlines()
        return [line.split()[1] for line in lines]

    # --- what is asserted

    def is_host(self, agent=True):
        """The machine runs the system that was meant, has the key that the settings know, and is up to date on the hub."""
        machine, desk = self.get("t1"), self.desk
        machine.connect()
        public = machine.succeed("cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub").strip()
        settings = desk.succeed("cat /fleet/bento.toml")
        if public not in settings or settings.count("ssh-ed25519") != 1:
            raise Failure(f"the settings do not know {public}:\n{settings}")
        if public in self.keys["t1"]:
            raise Failure("the machine has the key that it had before")
        if machine.succeed("stat -c %a /etc/ssh/ssh_host_ed25519_key / /etc /var /var/lib").split() != ["600", "755", "755", "755", "755"]:
            raise Failure("the modes are others: " + machine.succeed("stat -c '%n %a' /etc/ssh/ssh_host_ed25519_key / /etc /var /var/lib"))
        shown = next(host for host in json.loads(desk.succeed("cd /fleet && bento status --json 2> /dev/null")) if host["machine"] == "t1")
        running = machine.succeed("readlink /run/current-system").strip()
        if shown["state"] != "up-to-date" or running != "/nix/store/" + shown["local_version"]:
            raise Failure(f"t1 runs {running}, and the hub says {shown}")
        if agent:
            if shown["verified"] is not True:
                raise Failure(f"what it reports is not signed with its key: {shown}")
            if machine.succeed("cat /run/bento/secrets/password") != "geheim":
                raise Failure("its secret did not come along")
        # nothing is left of the run, the private key least of all
        desk.succeed("test -z \"$(ls -A /root/.local/state/bento/provision)\"")


SCENARIOS = []


def scenario(name, agent=True, quick=False, bare=False):
    def add(function):
        SCENARIOS.append((name, {"agent": agent, "bare": bare}, quick, function))
        return function
    return add


@scenario("provision: from Debian to a host that reports", quick=True)
def whole(lab):
    # first what would be done, and nothing is
    lab.name_disk()
    said = lab.provision("--dry-run")
    says(said, "would erase .*" + lab.disk["device"], "would install /nix/store/", "would run, for at most 60 s: nixos-anywhere --phases kexec", "its agent has reported")
    if lab.recorded() or lab.desk.execute("ls /root/.local/state/bento/provision")[0] == 0:
        raise Failure("a plan has done something")
    # nobody names the disk, or somebody another one
    says(lab.provision("", works=False), "nobody has named the disk", "--erase")
    says(lab.provision("--erase other", works=False), "nobody has named the disk")
    assert lab.recorded() == []
    start = time.monotonic()
    said = lab.provision(f"--erase {lab.word} -- --kexec /tmp/installer.tar.gz")
    says(said, "taking up what was begun", "published release 1", "its line in known_hosts: 192.168.1.101 ssh-ed25519 ")
    assert lab.recorded() == ["kexec", "disko", "install", "reboot"], lab.recorded()
    line = lab.desk.succeed("sed -n 3p /tmp/recorded")
    says(line, "--store-paths /nix/store/\\S+-disko /nix/store/\\S+-nixos-system-t1-\\S+ --extra-files \\S+ --kexec /tmp/installer.tar.gz --target-host root@192.168.1.101")
    lab.is_host()
    return f"{time.monotonic() - start:.0f} s"


@scenario("provision: a host without an agent", agent=False)
def without_agent(lab):
    lab.name_disk()
    says(lab.provision(f"--erase {lab.word}", works=False), "nothing would reach it any more: put push = .nixos://root@192.168.1.101. there")
    assert lab.recorded() == []
    lab.desk.write("/fleet/bento.toml", SETTINGS + '[hosts.t1]\npush = "nixos://root@192.168.1.101"\n')
    says(lab.provision(f"--erase {lab.word}"), "its secrets do not come along")
    lab.is_host(agent=False)


@scenario("provision: killed in every phase")
def killed(lab):
    lab.name_disk()
    lab.desk.succeed("cd /fleet && nix flake lock 2>&1")
    # so that phases are long enough to be met
    lab.desk.write("/tmp/pause", "2")
    for phase in PHASES:
        # what is done once and is over at once is begun anew, so that it is met
        anew = "--start-over" if phase in ("key", "build", "publish") else ""
        lab.kill_in(phase, 0.5 if phase in ("kexec", "disko", "install", "reboot") else 0, f"--erase {lab.word} {anew}")
        print(f"    killed in {phase}; nixos-anywhere was asked for {' '.join(lab.recorded())}", flush=True)
    says(lab.provision(""), "taking up what was begun")
    lab.is_host()


@scenario("provision: phases that fail, or do not end")
def failing(lab):
    lab.name_disk()
    for phase in ("kexec", "disko", "install", "reboot"):
        lab.desk.write("/tmp/fail", phase)
        says(lab.provision(f"--erase {lab.word}", works=False), "nixos-anywhere ended with exit status: 7", "no luck", "goes on from there")
        lab.desk.succeed("rm /tmp/fail")
        lab.desk.write("/tmp/hang", phase)
        says(lab.provision(f"--erase {lab.word} --timeout {phase}=3", works=False), "did not end within 3 s and was killed")
        for machine in (lab.desk, lab.get("t1")):
            machine.succeed("! pgrep -x sleep -a | grep 600")
        lab.desk.succeed("rm /tmp/hang")
    lab.provision(f"--erase {lab.word}")
    lab.is_host()


@scenario("provision: on a terminal, with Ctrl-C")
def on_a_terminal(lab):
    lab.name_disk()
    lab.desk.succeed("cd /fleet && nix flake lock 2>&1")
    command = f"cd /fleet && exec bento {lab.arguments('')}"
    question = f"Type {lab.word} to erase {lab.disk['device']}: "
    # another disk, nothing at all, the end of the input, an interruption: nothing was done
    for typed, words in (("sda\r", "\"sda\" is not .*: nothing was erased"), ("\r", "\"\" is not .*: nothing was erased"), (END, "\"\" is not .*: nothing was erased"),
                         (INTERRUPT, "\\^C")):
        status, said = lab.on_terminal(command, (question, typed))
        says(said, words)
        assert status != 0 and lab.recorded() == [], said
    # what is interrupted ends there as well, and is taken up where it was
    phases = ["kexec", "disko", "install", "reboot"]
    for number, phase in enumerate(phases):
        lab.desk.write("/tmp/hang", phase)
        named = [(question, lab.word + "\r")] if phase == "kexec" else []
        status, said = lab.on_terminal(command, *named, (f"### {phase} ###", 1), ("", INTERRUPT))
        says(said, "interrupted: nixos-anywhere was ended", "the same command again goes on from there", *(["what was still at work there was ended"] if phase in ("disko", "install") else []))
        assert status == 1, status
        for machine in (lab.desk, lab.get("t1")):
            machine.succeed("! pgrep -x sleep -a | grep 600")
        assert lab.recorded()[-1] == phase, lab.recorded()
        lab.desk.succeed("rm /tmp/hang")
    status, said = lab.on_terminal(command)
    says(said, "taking up what was begun .* done is: .*kexec, disko, .*install")
    assert status == 0 and question not in said, said
    lab.is_host()


@scenario("provision: a machine that does not come back, or says nothing")
def silent(lab):
    lab.name_disk()
    lab.desk.write("/extra/etc/motd", "hello\n")
    lab.desk.succeed("cp -r /extra /other; systemctl stop hub")
    says(lab.provision(f"--erase {lab.word} --extra-files /other --timeout report=5", works=False), "its agent did not report within 5 s")
    assert lab.get("t1").succeed("cat /etc/motd") == "hello\n"
    lab.desk.succeed("systemd-run --quiet --unit=hub --setenv=PATH=\"$PATH\" --setenv=BENTO_DIR=/fleet -- bento hub serve --listen 0.0.0.0:2022")
    lab.get("t1").shutdown()
    # off: what is waited for has an end
    says(lab.provision("--timeout return=5", works=False), "did not come back|waiting for the host's report")
    lab.get("t1").start()
    lab.provision("")
    lab.is_host()


@scenario("provision: nixos-anywhere, a kernel and disks", bare=True)
def real(lab):
    desk, machine = lab.desk, lab.get("t1")
    desk.write("/fleet/disk.nix", DISK.replace("@device@", f"/dev/disk/by-id/virtio-{TARGET}"))
    desk.succeed("cd /fleet && nix flake lock 2>&1")
    # C++ Nix is not where it was made for, so it does not find its own hook
    tools = f"NIX_CONFIG='build-hook =' PATH={os.environ['BENTO_NIX']}:$PATH strace -f -qq --seccomp-bpf -e trace=execve -e signal=none -s 4000 -o /tmp/commands"
    program = "--nixos-anywhere /usr/local/lib/nixos-anywhere/nixos-anywhere.sh"
    start = time.monotonic()
    status, said = desk.execute(f"cd /fleet && {tools} bento {lab.arguments(f'{program} --erase {lab.word} -- --kexec /installer.tar')} 2>&1", 2400)
    commands = executed(desk.succeed("cat /tmp/commands"))
    if "BENTO_RECORD" in os.environ:
        Path(os.environ["BENTO_RECORD"]).write_text(said + "\n" + "".join(f"$ {shlex.join(words)}\n" for words in commands))
    if status != 0:
        raise Failure(f"bento provision ended with {status}:\n{said}\n{machine.console()}")
    took = time.monotonic() - start
    # what it saw of the machine, with an eye on each disk
    says(said, "debian runs Debian GNU/Linux", "x86_64, 2[89][0-9][0-9] MiB, EFI", f"disk /dev/vda: of no known model, serial {TARGET}, 4.2 GB", "serial DEBIAN0001",
         f"all that is on this disk will be lost: /dev/vda: .* as /dev/disk/by-id/virtio-{TARGET}")
    for step in ("Uploading install SSH keys", "Switching system into kexec", "Formatting hard drive with disko", "Uploading the system closure",
                 "Copying extra files", "Installing NixOS", "installing the boot loader", "Rebooting"):
        says(said, step)
    lines = [shlex.join(words) for words in commands]
    for command in ("^ssh-copy-id ", r"^nix .*copy .*--to 'ssh://root@192\.168\.1\.101\?compress=true' /nix/store/\S+-disko$",
                    r"^nix .*copy .*remote-store=local%3Froot=%2Fmnt.* /nix/store/\S+-nixos-system-t1", "^cat /installer.tar$", "^tar -C /root/.local/state/bento/provision/t1/extra"):
        if not any(re.search(command, line) for line in lines):
            raise Failure(f"{command} was not run; but:\n" + "\n".join(lines))
    lab.is_host()
    # it runs from the disk that was named, and the other one is as it was
    machine.succeed("test $(findmnt -no SOURCE /) = /dev/vda2; test $(findmnt -no SOURCE /boot) = /dev/vda1")
    assert machine.succeed("mkdir /tmp/debian && mount -o ro /dev/vdb2 /tmp/debian && cat /tmp/debian/etc/hostname; umount /tmp/debian").strip() == "debian"
    return f"{took:.0f} s, {len(commands)} commands at the desk"


def executed(trace):
    """The commands in what strace wrote, in order: those that could be run, each as its words, without their folder."""
    commands = []
    for line in trace.splitlines():
        found = re.match(r'\d+\s+execve\("((?:[^"\\]|\\.)*)", \[(.*)\], 0x\w+ /\* \d+ vars \*/\) = 0$', line)
        if found:
            words = [json.loads(re.sub(r"\\([0-7]{1,3})", lambda match: f"\\u{int(match.group(1), 8):04x}", word)) for word in re.findall(r'"(?:[^"\\]|\\.)*"', found.group(2))]
            commands.append([words[0].rsplit("/", 1)[-1], *words[1:]])
    return commands


def main():
    arguments = push.options("base", "packages", "disks").parse_args()
    lacks, able = bare.lacks(arguments.packages, arguments.disks), SCENARIOS
    if lacks:
        able = [entry for entry in SCENARIOS if not entry[1]["bare"]]
        for name, _, quick, _ in (entry for entry in SCENARIOS if entry[1]["bare"]):
            if (quick or not arguments.quick) and (not arguments.names or any(part in name for part in arguments.names)):
                print(f"skipped: {name}: {lacks}", flush=True)
                if arguments.names and not any(part in entry[0] for entry in able for part in arguments.names):
                    sys.exit(77)
    push.perform(
        able, arguments,
        make=lambda: Lab(arguments.base, arguments.packages, arguments.disks, arguments.work),
        prepare=lambda lab, kind: lab.fresh(**kind),
    )


if __name__ == "__main__":
    main()
