# In place of what npins pins, for the template `servers`: sources of this machine.
{
  nixpkgs = /. + "NIXPKGS";
  disko = /. + "DISKO";
  nixos-anywhere = /. + "DISKO";
}
