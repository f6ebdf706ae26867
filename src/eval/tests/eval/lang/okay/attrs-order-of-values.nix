let names = [ "zeta" "alpha" "Mid" "beta2" "beta10" "_x" "0" ]; set = builtins.listToAttrs (map (name: { inherit name; value = name + "!"; }) names); in [
  (builtins.attrValues set) (builtins.toJSON set) (builtins.attrNames (set // { omega = 1; "aa" = 2; })) (builtins.concatStringsSep "," (builtins.attrNames (builtins.mapAttrs (n: v: n) set)))
  (builtins.zipAttrsWith (n: vs: builtins.length vs) [ set set ])
]
