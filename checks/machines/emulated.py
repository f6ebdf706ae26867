"""Machines with firmware and a kernel of their own: QEMU without acceleration, on which the fixture distribution boots Debian's
kernel by systemd-boot or by GRUB, from a disk. They have the calls of the containers, and are on the same network.
"""

import base64
import json
import queue
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

from driver import BRIDGE, Machine, run
from fleet import Failure

FIRMWARE = Path("/usr/share/OVMF")
# what the initrd loads, after what these need
MODULES = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "vfat", "nls_cp437", "nls_ascii", "efivarfs"]
INITRD = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in @modules@; do insmod /modules/$module.ko; done
# a new kernel that does not work
case " $(cat /proc/cmdline) " in *" broken "*) echo c > /proc/sysrq-trigger ;; esac
ip link set eth0 name host0
root=/dev/vda2
for word in $(cat /proc/cmdline); do case $word in root=*) root=${word#root=} ;; esac; done
mount -t ext4 "$root" /root
for folder in dev proc sys; do mount --move /$folder /root/$folder; done
mount -t tmpfs -o mode=755 run /root/run
for word in $(cat /root/proc/cmdline); do
  case $word in init=*) exec switch_root /root "${word#init=}" ;; esac
done
"""
GRUB = """search --label root --set=root
set prefix=($root)/boot/grub
"""
GRUB_MODULES = ["part_gpt", "fat", "ext2", "search", "search_label", "normal", "linux", "loadenv", "test", "echo", "configfile", "reboot"]
ESP = 192 << 20


def lacks():
    """What this machine lacks to have such machines; nothing if it can."""
    for program in ("qemu-system-x86_64", "qemu-img", "mformat", "mcopy", "sfdisk", "mkfs.ext4"):
        if not shutil.which(program):
            return f"there is no {program}"
    if not (FIRMWARE / "OVMF_CODE_4M.fd").exists():
        return "there is no OVMF"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return None


def copy_modules(packages, folder, wanted=MODULES):
    """Copies modules of the kernel's, and what they need; gives their names, in the order in which they can be loaded."""
    folder.mkdir(parents=True)
    files = {file.stem: file for file in (packages / "usr/lib/modules").rglob("*.ko")}
    loaded = []

    def load(module):
        # one that is not there is in the kernel
        if module in files and module not in loaded:
            needs = re.search(rb"\0depends=([^\0]*)", files[module].read_bytes()).group(1).decode()
            for needed in filter(None, needs.split(",")):
                load(needed)
            loaded.append(module)
            shutil.copy(files[module], folder)

    for module in wanted:
        load(module)
    return loaded


def make_kernel(packages, folder):
    """A kernel and an initrd, from Debian's packages, for /machine."""
    folder.mkdir(parents=True)
    kernel = next((packages / "boot").glob("vmlinuz-*"))
    shutil.copy(kernel, folder / "kernel")
    tree = folder / "tree"
    for name in ("bin", "proc", "sys", "dev", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(packages / "usr/bin/busybox", tree / "bin/busybox")
    loaded = copy_modules(packages, tree / "modules")
    (tree / "init").write_text(INITRD.replace("@modules@", " ".join(loaded)))
    (tree / "init").chmod(0o755)
    run("sh", "-c", "find . | cpio --quiet -o -H newc -R 0:0 > ../initrd", cwd=tree)
    shutil.rmtree(tree)


def make_disk(disk, root, packages, loader):
    """A disk with the files below `root`: those in /boot on the firmware's partition, if the loader is systemd-boot."""
    work = disk.parent / "partitions"
    work.mkdir()
    efi = work / "BOOTX64.EFI"
    if loader == "grub":
        (work / "grub.cfg").write_text(GRUB)
        run(packages / "usr/bin/grub-mkimage", "-d", packages / "usr/lib/grub/x86_64-efi", "-O", "x86_64-efi", "-c", work / "grub.cfg", "-p", "/boot/grub",
            "-o", efi, *GRUB_MODULES)
    else:
        shutil.copy(packages / "usr/lib/systemd/boot/efi/systemd-bootx64.efi", efi)
    esp, ext4 = work / "esp", work / "ext4"
    for file, size in ((esp, ESP), (ext4, 3 << 30)):
        with open(file, "wb") as sparse:
            sparse.truncate(size)
    run("mformat", "-i", esp, "-F", "::")
    run("mmd", "-i", esp, "::EFI", "::EFI/BOOT")
    run("mcopy", "-i", esp, efi, "::EFI/BOOT/BOOTX64.EFI")
    if loader == "systemd-boot":
        run("mcopy", "-s", "-i", esp, *sorted((root / "boot").iterdir()), "::")
        shutil.rmtree(root / "boot")
        (root / "boot").mkdir()
    run("mkfs.ext4", "-q", "-L", "root", "-d", root, ext4)
    first = 2048
    second = first + ESP // 512
    with open(disk, "wb") as sparse:
        sparse.truncate(((second + 2048) * 512) + (3 << 30))
    run("sfdisk", "--quiet", disk, input=f"label: gpt\nstart={first}, size={ESP // 512}, type=U\nstart={second}, size={(3 << 30) // 512}, type=L\n")
    for file, start in ((esp, first), (ext4, second)):
        run("dd", f"if={file}", f"of={disk}", "bs=1M", "conv=notrunc,sparse", f"seek={start * 512}", "oflag=seek_bytes", "status=none")
    shutil.rmtree(work)


def lines(connection):
    """What is said on a connection, until it ends; also if its other end was killed."""
    try:
        yield from connection.makefile("r", errors="replace")
    except (OSError, ValueError):
        pass


class Emulated(Machine):
    """A machine with firmware. What it writes is kept in `work`; at first its disk is as `disk` is."""

    patience = 240
    # in MiB
    memory = 1024

    def __init__(self, name, disk, work):
        super().__init__(name, work)
        self.disk = disk
        self.door = self.monitor = None
        self.number = 0
        self.answers = {}
        self.replies = queue.Queue()
        # the memory that it goes on with when it is switched on
        self.memory_image = None

    # --- life

    def reset(self):
        self.make(self.disk, "raw", FIRMWARE / "OVMF_VARS_4M.fd")

    def make(self, disk, form, variables):
        """Makes it with what is on a disk of this format, and what its firmware knows."""
        self.destroy()
        self.memory_image = None
        self.work.mkdir(parents=True)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", disk, self.work / "disk")
        shutil.copy(variables, self.work / "variables")
        run("ip", "tuntap", "add", "dev", self.link(), "mode", "tap")
        run("ip", "link", "set", self.link(), "master", BRIDGE, "up")

    def destroy(self):
        if self.work.exists():
            self.crash()
            run("ip", "tuntap", "del", "dev", self.link(), "mode", "tap")
        super().destroy()

    def is_there(self):
        return self.work.exists()

    def freeze(self, folder):
        """Keeps in a folder what it is now, while it runs: its disk and its memory. It is off then."""
        folder.mkdir(parents=True)
        self.ask("migrate", uri=f"exec:cat > {folder}/memory")
        while (status := self.ask("query-migrate")["status"]) != "completed":
            if status in ("failed", "cancelled"):
                raise Failure(f"{self.name} can't be frozen")
            time.sleep(0.1)
        self.crash()
        for name in ("disk", "variables", "console.log"):
            shutil.move(self.work / name, folder / name)

    def thaw(self, folder):
        """Makes it what it was when it was frozen; when it is switched on it goes on from there."""
        self.make(folder / "disk", "qcow2", folder / "variables")
        shutil.copy(folder / "console.log", self.work)
        self.memory_image = folder / "memory"

    def ask(self, command, **arguments):
        """Has QEMU itself do something; gives what it answers."""
        self.monitor.sendall(json.dumps({"execute": command, "arguments": arguments, "id": command}).encode() + b"\n")
        reply = self.replies.get(timeout=60)
        if "error" in reply:
            raise Failure(f"{self.name}: {command}: {reply['error']['desc']}")
        return reply["return"]

    def boot(self):
        door, monitor = self.work / "door", self.work / "monitor"
        for file in (door, monitor):
            file.unlink(missing_ok=True)
        console = open(self.work / "console.log", "ab")
        image, self.memory_image = self.memory_image, None
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", "q35,smm=off,hpet=off", "-accel", "tcg", "-cpu", "Nehalem", "-m", str(self.memory), "-nographic",
             "-monitor", "none", "-serial", "stdio", "-no-reboot", "-qmp", f"unix:{monitor},server=on,wait=off",
             "-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.fd",
             "-drive", f"if=pflash,format=raw,file={self.work}/variables",
             *self.drives(), *(["-incoming", f"exec:cat {image}"] if image else []),
             "-netdev", f"tap,id=net,ifname={self.link()},script=no,downscript=no", "-device", "virtio-net-pci,netdev=net,romfile=",
             "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
             "-chardev", f"socket,path={door},server=on,wait=off,id=door", "-device", "virtserialport,chardev=door,name=door"],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        self.door, self.monitor = self.connection(door), self.connection(monitor)
        self.monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
        threading.Thread(target=self.listen, args=(self.door,), daemon=True).start()

    def drives(self):
        """Its disks, as options of QEMU's."""
        return ["-drive", f"if=virtio,format=qcow2,cache=unsafe,file={self.work}/disk"]

    def connection(self, path):
        """A connection to a socket that QEMU is about to make."""
        while True:
            if self.process.poll() is not None:
                raise Failure(f"{self.name} can't be emulated:\n{self.console()}")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
                time.sleep(0.05)

    def firmware(self):
        """Boots it again whenever it restarts, as long as it is on: in a new QEMU, as the firmware does not always come back from a
        restart in the same."""
        while True:
            process, restarts = self.process, False
            for line in lines(self.monitor):
                restarts = restarts or '"guest-reset"' in line
                if '"id"' in line and line.endswith("\n"):
                    self.replies.put(json.loads(line))
            # somebody else has ended it
            if self.process is not process:
                return
            process.wait()
            if not restarts:
                self.on = False
            if not self.on:
                return
            self.boot()

    def listen(self, door):
        """Takes the answers, for as long as this boot lasts."""
        for line in lines(door):
            words = line.split()
            if len(words) in (2, 3) and words[0].isdigit() and words[1].isdigit():
                self.answers[int(words[0])] = int(words[1]), base64.b64decode(words[2] if len(words) == 3 else "")

    def firmware_starts(self):
        """How many times its firmware has started a boot loader."""
        return self.all_console().count("BdsDxe: starting")

    def crash(self):
        self.on = False
        process, self.process = self.process, None
        if process:
            process.kill()
            process.wait()

    # --- commands

    def execute(self, command, timeout=900):
        if not self.on:
            return 255, f"{self.name} is off"
        self.number += 1
        number = self.number
        try:
            self.door.sendall(f"{number} {base64.b64encode(command.encode()).decode()}\n".encode())
        except OSError:
            return 255, f"{self.name} is off"
        deadline, door = time.monotonic() + timeout, self.door
        while number not in self.answers:
            # what a boot did not answer no other one will
            if time.monotonic() > deadline or not self.on or self.door is not door:
                return 124, f"{self.name} does not answer"
            time.sleep(0.05)
        status, output = self.answers.pop(number)
        return status, output.decode(errors="replace")

    def write(self, path, text):
        self.succeed(f"mkdir -p $(dirname {path}); echo {base64.b64encode(text.encode()).decode()} | base64 -d > {path}")
