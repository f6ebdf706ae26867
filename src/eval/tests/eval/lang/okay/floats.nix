[
  1.0 1.5 0.1 1.0e10 1.0e-10 123456789.0 1234567.5 0.30000000000000004 1.0e100 (-0.0) (1.0 / 3) 100000.0 1000000.0 12345.678 .5 1.e3
  (toString 1.0) (toString 0.1) (toString 1.0e10) (toString 1.0e-7) (toString (1.0 / 3)) (toString (-0.0))
  (builtins.toJSON [ 1.0 0.1 1.0e10 1.0e-10 1.0e100 1.5 (1.0 / 3) 123456789012345680.0 (-0.0) 1.0e15 1.0e16 1.0e17 ])
  [1.5.5] (builtins.ceil 1.2) (builtins.floor (-1.2)) (builtins.ceil 3) (builtins.floor 1.0e10) (1 == 1.0) (builtins.typeOf 1.0)
]
