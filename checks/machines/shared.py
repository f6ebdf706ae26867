"""The scenarios that are run on hosts of the fixture distribution and, as VM tests, on NixOS: their changes are in changes.nix."""

from fleet import scenario


@scenario("update")
def update(lab):
    lab.publish_change("update")
    lab.expect("rebuild-pending")
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()
    assert lab.web.succeed("cat /etc/changed") == "one"


@scenario("no change")
def no_change(lab):
    before = lab.reports()
    lab.deploy()
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_first()
    assert lab.reports() == before


@scenario("unit that fails")
def failing_unit(lab):
    lab.publish_change("failing")
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first(r"units failed: bad\.service")
    # that it has failed once is no excuse
    lab.publish_change("failing-again")
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first(r"units failed: bad\.service")


@scenario("unit that fails a little later")
def unit_that_fails_later(lab):
    lab.publish_change("failing-later")
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first(r"units failed: bad\.service")


@scenario("unit that hangs")
def hanging_unit(lab):
    lab.publish_change("hanging")
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first(r"did not end within \d+ s")


@scenario("network removed by the new configuration")
def no_network(lab):
    lab.publish_change("no-network")
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first("the hub could not be reached")


@scenario("sshd and firewall closed")
def closed(lab):
    lab.publish_change("closed")
    lab.poll()
    # nobody gets in any more, but the agent gets out
    lab.expect("up-to-date")
    lab.expect_new()
    lab.hub.fail(f"nc -z -w 2 {lab.address} 22")


@scenario("agent removed by the new configuration")
def no_agent(lab):
    lab.publish_change("no-agent")
    lab.poll(works=False)
    lab.expect("rollbacked")
    lab.expect_first("no sound configuration for the agent")


@scenario("the system's own check is against it")
def safety_check(lab):
    lab.publish_change("unsafe")
    lab.poll(works=False)
    lab.expect("failing")
    lab.expect_first("the system's own check is against activating it")


@scenario("agent killed by the activation, for good")
def agent_killed_by_activation(lab):
    lab.publish_change("agent-killed")
    lab.poll(works=False)
    # nobody starts it again but the watchdog
    lab.expect("rollbacked", 2 * lab.patience)
    lab.expect_first("interrupted while it tried out")


@scenario("agent and network gone with the activation")
def agent_and_network_gone(lab):
    lab.publish_change("agent-and-network-gone")
    lab.poll(works=False)
    lab.expect("rollbacked", 2 * lab.patience)
    lab.expect_first("interrupted while it tried out")


@scenario("power cut while testing")
def power_cut(lab):
    lab.publish_change("slow")
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("systemctl is-active --quiet bento-activation.service && systemctl list-jobs | grep -q slow", lab.patience)
    lab.web.crash()
    lab.web.start()
    lab.expect("rollbacked", 2 * lab.patience)
    lab.expect_first("restarted by itself")


@scenario("hub down before")
def hub_down_before(lab):
    lab.publish_change("update")
    lab.hub.succeed("systemctl stop sshd")
    lab.poll(works=False)
    lab.hub.succeed("systemctl start sshd")
    lab.hub.wait_for_open_port(22)
    lab.poll()
    lab.expect("up-to-date")
    lab.expect_new()


@scenario("hub down while testing")
def hub_down_during(lab):
    before = len(lab.reports())
    lab.publish_change("slow")
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("systemctl is-active --quiet bento-activation.service", lab.patience)
    lab.hub.block()
    lab.web.wait_until_succeeds("systemctl is-failed --quiet bento-upgrade", 2 * lab.patience)
    assert lab.running() == lab.first
    lab.hub.unblock()
    lab.web.succeed("bento agent run --now")
    # the release was not at fault, and is taken up
    lab.expect("up-to-date")
    lab.expect_new()
    outcomes = [report["outcome"] for report in lab.reports()[before:]]
    assert outcomes == ["rollback", "success"], outcomes


@scenario("two triggers at once")
def two_at_once(lab):
    before = len(lab.reports())
    lab.publish_change("slow")
    lab.web.execute("systemctl start --no-block bento-upgrade.service")
    lab.web.wait_until_succeeds("systemctl is-active --quiet bento-activation.service", lab.patience)
    assert "another run of the agent is at work" in lab.web.fail("bento agent run 2>&1")
    lab.web.wait_until_succeeds("test $(systemctl show -p ActiveState --value bento-upgrade) = inactive", lab.patience)
    lab.expect("up-to-date")
    lab.expect_new()
    assert len(lab.reports()) == before + 1


@scenario("kernel change, restarted by itself")
def kernel_reboot(lab):
    lab.restart(lambda: lab.publish_change("restart"), "reboot", "done")
    lab.expect("up-to-date")
    lab.expect_new()
