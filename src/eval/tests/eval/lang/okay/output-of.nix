let d = derivation { name = "d"; builder = "b"; system = "s"; }; in [ (builtins.isString d.drvPath) (builtins.storePath or null != null) ]
