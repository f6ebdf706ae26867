"a" + builtins.add
