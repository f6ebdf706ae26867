builtins.storePath "/nowhere/x"
