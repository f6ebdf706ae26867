"""A fleet of NixOS, on the machines of the NixOS test driver: see ../vms.nix."""

import base64
import json
import time

from fleet import SCENARIOS, Fleet
import shared  # noqa: F401, its scenarios are run


class VMs(Fleet):
    """`systems` are those that the host's configuration with each change comes to, which its store has; `stub` takes nixpkgs' place
    on the hub, where they are only named; `key` is the file of the key that releases are signed with."""

    patience = 300

    def __init__(self, hub, web, address, systems, stub, key):
        self.hub, self.web, self.address = hub, web, address
        self.systems, self.stub, self.key = systems, stub, key

    def write(self, path, text):
        self.hub.succeed(f"mkdir -p $(dirname {path}) && echo {base64.b64encode(text.encode()).decode()} | base64 -d > {path}")

    def deploy(self):
        return self.hub.succeed(f"cd /fleet && NIX_PATH=nixpkgs={self.stub} bento deploy 2>&1")

    def publish_change(self, name):
        self.write("/fleet/hosts/web/configuration.nix", json.dumps(name))
        self.deploy()

    def wait_for_restart(self, boot):
        # QEMU ends when its machine restarts
        self.web.wait_for_shutdown()
        self.web.start()
        self.web.wait_until_succeeds(f"test $(cat /proc/sys/kernel/random/boot_id) != {boot}", timeout=self.patience)

    def boots(self):
        entries = "/boot/loader/entries"
        name = self.web.succeed("sed -nE 's/^(preferred|default) (.*).conf$/\\2/p' /boot/loader/loader.conf | head -n 1").strip()
        options = self.web.succeed(f"cat {entries}/{name}.conf {entries}/{name}+*.conf 2> /dev/null || true")
        return next(word for word in options.split() if word.startswith("init=")).removeprefix("init=").removesuffix("/init")

    def begin(self):
        """Sets the fleet up."""
        self.hub.start()
        self.web.start()
        self.hub.wait_for_unit("sshd.service")
        self.web.wait_for_unit("multi-user.target")
        self.hub.succeed(f"install -m 600 {self.key} /root/admin")
        self.write("/fleet/bento.toml", "[hub]\ndirectory = '/home/chroot'\n[build]\nlocal = false\n[release]\nsigning-key = '/root/admin'\nmode = 'closure'\n")

    def fresh(self):
        """The host is up to date with its configuration without a change."""
        self.hub.execute("rm -f /fleet/hosts/web/REBOOT")
        self.publish_change("none")
        self.web.execute("systemctl stop bento-boot.timer; bento agent run --now")
        # another initrd takes effect with a boot
        if self.journal_of_agent()[1] == "waiting":
            self.web.shutdown()
            self.web.start()
            self.web.wait_until_succeeds("bento agent run --now && grep -q reported /var/lib/bento/state.json", timeout=self.patience)
            self.web.succeed("systemctl stop bento-boot.timer")
        self.expect("up-to-date", self.patience)
        self.first = self.running()
        assert self.first == self.systems["none"]["outPath"], self.first

    def run(self, subtest):
        """Every shared scenario, one after the other."""
        self.begin()
        for name, function, _ in SCENARIOS:
            start = time.monotonic()
            with subtest(name):
                self.fresh()
                function(self)
            print(f"{name}: {self.status()['state']} ({time.monotonic() - start:.0f} s)")
