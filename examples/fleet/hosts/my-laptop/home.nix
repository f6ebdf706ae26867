{
  users.users.solene = {
    isNormalUser = true;
    extraGroups = [ "wheel" "networkmanager" ];
  };
  users.groups.networkmanager = { };
}
