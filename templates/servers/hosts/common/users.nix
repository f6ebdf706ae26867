# Who may log in, on all machines.
let
  # public keys, as in ~/.ssh/id_ed25519.pub
  keys = [ ];
in
{
  users.mutableUsers = false;
  users.users = {
    # provisioning and pushing come as root
    root.openssh.authorizedKeys.keys = keys;
    admin = {
      isNormalUser = true;
      extraGroups = [ "wheel" ];
      openssh.authorizedKeys.keys = keys;
    };
  };
  security.sudo.wheelNeedsPassword = false;

  assertions = [{
    assertion = keys != [ ];
    message = "nobody could log in: put your public SSH key into hosts/common/users.nix";
  }];
}
