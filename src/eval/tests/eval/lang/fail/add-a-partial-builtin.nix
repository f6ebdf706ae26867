"a" + builtins.add 1
