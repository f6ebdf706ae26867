# A fleet of five hosts on nixpkgs 26.11, written for comparison: attribute = host, value = its toplevel derivation.
#   bento eval -I nixpkgs=CORPORA/nixpkgs-26.11 checks/hosts/fleet-26.11.nix -A minimal --drv-path
{ nixpkgs ? <nixpkgs> }:
let
  # three large generated files are absent from the snapshot: what would read them is replaced
  common = { lib, ... }: {
    config = {
      nixpkgs.overlays = [
        (final: prev: {
          shellcheck-minimal = final.hello // { compiler = final.hello // { bootstrapAvailable = true; }; };
          shellcheck = final.hello;
          pandoc = final.hello;
        })
      ];
      boot.loader.systemd-boot.enable = lib.mkDefault true;
      boot.loader.efi.canTouchEfiVariables = true;
      fileSystems."/" = { device = "/dev/disk/by-label/root"; fsType = "ext4"; };
      fileSystems."/boot" = { device = "/dev/disk/by-label/boot"; fsType = "vfat"; };
      services.openssh = { enable = true; settings.PasswordAuthentication = false; };
      users.users.root.openssh.authorizedKeys.keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfleetfleetfleetfleetfleetfleetfleetfleet admin" ];
      time.timeZone = "Europe/Lisbon";
      system.stateVersion = "26.05";
    };
  };
  host = name: module:
    (import (nixpkgs + "/nixos/lib/eval-config.nix") {
      system = "x86_64-linux";
      modules = [ common { networking.hostName = name; } module ];
    }).config.system.build.toplevel;
in
builtins.mapAttrs host {
  minimal = { documentation.enable = false; documentation.nixos.enable = false; };
  web = { pkgs, ... }: {
    services.nginx = {
      enable = true;
      recommendedTlsSettings = true;
      virtualHosts."www.example.org" = { enableACME = true; forceSSL = true; root = pkgs.writeTextDir "index.html" "hello"; };
    };
    security.acme = { acceptTerms = true; defaults.email = "ops@example.org"; };
    networking.firewall.allowedTCPPorts = [ 80 443 ];
  };
  monitor = { config, ... }: {
    services.prometheus = {
      enable = true;
      exporters.node.enable = true;
      scrapeConfigs = [ { job_name = "node"; static_configs = [ { targets = [ "localhost:${toString config.services.prometheus.exporters.node.port}" ]; } ]; } ];
    };
    services.grafana = { enable = true; settings.server.http_port = 3000; settings.security.secret_key = "test"; };
  };
  router = { lib, ... }: {
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
  };
  laptop = { pkgs, ... }: {
    networking.networkmanager.enable = true;
    services.pipewire = { enable = true; pulse.enable = true; };
    programs.sway.enable = true;
    environment.systemPackages = with pkgs; [ firefox git vim tmux htop ];
    users.users.ana = { isNormalUser = true; extraGroups = [ "wheel" "networkmanager" ]; };
  };
}
