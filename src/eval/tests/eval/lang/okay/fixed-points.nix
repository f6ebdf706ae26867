let
  fix = f: let x = f x; in x;
  makeExtensible = rattrs: fix (self: rattrs self // { extend = f: makeExtensible (final: let prev = rattrs final; in prev // f final prev); });
  modules = [ ({ config }: { a = config.b + 1; }) ({ config }: { b = 2; }) ({ config }: { c = [ config.a ]; }) ];
  config = builtins.foldl' (acc: m: acc // m { inherit config; }) { } modules;
in [ (fix (self: { a = 1; b = self.a + 1; })).b (removeAttrs ((makeExtensible (self: { a = 1; b = self.a; })).extend (final: prev: { a = prev.a + 10; })) [ "extend" ]) config ]
