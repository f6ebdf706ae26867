# What machines can do: each file is a service with options of its own.
{
  imports = [
    ./agent.nix
    ./database.nix
    ./monitoring.nix
    ./web.nix
  ];
}
