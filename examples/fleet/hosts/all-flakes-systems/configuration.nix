{
  imports = [
    ./hardware-configuration.nix
    ./utils/bento.nix
    ./utils/common-stuff.nix
  ];
}
