let
  counter = { __functor = self: x: self.n + x; n = 10; };
  nested = { __functor = self: { __functor = inner: x: [ "deep" x ]; }; };
in [ (counter 5) ((counter // { n = 20; }) 5) (map counter [ 1 2 ]) (nested 1) (builtins.isFunction counter) ]
