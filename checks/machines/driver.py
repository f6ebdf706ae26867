"""Machines to test on, in a network of their own, that boot the fixture distribution with a real systemd: containers of
systemd-nspawn here, and emulated ones in emulated.py. They have the calls of the NixOS test driver's machines, so that a script
can run on either.

Everything is in name spaces of the process that `checks/machines/run` starts, and ends with it.
"""

import argparse
import fcntl
import hashlib
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

from fleet import Failure

BRIDGE = "br0"
BOOK = Path(__file__).resolve().parent.parent.parent / "docs/src/scenarios.md"
# where systemd keeps track of processes: a hierarchy of its own, the unified one, or both
HIERARCHIES = [group for group in (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified")) if group.is_dir()] or [Path("/sys/fs/cgroup")]


def measure_slowness():
    """How many times longer this machine takes now than one of our own that has nothing else to do: limits for what machines do are
    multiplied by it, or other work on this one would pass for their failure."""
    begin = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)
    # which takes 0.8 s there
    return min(max((time.monotonic() - begin) / 0.8, 1), 8)


SLOWNESS = measure_slowness()


def run(*command, **options):
    """Runs a program of this machine; its output is shown only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise Failure(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def overlay(place, lowers):
    """Folders over one another, the uppermost first, with one of their own for what is written: upper/ in `place`. Gives root/
    there, where they are seen."""
    for folder in ("upper", "scratch", "root"):
        (place / folder).mkdir(parents=True)
    options = f"lowerdir={':'.join(map(str, lowers))},upperdir={place}/upper,workdir={place}/scratch"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(place / "root"))
    return place / "root"


def write_row(heading, names, name, cells=None):
    """Puts a scenario's row in the book's table with this heading in the place of its last one, in the order of `names`; without
    cells, takes it out."""
    with open(BOOK) as lock:
        # other lanes write theirs
        fcntl.flock(lock, fcntl.LOCK_EX)
        replace_row(heading, names, name, cells)


def replace_row(heading, names, name, cells):
    before, found, after = BOOK.read_text().partition(heading + "\n")
    if not found:
        raise Failure(f"{BOOK} has no table with the heading {heading}")
    rule, *rest = after.splitlines()
    length = next((number for number, line in enumerate(rest) if not line.startswith("|")), len(rest))
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in rest[:length]}
    rows.pop(name, None)
    if cells:
        # paths differ from run to run
        plain = [re.sub(r"/nix/store/[a-z0-9]{32}-", "…-", cell).replace("|", "\\|").replace("\n", " ") for cell in cells]
        rows[name] = f"| {' | '.join([name, *plain])} |"
    lines = [rule, *(rows[known] for known in names if known in rows), *rest[length:]]
    BOOK.write_text(before + heading + "\n" + "".join(line + "\n" for line in lines))


class Machine:
    """What all kinds of machines have in common. What a machine writes is kept in `work`."""

    # how long one may take to come up or to go down, in seconds of a machine that has nothing else to do
    patience = 60

    def __init__(self, name, work):
        self.name = name
        self.work = Path(work) / name
        self.process = None
        self.on = False

    # --- life

    def destroy(self):
        """Ends it, and removes its files."""
        self.crash()
        shutil.rmtree(self.work, ignore_errors=True)

    def start(self, wait=True):
        """Switches it on."""
        if self.on:
            return
        if not self.is_there():
            self.reset()
        self.on = True
        self.boot()
        threading.Thread(target=self.firmware, daemon=True).start()
        if wait:
            self.connect()

    def connect(self, timeout=None):
        """Waits until it is up."""
        timeout = SLOWNESS * (timeout or self.patience)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.on:
                raise Failure(f"{self.name} does not come up:\n{self.console()}")
            if self.execute("systemctl is-system-running", timeout=10)[1].strip() in ("running", "degraded"):
                return
            time.sleep(0.1)
        raise Failure(f"{self.name} does not come up within {timeout:.0f} s:\n{self.console()}")

    def all_console(self):
        """What it has printed since it was reset."""
        log = self.work / "console.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def console(self):
        """The end of that."""
        return self.all_console()[-3000:]

    def wait_for_shutdown(self):
        """Waits until it is off."""
        timeout = SLOWNESS * self.patience
        deadline = time.monotonic() + timeout
        while self.on:
            if time.monotonic() > deadline:
                raise Failure(f"{self.name} does not go down within {timeout:.0f} s")
            time.sleep(0.1)
        self.process = None

    def shutdown(self):
        """Has it go down."""
        if self.on:
            self.execute("systemctl poweroff --no-block")
            self.wait_for_shutdown()

    def reboot(self):
        """Has it go down and come up."""
        boot = self.boot_id()
        self.execute("systemctl reboot --no-block")
        self.wait_for_reboot(boot)

    def boot_id(self):
        return self.succeed("cat /proc/sys/kernel/random/boot_id").strip()

    def wait_for_reboot(self, boot, timeout=None):
        """Waits until it is up in another boot than the one of this id."""
        timeout = SLOWNESS * (timeout or 2 * self.patience)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status, now = self.execute("cat /proc/sys/kernel/random/boot_id", timeout=10)
            if status == 0 and now.strip() != boot:
                return self.connect()
            time.sleep(0.2)
        raise Failure(f"{self.name} does not restart within {timeout:.0f} s:\n{self.console()}")

    # --- commands

    def succeed(self, *commands, timeout=900):
        """The commands must end with status 0; gives what they print."""
        printed = ""
        for command in commands:
            status, output = self.execute(command, timeout)
            if status != 0:
                raise Failure(f"{self.name}: {command} ended with {status}:\n{output}")
            printed += output
        return printed

    def fail(self, *commands, timeout=900):
        """The commands must end with another status than 0; gives what they print."""
        printed = ""
        for command in commands:
            status, output = self.execute(command, timeout)
            if status == 0:
                raise Failure(f"{self.name}: {command} should have failed:\n{output}")
            printed += output
        return printed

    def wait_until_succeeds(self, command, timeout=900):
        timeout *= SLOWNESS
        deadline = time.monotonic() + timeout
        while True:
            status, output = self.execute(command, timeout)
            if status == 0:
                return output
            if time.monotonic() > deadline:
                raise Failure(f"{self.name}: {command} does not succeed within {timeout:.0f} s:\n{output}")
            time.sleep(0.2)

    def wait_until_fails(self, command, timeout=900):
        self.wait_until_succeeds(f"! ( {command} )", timeout)

    def wait_for_unit(self, unit, timeout=900):
        unit = unit if "." in unit else f"{unit}.service"
        self.wait_until_succeeds(f"systemctl is-active --quiet {unit}", timeout)

    def wait_for_file(self, path, timeout=900):
        self.wait_until_succeeds(f"test -e {path}", timeout)

    def wait_for_open_port(self, port, addr="localhost", timeout=900):
        self.wait_until_succeeds(f"nc -z {addr} {port}", timeout)

    def systemctl(self, words):
        return self.execute(f"systemctl {words}")

    def get_unit_property(self, unit, name):
        return self.succeed(f"systemctl show -p {name} --value {unit}").strip()

    # --- the network

    def link(self):
        """The other end of its cable."""
        return f"vb-{self.name}"[:15]

    def block(self):
        """Pulls its cable."""
        run("ip", "link", "set", self.link(), "down")

    def unblock(self):
        run("ip", "link", "set", self.link(), "up")


class Container(Machine):
    """A container. `lowers` are the folders that its files come from, the uppermost first; `binds` what it sees of this machine;
    `words` are for the kernel's command line."""

    def __init__(self, name, lowers, work, binds, words=()):
        super().__init__(name, work)
        self.words = words
        self.lowers = lowers
        self.binds = binds
        self.leader = None

    # --- life

    @property
    def root(self):
        return self.work / "root"

    def reset(self):
        """Makes it as it was at first; it is off then."""
        self.destroy()
        overlay(self.work, self.lowers)

    def destroy(self):
        self.crash()
        if self.root.is_mount():
            run("umount", "-l", str(self.root))
        super().destroy()

    def is_there(self):
        """Whether it has been made."""
        return self.root.is_mount()

    def firmware(self):
        """Boots it again whenever it restarts or panics, as long as it is on."""
        while self.on:
            # what has switched itself off ends with 0
            if self.process.wait() == 0:
                self.on = False
            if self.on:
                self.leader = None
                self.boot()

    def boot(self):
        console = open(self.work / "console.log", "ab")
        command = ["systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self.name}", "--register=no",
                   "--keep-unit", f"--network-bridge={BRIDGE}", "--kill-signal=SIGRTMIN+3", "--console=pipe",
                   "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        command += [f"--bind-ro={bind}" for bind in self.binds]
        self.process = subprocess.Popen([*command, "/sbin/bootloader", *self.words], stdin=subprocess.DEVNULL, stdout=console, stderr=console, preexec_fn=self.own_group)

    def own_group(self):
        """Puts the process that calls it into control groups of this machine's own: two systemds in one would end each other's
        units."""
        for hierarchy in HIERARCHIES:
            # no other lane, and no other run, has this network
            group = hierarchy / f"bento-{os.stat('/proc/self/ns/net').st_ino}-{self.name}"
            group.mkdir(exist_ok=True)
            # the writer itself, whatever its number is elsewhere
            (group / "cgroup.procs").write_text("0")

    def find_leader(self):
        """The container's first process, when it is a systemd."""
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except FileNotFoundError:
            return None
        for child in children:
            try:
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
            except FileNotFoundError:
                pass
        return None

    def crash(self):
        """Cuts its power."""
        self.on = False
        if self.process:
            leader = self.find_leader()
            if leader:
                try:
                    os.kill(leader, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            else:
                self.process.terminate()
            try:
                # it clears up what it made for the container
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = self.leader = None

    # --- commands

    def execute(self, command, timeout=900):
        """Runs a shell command; gives its status and its output."""
        # it may have restarted since
        self.leader = self.find_leader()
        if not self.leader:
            return 255, f"{self.name} is off"
        words, environment = self.inside(command)
        try:
            done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
        except subprocess.TimeoutExpired as expired:
            return 124, (expired.output or b"").decode(errors="replace")
        return done.returncode, done.stdout.decode(errors="replace")

    def inside(self, command):
        """The words that run a shell command in it, and their environment; it must be on."""
        environment = {"PATH": "/run/current-system/sw/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root",
                       "NIX_REMOTE": "local", "NIX_PATH": "nixpkgs=/fixture", "LC_ALL": "C.UTF-8"}
        words = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", "/bin/sh", "-c", command]
        return words, environment

    def write(self, path, text):
        """Writes a file in it; it must be on."""
        done = subprocess.run(["nsenter", f"--target={self.leader}", "--mount", "--", "/bin/sh", "-c",
                               f"mkdir -p {shlex.quote(os.path.dirname(path))} && cat > {shlex.quote(path)}"], input=text.encode())
        if done.returncode != 0:
            raise Failure(f"{self.name}: cannot write {path}")


@contextmanager
def subtest(name):
    """A part of a script, which a failure names."""
    try:
        yield
    except Exception as error:
        raise Failure(f"{name}: {error}") from error


def options(*own):
    """The options of a program that runs scenarios; `own` are names of ones that say what it works with, and `work` is where the files
    of its machines are."""
    parser = argparse.ArgumentParser()
    for name in (*own, "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--busy-lanes", type=int, default=1)
    # what a lane is started with: the folder in which all of them say what they have taken, and whether it is for what keeps it busy
    parser.add_argument("--claims", type=Path)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("names", nargs="*")
    return parser


def perform(scenarios, arguments, make, prepare, ended=lambda lab, entry, note: None, broken=lambda lab, entry: None, lacks=lambda entry: None,
            busy=lambda entry: False):
    """Runs those of `scenarios` that the arguments ask for, on what `make` makes, and exits. Each is a name, what `prepare` needs to know
    for it to begin, whether it is quick, and a function. `lacks` says what is missing for one to be run, `ended` and `broken` hear what
    came of it, `ended` also of one that is skipped: without a laboratory, and with the reason as its note. They are begun in this order, in so
    many lanes as the arguments say, each with a laboratory of its own; those that keep a processor busy, as `busy` says, in lanes of their own."""
    unknown = [name for name in arguments.names if not any(name in entry[0] for entry in scenarios)]
    if unknown:
        sys.exit(f"no scenario of this name: {', '.join(unknown)}; there are: {', '.join(entry[0] for entry in scenarios)}")
    wanted = [entry for entry in scenarios
              if (entry[2] or not arguments.quick) and (not arguments.names or any(name in entry[0] for name in arguments.names))]
    begin = time.monotonic()
    work, claims = Path(arguments.work), arguments.claims or Path(arguments.work) / "claims"

    def lane(entries):
        run_lane(entries, claims, make, prepare, ended, broken, lacks)

    if arguments.claims:
        return lane([entry for entry in wanted if busy(entry) == arguments.busy])
    claims.mkdir()
    lanes = [["--busy"] for _ in list(filter(busy, wanted))[:arguments.busy_lanes]]
    lanes += [[] for _ in [entry for entry in wanted if not busy(entry)][:arguments.lanes]]
    folders = [work / f"lane-{number}" for number in range(len(lanes))]
    for folder in folders:
        folder.mkdir()
    if len(lanes) == 1:
        arguments.work = folders[0]
        lane(wanted)
    else:
        for started in [start_lane(folder, claims, *more) for folder, more in zip(folders, lanes)]:
            started.wait()
    outcomes = {entry[0]: (claims / entry[0]).read_text() if (claims / entry[0]).exists() else "" for entry in wanted}
    for name, outcome in outcomes.items():
        if not outcome:
            print(f"FAILED: {name}: its lane came to no end")
    passed, skipped = (list(outcomes.values()).count(outcome) for outcome in ("passed", "skipped"))
    failed = len(outcomes) - passed - skipped
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{passed} passed, {failed} failed, {skipped} skipped ({time.monotonic() - begin:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of a processor)")
    sys.exit(1 if failed else 0)


def start_lane(folder, claims, *more):
    """Starts this program as one of the lanes that share its scenarios, with a network and a folder of its own."""
    # the containers of each have the same names
    script = 'mkdir -p /run/systemd/nspawn && mount -t tmpfs -o mode=755 nspawn /run/systemd/nspawn && exec "$@"'
    # those that would keep all processors busy leave them to those that mostly wait
    polite = ["nice", "-n", "5"] if "--busy" in more else []
    return subprocess.Popen([*polite, "unshare", "--mount", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv,
                             "--work", str(folder), "--claims", str(claims), *more])


def run_lane(scenarios, claims, make, prepare, ended, broken, lacks):
    """Runs those of the scenarios that no other lane has taken, see `perform`. What came of one is in its file in `claims`."""
    begin = time.monotonic()
    lab = make()
    print(f"the first machines are installed ({time.monotonic() - begin:.0f} s; this machine is slower by {SLOWNESS:.1f})", flush=True)
    remaining, last = list(scenarios), None
    while remaining:
        # what another begins with is made anew
        entry = next((entry for entry in remaining if entry[1] == last), remaining[0])
        remaining.remove(entry)
        name, needs, _, function = entry
        try:
            (claims / name).touch(exist_ok=False)
        except FileExistsError:
            continue
        last = needs
        missing = lacks(entry)
        if missing:
            ended(None, entry, missing)
            (claims / name).write_text("skipped")
            print(f"skipped: {name}: {missing}", flush=True)
            continue
        start = time.monotonic()
        try:
            prepare(lab, needs)
            ready = time.monotonic()
            note = function(lab)
            ended(lab, entry, note)
            (claims / name).write_text("passed")
            print(f"ok: {name} ({ready - start:.1f} s + {time.monotonic() - ready:.1f} s)" + (f": {note}" if note else ""), flush=True)
        # whatever it is, the others are run too
        except Exception as error:
            (claims / name).write_text("failed")
            print(f"FAILED: {name} ({time.monotonic() - start:.1f} s): {error}", flush=True)
            if not isinstance(error, Failure):
                traceback.print_exc()
                print(lab.journals(), flush=True)
            broken(lab, entry)
    for machine in lab.machines.values():
        machine.crash()


def make_network():
    """The cable between the machines; the loopback is for programs that ask themselves."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "link", "set", BRIDGE, "up")
