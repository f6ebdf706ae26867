# The options of one of bento's modules, for the book: a list of sets of strings. Takes nixpkgs' library, and the module's file.
#
#   bento eval --strict --json -I nixpkgs=... docs/options.nix --arg module ./modules/agent.nix
{ lib ? import <nixpkgs/lib>, module }:
let
  # nothing but the module itself: what it sets in others is not looked at
  inherit (lib.evalModules { modules = [ module { _module = { check = false; args.pkgs = { }; }; } ]; }) options;

  text = value:
    if value._type or "" == "literalExpression" then value.text
    else lib.generators.toPretty { multiline = false; } value;
  ofOption = option: {
    inherit (option) name description type;
    default = if option ? default then text option.default else null;
    example = if option ? example then text option.example else null;
  };
in
map ofOption (lib.filter (option: option.visible && !option.internal) (lib.optionAttrSetToDocList options.services.bento))
