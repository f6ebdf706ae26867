"""A fleet to measure with: hosts that differ as real ones do, on the nixpkgs 26.11 of checks/corpora.tsv.

Each is a folder `hosts/NAME` with a configuration.nix of its own, and the file common.nix that all of them share. Host number
i has role i modulo the number of roles, and a name, an address, packages and a timer of its own.
"""

from pathlib import Path

# three large generated files are absent from the trees: what would read them is replaced, as in hosts/fleet-26.11.nix
COMMON = """{ lib, pkgs, ... }:
{
  nixpkgs.overlays = [
    (final: prev: {
      shellcheck-minimal = final.hello // { compiler = final.hello // { bootstrapAvailable = true; }; };
      shellcheck = final.hello;
      pandoc = final.hello // { compiler = final.hello // { bootstrapAvailable = true; }; };
    })
  ];
  nixpkgs.hostPlatform = "x86_64-linux";
  boot.loader.systemd-boot.enable = lib.mkDefault true;
  boot.loader.efi.canTouchEfiVariables = true;
  fileSystems."/" = { device = "/dev/disk/by-label/root"; fsType = "ext4"; };
  fileSystems."/boot" = { device = "/dev/disk/by-label/boot"; fsType = "vfat"; };
  services.openssh = { enable = true; settings.PasswordAuthentication = false; };
  users.users.root.openssh.authorizedKeys.keys =
    [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfleetfleetfleetfleetfleetfleetfleetfleet admin" ];
  time.timeZone = "Europe/Lisbon";
  environment.systemPackages = with pkgs; [ git htop tmux vim ];
  system.stateVersion = "26.05";
}
"""

ROLES = [
    """{ documentation.enable = false; documentation.nixos.enable = false; }""",
    """{ pkgs, ... }: {
  services.nginx = {
    enable = true;
    recommendedTlsSettings = true;
    virtualHosts."www.example.org" = { enableACME = true; forceSSL = true; root = pkgs.writeTextDir "index.html" "hello"; };
  };
  security.acme = { acceptTerms = true; defaults.email = "ops@example.org"; };
  networking.firewall.allowedTCPPorts = [ 80 443 ];
}""",
    """{ config, ... }: {
  services.prometheus = {
    enable = true;
    exporters.node.enable = true;
    scrapeConfigs = [ {
      job_name = "node";
      static_configs = [ { targets = [ "localhost:${toString config.services.prometheus.exporters.node.port}" ]; } ];
    } ];
  };
  services.grafana = { enable = true; settings.server.http_port = 3000; settings.security.secret_key = "test"; };
}""",
    """{ lib, ... }: {
  boot.loader.systemd-boot.enable = false;
  boot.loader.grub = { enable = true; device = "nodev"; efiSupport = true; };
  networking = {
    useNetworkd = true;
    nftables.enable = true;
    nat = { enable = true; internalInterfaces = [ "lan0" ]; externalInterface = "wan0"; };
    wireguard.interfaces.wg0 = { ips = [ "10.100.0.1/24" ]; listenPort = 51820; privateKeyFile = "/etc/wg.key"; };
  };
  services.dnsmasq.enable = true;
  boot.kernel.sysctl."net.ipv4.ip_forward" = lib.mkForce 1;
}""",
    """{ pkgs, ... }: {
  networking.networkmanager.enable = true;
  services.pipewire = { enable = true; pulse.enable = true; };
  programs.sway.enable = true;
  environment.systemPackages = [ pkgs.firefox ];
  users.users.ana = { isNormalUser = true; extraGroups = [ "wheel" "networkmanager" ]; };
}""",
    """{
  services.postgresql = {
    enable = true;
    ensureDatabases = [ "app" ];
    ensureUsers = [ { name = "app"; ensureDBOwnership = true; } ];
  };
  services.postgresqlBackup.enable = true;
  services.borgbackup.jobs.home = {
    paths = "/var/backup"; repo = "backup@host:repo"; encryption.mode = "none"; startAt = "daily";
  };
}""",
    """{
  services.gitea = { enable = true; database.type = "postgres"; settings.server.DOMAIN = "git.example.org"; };
  services.redis.servers.gitea.enable = true;
}""",
    """{
  services.postfix = { enable = true; settings.main.myhostname = "mail.example.org"; };
  services.fail2ban.enable = true;
  services.rspamd.enable = true;
}""",
    """{
  virtualisation.docker.enable = true;
  virtualisation.oci-containers.containers.web = { image = "nginx:latest"; ports = [ "8080:80" ]; };
}""",
    """{ services.k3s = { enable = true; role = "server"; }; networking.firewall.enable = false; }""",
    """{
  services.samba = { enable = true; settings.public = { path = "/srv/public"; "read only" = "yes"; }; };
  services.nfs.server = { enable = true; exports = "/srv 10.0.0.0/8(ro)"; };
  services.smartd.enable = true;
}""",
    """{ pkgs, ... }: {
  services.xserver = { enable = true; windowManager.i3.enable = true; displayManager.lightdm.enable = true; };
  services.printing.enable = true;
  environment.systemPackages = with pkgs; [ libreoffice thunderbird ];
}""",
]

PACKAGES = ["curl", "wget", "jq", "ripgrep", "tcpdump", "iperf3", "rsync"]

HOST = """{{ pkgs, ... }}:
{{
  imports = [ ./common.nix ./role.nix ];
  networking.hostName = "{name}";
  networking.hostId = "{index:08x}";
  networking.interfaces.eth0.ipv4.addresses = [ {{ address = "10.0.{high}.{low}"; prefixLength = 16; }} ];
  environment.systemPackages = [ pkgs.{package} ];
  boot.kernelModules = [ "{module}" ];
  services.cron = {{ enable = true; systemCronJobs = [ "{minute} 4 * * * root /bin/true" ]; }};
}}
"""


def name(index):
    """The name of host number `index`."""
    return f"host{index:03}"


def write(folder, count):
    """Writes a fleet of `count` hosts into `folder`, which must not have any yet, and gives their names."""
    folder = Path(folder)
    (folder / "shared").mkdir(parents=True)
    (folder / "bento.toml").write_text('[hub]\ndirectory = "/nowhere"\naddress = "hub.example.org"\n')
    (folder / "shared/common.nix").write_text(COMMON)
    for index, role in enumerate(ROLES):
        (folder / f"shared/role{index:02}.nix").write_text(role + "\n")
    for index in range(count):
        host = folder / "hosts" / name(index)
        host.mkdir(parents=True)
        (host / "common.nix").symlink_to("../../shared/common.nix")
        (host / "role.nix").symlink_to(f"../../shared/role{index % len(ROLES):02}.nix")
        own = HOST.format(
            name=name(index),
            index=index,
            high=index // 200,
            low=index % 200 + 10,
            package=PACKAGES[index % len(PACKAGES)],
            module=("kvm-intel", "kvm-amd")[index % 2],
            minute=index % 60,
        )
        (host / "configuration.nix").write_text(own)
    return [name(index) for index in range(count)]


def expression(folder, hosts):
    """An expression for C++ Nix: the derivations' paths of these hosts."""
    lines = [
        f'"{host}" = (import <nixpkgs/nixos> {{ configuration = {Path(folder).resolve()}/hosts/{host}/configuration.nix; }})'
        ".config.system.build.toplevel.drvPath;"
        for host in hosts
    ]
    return "{\n" + "\n".join(lines) + "\n}"
