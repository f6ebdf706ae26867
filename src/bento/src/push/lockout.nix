# What decides whether somebody can still log in over SSH, of a host's evaluated configuration. An option that the host's nixpkgs
# does not have is null, or as empty as it can be.
config:
let
  ssh = config.services.openssh or { };
  settings = ssh.settings or { };
  firewall = config.networking.firewall or { };
  users = config.users.users or { };
  open = rules: {
    ports = rules.allowedTCPPorts or [ ];
    ranges = map (range: [ range.from range.to ]) (rules.allowedTCPPortRanges or [ ]);
  };
in
{
  sshd = ssh.enable or null;
  ports = ssh.ports or [ 22 ];
  keysFiles = ssh.authorizedKeysFiles or [ ];
  keysCommand = (ssh.authorizedKeysCommand or "none") != "none";
  root = if settings ? PermitRootLogin && builtins.isString settings.PermitRootLogin then settings.PermitRootLogin else "prohibit-password";
  allowUsers = if builtins.isList (settings.AllowUsers or null) then settings.AllowUsers else null;
  users = builtins.mapAttrs
    (_: user: (user.openssh.authorizedKeys.keys or [ ]) ++ map builtins.readFile (user.openssh.authorizedKeys.keyFiles or [ ]))
    users;
  mutableUsers = config.users.mutableUsers or true;
  firewall = {
    enable = firewall.enable or false;
    all = open firewall;
    trusted = firewall.trustedInterfaces or [ ];
    interfaces = builtins.mapAttrs (_: open) (firewall.interfaces or { });
  };
}
