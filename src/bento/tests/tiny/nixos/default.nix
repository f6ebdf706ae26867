# What `<nixpkgs/nixos>` is for the tests' hosts without a flake: a configuration is the system's arguments.
{ configuration }: { config.system.build.toplevel = import ../system.nix (import configuration); }
