"""Bare machines: emulated ones with Debian on a disk and nothing on another, for nixos-anywhere itself to install. Whoever drives one
reaches it by ssh alone.

Debian's kernel starts an installer by kexec. It comes in an archive of the shape of nixos-images', which
BENTO_NIXOS_IMAGES names a checkout of: the program that starts it is theirs. The system in it has Debian's files, as NixOS's own
can't be had without nixpkgs' binaries; it installs by nixpkgs' nixos-install and nixos-enter.
"""

import os
import re
import shlex
import shutil
from base64 import b64encode
from pathlib import Path

import emulated
from driver import overlay, run
from emulated import Emulated

TARGET = "TARGET0001"
# what the kernel starts in the installer, with what kexec's program has brought along beside it
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 run /run
for module in @modules@; do insmod /modules/$module.ko; done
mount -t efivarfs efivarfs /sys/firmware/efi/efivars
ip link set eth0 name host0
mkdir -p -m 700 /root/.ssh
install -m 400 /ssh/authorized_keys /root/.ssh
install -m 600 /ssh/ssh_host_* /etc/ssh
units=/run/systemd/system
mkdir -p $units/multi-user.target.wants
cat > $units/restore-network.service << 'UNIT'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/restore-network
UNIT
ln -s $units/restore-network.service /lib/systemd/system/ssh.service $units/multi-user.target.wants
# nobody needs them here, and a login does not wait for them
for unit in dbus.service dbus.socket systemd-logind.service e2scrub_reap.service getty@tty1.service; do ln -s /dev/null $units/$unit; done
exec /lib/systemd/systemd
"""
# the address that the machine had before
RESTORE = r"""#!/bin/sh
address=$(sed 's|.*"ifname":"host0".*"family":"inet","local":"\([^"]*\)","prefixlen":\([0-9]*\).*|\1/\2|' /addrs.json)
ip address replace "$address" dev host0
ip link set host0 up
"""
# NixOS's systems have all that they run in their closures; those of the fixture distribution run on Debian's files
INSTALL = """#!/bin/sh
set -e
tar -C / --one-file-system --exclude=./nix --exclude=./mnt --exclude=./init --exclude=./modules --exclude=./ssh --exclude=./root \\
  --exclude='./*.json' --exclude='./etc/ssh/ssh_host_*' --exclude=./usr/local/sbin --exclude=./etc/nix --exclude=./etc/os-release -cf - . | tar -C /mnt --skip-old-files -xf -
mkdir -p -m 700 /mnt/root
bash /usr/local/lib/nixos-install.sh "$@"
bootctl --esp-path=/mnt/boot install
"""
OS = 'NAME=NixOS\nID=nixos\nPRETTY_NAME="NixOS (the installer of a test)"\nVARIANT_ID=installer\n'
DEBIAN = """[Unit]
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip address replace 192.168.1.101/24 dev host0; ip link set host0 up'
[Install]
WantedBy=multi-user.target
"""
ENTRY = """title Debian
linux /vmlinuz
initrd /initrd
options root=/dev/vdb2 init=/lib/systemd/systemd console=ttyS0 quiet systemd.show_status=0 systemd.journald.forward_to_console=1 systemd.getty_auto=0
"""
# what no machine of these needs
DEAD_WEIGHT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/lib/modules", "usr/lib/grub", "usr/include",
               "usr/share/perl", "usr/share/perl5", "usr/share/zoneinfo", "usr/lib/x86_64-linux-gnu/perl", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/apt",
               "var/lib/apt", "var/lib/dpkg", "var/cache/apt", "boot")


def lacks(packages, disks):
    """What this machine lacks to have such machines, and nixos-anywhere for them; nothing if it can."""
    for variable, file in (("BENTO_NIXOS_ANYWHERE", "src/nixos-anywhere.sh"), ("BENTO_NIXOS_IMAGES", "nix/kexec-installer/kexec-run.sh"),
                           ("BENTO_CORPORA", "nixpkgs-26.11/pkgs/by-name/ni/nixos-install/nixos-install.sh"), ("BENTO_NIX", "nix")):
        if variable not in os.environ:
            return f"{variable} names no folder with {file}"
        if not (Path(os.environ[variable]) / file).exists():
            return f"there is no {file} in {os.environ[variable]}, which {variable} names"
    if not Path(packages).is_dir() or not Path(disks).is_dir():
        return "the packages for emulated machines can't be had"
    # what a kernel that is emulated unpacks fastest
    return emulated.lacks() or (None if shutil.which("zstd") else "there is no zstd")


def lighten(root):
    """Takes away what is not needed of a machine's files."""
    for name in DEAD_WEIGHT:
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "boot").mkdir()


def write(root, path, text, mode=0o644):
    """Writes a file of a machine's, whatever was there."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_text(text)
    file.chmod(mode)


def make_debian(disk, lowers, packages, kernel, key, admin):
    """A disk with Debian, which has this key (a file), and lets an administrator in (the public key)."""
    place = disk.parent / "debian"
    root = overlay(place, lowers)
    lighten(root)
    (root / "etc/NIXOS").unlink(missing_ok=True)
    write(root, "etc/hostname", "debian\n")
    for kind, mode in (("", 0o600), (".pub", 0o644)):
        write(root, f"etc/ssh/ssh_host_ed25519_key{kind}", Path(f"{key}{kind}").read_text(), mode)
    write(root, "root/.ssh/authorized_keys", admin + "\n", 0o600)
    (root / "root/.ssh").chmod(0o700)
    write(root, "etc/systemd/system/address.service", DEBIAN)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "address.service").symlink_to("/etc/systemd/system/address.service")
    (wants / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
    write(root, "boot/loader/loader.conf", "default debian.conf\n")
    write(root, "boot/loader/entries/debian.conf", ENTRY)
    shutil.copy(kernel / "kernel", root / "boot/vmlinuz")
    shutil.copy(kernel / "initrd", root / "boot/initrd")
    emulated.make_disk(disk, root, packages, "systemd-boot")
    run("umount", str(root))
    shutil.rmtree(place)


def make_installer(archive, lowers, packages, kernel, programs):
    """The archive that nixos-anywhere is told of. `programs` are files of this machine's that are on every host, by their place there."""
    place = archive.parent / "installer"
    root = overlay(place, lowers)
    lighten(root)
    (root / "etc/NIXOS").unlink(missing_ok=True)
    write(root, "etc/os-release", OS)
    write(root, "etc/hostname", "installer\n")
    write(root, "etc/nix/nix.conf", "build-users-group =\nsandbox = false\nsubstituters =\n")
    modules = emulated.copy_modules(packages, root / "modules")
    write(root, "init", INIT.replace("@modules@", " ".join(modules)), 0o755)
    write(root, "usr/local/sbin/restore-network", RESTORE, 0o755)
    write(root, "usr/local/sbin/nixos-install", INSTALL, 0o755)
    scripts = Path(os.environ["BENTO_CORPORA"]) / "nixpkgs-26.11/pkgs/by-name/ni"
    for name, file in (("nixos-install", "usr/local/lib/nixos-install.sh"), ("nixos-enter", "usr/local/sbin/nixos-enter")):
        text = (scripts / name / f"{name}.sh").read_text()
        # as nixpkgs' packages do it, with Debian's programs
        write(root, file, re.sub("@path@:", "", text).replace("@runtimeShell@", "/bin/bash"), 0o755)
    for file, source in programs.items():
        target = root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, dirs_exist_ok=True) if Path(source).is_dir() else shutil.copy(source, target)
    image = archive.parent / "image/kexec"
    image.mkdir(parents=True)
    run("sh", "-c", f"find . -xdev | cpio --quiet -o -H newc -R 0:0 | zstd --quiet -3 > {shlex.quote(str(image / 'initrd'))}", cwd=root)
    run("umount", str(root))
    shutil.rmtree(place)
    starter = (Path(os.environ["BENTO_NIXOS_IMAGES"]) / "nix/kexec-installer/kexec-run.sh").read_text()
    starter = starter.replace("@init@", "/init").replace("@kernelParams@", "console=ttyS0 quiet systemd.show_status=0 systemd.journald.forward_to_console=1 systemd.getty_auto=0")
    write(image, "run", starter, 0o755)
    shutil.copy(kernel / "kernel", image / "bzImage")
    # Debian's, as they are there
    for name in ("kexec", "ip"):
        write(image, name, f'#!/bin/sh\nexec {name} "$@"\n', 0o755)
    run("tar", "-C", image.parent, "-cf", archive, "kexec")
    shutil.rmtree(image.parent)


class Bare(Emulated):
    """A machine with a disk that has nothing on it, and one that has Debian (`disk`). `desk` is the machine that reaches it."""

    patience = 240
    memory = 3072

    def __init__(self, name, address, disk, work, desk):
        super().__init__(name, disk, work)
        self.address, self.desk = address, desk

    def reset(self):
        super().reset()
        run("qemu-img", "create", "-q", "-f", "qcow2", self.work / "target", "4G")

    def drives(self):
        words = []
        for file, serial in (("target", TARGET), ("disk", "DEBIAN0001")):
            words += ["-drive", f"if=none,id={file},format=qcow2,cache=unsafe,file={self.work}/{file}",
                      "-device", f"virtio-blk-pci,drive={file},serial={serial}"]
        return words

    def execute(self, command, timeout=900):
        if not self.on:
            return 255, f"{self.name} is off"
        script = f"export PATH=/run/current-system/sw/bin:/usr/local/bin:$PATH; {command}"
        over = f"echo {b64encode(script.encode()).decode()} | base64 -d | sh"
        return self.desk.execute(
            "ssh -o BatchMode=yes -o LogLevel=ERROR -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 "
            f"root@{self.address} {shlex.quote(over)}", timeout)
