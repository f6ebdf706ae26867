# A host of the fixture distribution on a machine with firmware: it boots Debian's kernel, which the machine has in
# /machine, with an initrd that knows its disk; see emulated.py.
{ config, lib, pkgs, ... }:
{
  # another text is another kernel, to Nix and to the agent
  options.emulated.kernel = lib.mkOption { type = lib.types.str; default = "1"; };

  config = {
    boot.kernelPackages = pkgs.linuxPackagesFor (pkgs.runCommand "linux-${config.emulated.kernel}"
      { version = config.emulated.kernel; passthru.target = "bzImage"; }
      "mkdir -p $out/lib/modules; cp /machine/kernel $out/bzImage");
    system.build.initialRamdisk = lib.mkForce (pkgs.runCommand "initrd-${config.emulated.kernel}" { } "mkdir $out; cp /machine/initrd $out/initrd");
    boot.kernelParams = [
      "console=ttyS0" "quiet" "systemd.getty_auto=0" "systemd.show_status=0"
      # an emulator has no use for what guards a processor's guesses, and each change of page tables is dear to it
      "mitigations=off" "rcupdate.rcu_expedited=1"
    ];

    # it is a slow machine, and stands still while this one has other work
    services.bento.agent.timeout = lib.mkForce 20;
    services.bento.agent.settings.system.activation-timeout = lib.mkForce 300;

    # nothing tells systemd of devices: there is no udev
    systemd.services.esp = lib.mkIf (config.boot.loader.systemd-boot.enable or false) {
      wantedBy = [ "sysinit.target" ];
      before = [ "sysinit.target" ];
      unitConfig.DefaultDependencies = "no";
      script = "mountpoint -q /boot || mount -t vfat /dev/vda1 /boot";
      serviceConfig = { Type = "oneshot"; RemainAfterExit = true; };
    };

    # Takes the commands of whoever runs this machine: a number and the command in base64, line by line; and answers with the
    # number, the exit status, and what was printed in base64.
    systemd.services.backdoor = {
      wantedBy = [ "sysinit.target" ];
      restartIfChanged = false;
      unitConfig = { DefaultDependencies = "no"; X-StopOnRemoval = false; };
      environment = { HOME = "/root"; NIX_REMOTE = "local"; NIX_PATH = "nixpkgs=/fixture"; LC_ALL = "C.UTF-8"; };
      script = ''
        set +e
        export PATH=/run/current-system/sw/bin:$PATH
        exec 3<> "$(echo /dev/vport*)"
        while read -r number command <&3; do
          (
            echo "$command" | base64 -d > /run/command-$number
            sh /run/command-$number > /run/output-$number 2>&1 < /dev/null 3>&-
            echo "$number $? $(base64 -w 0 /run/output-$number)" >&3
            rm -f /run/command-$number /run/output-$number
          ) &
        done
      '';
      serviceConfig = { Restart = "always"; RestartSec = "0.2"; };
    };
  };
}
