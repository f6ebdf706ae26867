(derivationStrict { name = "n"; system = "s"; builder = "b"; outputHashMode = "x"; }).drvPath
