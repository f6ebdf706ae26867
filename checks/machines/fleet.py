"""A hub and a host, on machines of any kind: what scenarios do with them and ask of them. The machines have the calls of the NixOS
test driver's.
"""

import json
import re
import time


class Failure(AssertionError):
    """A machine did not do what it should."""


SCENARIOS = []


def scenario(name, kind="container"):
    """Something that can happen to a host on this kind of machine."""
    def add(function):
        SCENARIOS.append((name, function, kind))
        return function
    return add


class Fleet:
    """`hub` and `web` are machines; `first` is the system that the host began with."""

    # how long what needs a restart may take, in seconds of a machine that has nothing else to do, and how many times longer it takes here
    patience = 60
    slowness = 1
    # the host, as the hub sees it
    address = "192.168.1.11"

    def deploy(self):
        return self.hub.succeed("cd /fleet && bento deploy 2>&1")

    def publish_change(self, name):
        """Publishes the host's configuration with the change that has this name in changes.nix."""
        raise NotImplementedError

    def wait_for_restart(self, boot):
        """Waits until the host is up again, in another boot than the one of this id."""
        raise NotImplementedError

    def restart(self, publish, *stages):
        """Has a system published that needs a restart, and waits until that has come to an end."""
        self.hub.succeed("touch /fleet/hosts/web/REBOOT")
        boot, before = self.boot(), len(self.reports())
        publish()
        self.web.succeed("systemctl start --no-block bento-upgrade.service")
        self.wait_for_restart(boot)
        # what came before is reported too: the last report says that it is over
        self.expect_stages(before, *stages)

    def boot(self):
        return self.web.succeed("cat /proc/sys/kernel/random/boot_id").strip()

    def poll(self, works=True):
        """Has the host ask the hub, and waits for the end of that."""
        status, output = self.web.execute("systemctl start bento-upgrade.service", timeout=2 * self.slowness * self.patience)
        if works is not None and (status == 0) != works:
            raise Failure(f"the agent's run ended with {status}: {output}\n{self.journal()}")

    def journal(self):
        return self.web.execute("journalctl -u bento-upgrade -u bento-watchdog -u bento-activation -n 60 --no-pager -o cat")[1]

    def all_status(self):
        return json.loads(self.hub.succeed("cd /fleet && bento status --json 2> /dev/null"))

    def status(self):
        return next(host for host in self.all_status() if host["machine"] == "web")

    def reports(self, host="web"):
        """What the host has reported, in order."""
        text = self.hub.succeed(f"cd /home/chroot/{host}/logs && for file in $(ls -v | grep '^report-.*json$'); do cat $file; done")
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
        text = self.web.succeed("if [ -e /boot/grub/grub.cfg ]; then cat /boot/grub/grub.cfg; else cd /boot/loader; "
                                "name=$(sed -n 's/^default //p' loader.conf); name=${name%.conf}; cat entries/$name.conf entries/$name+*.conf; fi 2> /dev/null; true")
        return re.search(r"init=(\S+)/init", text).group(1)

    def profile(self):
        return self.web.succeed("readlink -f /nix/var/nix/profiles/system").strip()

    def journal_of_agent(self):
        """The release that the agent is at, and the state that it is in; nothing while the machine is off."""
        status, text = self.web.execute("cat /var/lib/bento/state.json", timeout=10)
        if status != 0:
            return 0, "off"
        state = json.loads(text)
        return state["serial"], state["phase"]["state"]

    def ask_on(self):
        """Has the agent go on, if it is not at work."""
        self.web.execute("systemctl start --no-block bento-upgrade.service", timeout=10)

    def wait_for_phase(self, serial, *phases, timeout=60):
        """Waits until the agent is in one of these states with the release of this number."""
        self.wait_for(lambda: self.journal_of_agent(), lambda now: now[0] == serial and now[1] in phases, timeout,
                      f"release {serial} in {' or '.join(phases)}")

    def wait_for(self, get, good, timeout, what):
        timeout *= self.slowness
        deadline = time.monotonic() + timeout
        while not good(found := get()):
            if time.monotonic() > deadline:
                raise Failure(f"{found} within {timeout:.0f} s instead of {what}\n{self.journal()}")
            time.sleep(0.2)
        return found

    # --- what is asserted

    def expect(self, state, timeout=0):
        """The hub shows the host in this state."""
        deadline = time.monotonic() + timeout * self.slowness
        while True:
            status = self.status()
            if status["state"] == state:
                return status
            if time.monotonic() >= deadline:
                raise Failure(f"the state is {status['state']} instead of {state}: {status}\n{self.journal()}")
            time.sleep(0.3)

    def expect_stages(self, before, *stages):
        """After its first reports the host reports this, in this order, and nothing else."""
        self.wait_for(lambda: [report["stage"] for report in self.reports()[before:]], lambda found: found == list(stages), 2 * self.patience,
                      f"the stages {stages}")

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
