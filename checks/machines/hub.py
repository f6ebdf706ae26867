"""The scenarios that are about the hub's own services, as modules/hub.nix makes them, and about what secrets a release brings: they
take a systemd, and no host that changes its system.
"""

import re

from fleet import Failure, scenario

TOKEN = "correct-horse-battery-staple"
SWITCH = ("$(nix-build --no-out-link -I nixpkgs=/fixture -E '(import <nixpkgs/nixos> { configuration = /etc/nixos/configuration.nix; })"
          ".config.system.build.toplevel')/bin/switch-to-configuration test")
# a service that reads its secret when it starts, and takes none but those that begin with a word; with one it never comes to an end
READER = """{ ... }: {
  systemd.services.reader = {
    # faster than anybody changes secrets
    unitConfig.StartLimitIntervalSec = 0;
    wantedBy = [ "multi-user.target" ];
    serviceConfig = { Type = "oneshot"; RemainAfterExit = true; };
    script = "! grep -q ^wait /run/bento/secrets/password || sleep infinity; grep -q ^ses /run/bento/secrets/password && cp /run/bento/secrets/password /run/has-read";
  };
  systemd.services.other = { wantedBy = [ "multi-user.target" ]; script = "exec sleep infinity"; };
}
"""


def configure_hub(lab, text):
    """Makes a hub with more options of the module."""
    lab.hub.write("/etc/nixos/change.nix", text)
    lab.hub.succeed(SWITCH)


def get(machine, place, token=None, path="/metrics"):
    """What a web server says, with its status."""
    credentials = f"Authorization: Bearer {token}\\r\\n" if token else ""
    host, port = place.split(":")
    said = machine.succeed(f"printf 'GET {path} HTTP/1.1\\r\\nHost: {place}\\r\\n{credentials}Connection: close\\r\\n\\r\\n' | nc -w 20 {host} {port}")
    return int(said.split(" ", 2)[1]), said


def expect_page(machine, place, token=None):
    status, said = get(machine, place, token)
    if status != 200 or 'bento_host_state{host="web",state="up to date"} 1' not in said:
        raise Failure(f"{place} says {said[:2000]}")


@scenario("what reads a secret is restarted")
def secret_alone(lab):
    lab.hub.succeed("echo HOST_KEYS=keys >> /fleet/config.sh")
    lab.hub.write("/fleet/keys/web.pub", lab.keys["web"] + "\n")
    lab.hub.write("/fleet/hosts/web/secrets/password", "sesame\n")
    lab.hub.write("/fleet/hosts/web/secrets/secrets.toml", '[password]\nunits = [ "reader.service", "gone.service" ]\n')
    lab.publish(READER)
    lab.poll()
    lab.expect("up-to-date")
    new, other = lab.expect_new(), lab.web.get_unit_property("other", "MainPID")
    assert lab.web.succeed("cat /run/has-read") == "sesame\n"
    lab.hub.write("/fleet/hosts/web/secrets/password", "sesame, please\n")
    lab.deploy()
    lab.expect("sync-pending")
    lab.poll()
    lab.expect("up-to-date")
    assert lab.web.succeed("cat /run/has-read") == "sesame, please\n"
    # it does not start with this one: it has the one before again
    lab.hub.write("/fleet/hosts/web/secrets/password", "open up\n")
    lab.deploy()
    lab.poll(works=False)
    lab.expect("failing")
    reason = lab.reports()[-1]["reason"]
    assert re.search("the secrets that there were are back in place.*reader.service", reason), reason
    lab.web.succeed("systemctl is-active reader && grep -q please /run/bento/secrets/password /run/has-read")
    # nor does it ever with this one
    lab.hub.write("/fleet/hosts/web/secrets/password", "wait\n")
    lab.deploy()
    lab.poll(works=False)
    lab.expect("failing")
    reason = lab.reports()[-1]["reason"]
    assert re.search(r"the secrets that there were are back in place.*systemctl did not end within \d+ s", reason), reason
    lab.web.succeed("systemctl is-active reader && grep -q please /run/bento/secrets/password /run/has-read")
    # nothing but it was restarted, and no system changed
    assert lab.running() == new and lab.web.get_unit_property("other", "MainPID") == other


@scenario("the hub's page, next to sshd")
def page(lab):
    lab.hub.write("/root/token", TOKEN + "\n")
    configure_hub(lab, '{ services.bento.hub.web = { enable = true; listen = "0.0.0.0:8022"; tokenFile = "/root/token"; }; }\n')
    lab.hub.wait_for_unit("bento-hub-web", 30)
    lab.hub.wait_for_open_port(8022, timeout=30)
    expect_page(lab.hub, "127.0.0.1:8022", TOKEN)
    expect_page(lab.web, "192.168.1.1:8022", TOKEN)
    assert get(lab.web, "192.168.1.1:8022")[0] == 401 and get(lab.web, "192.168.1.1:8022", "another")[0] == 401
    # it runs as nobody, sees what hosts have, and can write nothing of it
    assert lab.hub.succeed("ps -o user= -p $(systemctl show -p MainPID --value bento-hub-web)").strip() not in ("root", "web")
    status, said = get(lab.hub, "127.0.0.1:8022", TOKEN, "/hosts/web")
    assert status == 200 and "release" in said, said[:500]
    lab.hub.succeed("systemctl restart bento-hub-web")
    lab.hub.wait_for_open_port(8022, timeout=30)
    expect_page(lab.hub, "127.0.0.1:8022", TOKEN)


@scenario("the embedded hub")
def embedded(lab):
    configure_hub(lab, """{ lib, ... }: { services.bento.hub = { server = "embedded"; chrootDir = "/srv/hub"; quota = 1; web.enable = true;
        hosts.web.tags = [ "one" ]; }; }\n""")
    lab.hub.wait_for_unit("bento-hub", 30)
    lab.hub.wait_for_open_port(2022, timeout=30)
    # whoever serves deploys, too
    lab.hub.succeed("cp -r /fleet /srv/fleet && cp /root/admin* /srv/fleet && sed -i s,/home/chroot,/srv/hub,\\;s,/root/,/srv/fleet/, /srv/fleet/config.sh",
                    "chown -R bento-hub /srv/fleet && cd /srv/fleet && setpriv --reuid=bento-hub --regid=sftp_users --clear-groups "
                    "env HOME=/srv/fleet BENTO_DIR=/srv/fleet bento deploy")
    key = lab.hub.succeed("ssh-keygen -y -f /var/lib/bento-hub/host_key").strip()
    lab.web.write("/root/known_hosts", f"[192.168.1.1]:2022 {key}\n")
    sftp = ("sftp -q -b - -i /etc/ssh/ssh_host_ed25519_key -o BatchMode=yes -o UserKnownHostsFile=/root/known_hosts -P 2022 web@192.168.1.1")
    lab.web.succeed(f"printf 'get manifest.json /tmp/got\\nput /etc/hostname logs/x\\n' | {sftp}", "grep -q '\"serial\": 1' /tmp/got",
                    "head -c 2000000 /dev/zero > /tmp/large")
    lab.web.fail(f"echo put /tmp/large logs/large | {sftp}", f"echo put /tmp/got manifest.json | {sftp}")
    assert lab.hub.succeed("stat -c %U /srv/hub/web/logs/x").strip() == "bento-hub"
    limit = lab.hub.succeed("grep 'open files' /proc/$(systemctl show -p MainPID --value bento-hub)/limits").split()
    assert int(limit[3]) >= 1424, limit
    # the page is for this machine alone
    assert get(lab.hub, "127.0.0.1:8022")[0] == 200
    lab.web.fail("nc -z -w 2 192.168.1.1 8022")
    # the same key after a restart
    lab.hub.succeed("systemctl restart bento-hub")
    lab.hub.wait_for_open_port(2022, timeout=30)
    lab.web.succeed(f"echo get manifest.json /tmp/again | {sftp}", "cmp /tmp/got /tmp/again")
