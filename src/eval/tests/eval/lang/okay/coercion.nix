let d = derivation { name = "d"; builder = "b"; system = "s"; }; in [
  (toString null) (toString true) (toString false) (toString 1) (toString [ 1 "a" [ 2 null true [ ] ] /x ]) (toString /a) (toString { outPath = "/o"; })
  (toString { __toString = self: "s${self.x}"; x = "y"; outPath = "no"; }) "${{ outPath = "o"; }}" "${{ __toString = self: "t"; }}" (toString [ [ ] "a" ]) (toString [ "a" [ ] "b" ])
  ({ outPath = "/o"; } + "/p") ("a" + { __toString = _: "b"; }) (toString { outPath = { outPath = "deep"; }; }) (toString 1.5) (toString "") "${d}" (d + "/bin")
  (builtins.concatStringsSep ":" [ "a" d ./data/text { __toString = _: "q"; } ]) (builtins.stringLength d)
]
