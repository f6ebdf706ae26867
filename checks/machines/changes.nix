# What hosts are changed to, by name, as modules: for the fixture distribution and for NixOS. `interface` is the host's way to
# its hub.
{ interface }:
let
  oneshot = script: { wantedBy = [ "multi-user.target" ]; inherit script; serviceConfig.Type = "oneshot"; };
  file = text: { environment.etc."changed".text = text; };
in
{
  none = { };
  update = file "one";
  again = file "two";
  failing = { systemd.services.bad = oneshot "exit 1"; };
  failing-again = file "again" // { systemd.services.bad = oneshot "exit 1"; };
  failing-later = { systemd.services.bad = { wantedBy = [ "multi-user.target" ]; script = "sleep 1; exit 1"; }; };
  hanging = { systemd.services.bad = oneshot "sleep infinity"; };
  slow = { systemd.services.slow = oneshot "sleep 5"; };
  no-network = { lib, ... }: { networking.interfaces.${interface}.ipv4.addresses = lib.mkForce [ ]; };
  closed = { lib, ... }: {
    services.openssh.enable = lib.mkForce false;
    networking.nftables.enable = true;
    networking.firewall.enable = lib.mkForce true;
  };
  no-agent = { lib, ... }: { services.bento.agent.enable = lib.mkForce false; };
  unsafe = {
    system.extraSystemBuilderCmds = ''
      printf '#!/bin/sh\necho not on a Sunday; exit 1\n' > $out/pre-activate-safety-checks
      chmod 755 $out/pre-activate-safety-checks
    '';
  };
  agent-killed = {
    system.activationScripts.kill = "systemctl kill --signal=KILL bento-upgrade.service || true; systemctl stop bento-upgrade.timer || true";
  };
  agent-and-network-gone = { lib, ... }: {
    services.bento.agent.enable = lib.mkForce false;
    networking.interfaces.${interface}.ipv4.addresses = lib.mkForce [ ];
    system.activationScripts.kill = "systemctl kill --signal=KILL bento-upgrade.service || true";
  };
  # another initrd
  restart = { boot.initrd.availableKernelModules = [ "loop" ]; };
}
