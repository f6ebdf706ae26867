with builtins; [
  (seq { a = throw "not deep"; } 1) (deepSeq { a = [ 1 { b = 2; } ]; } 2) (trace "shown" 3) (addErrorContext "context" 4) (warn "careful" 5) (let x = { y = x; z = 1; }; in deepSeq x x.z) (traceVerbose "silent" 6) (builtins.break 7)
]
