({ zzz, version, success, sha256, recursive, allOutputs }: zzz) { }
