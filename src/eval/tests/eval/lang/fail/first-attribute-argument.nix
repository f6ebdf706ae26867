# The name of an argument is known after the function's body, so its attribute comes after the other.
let f = second: { first = throw "first"; second = throw "second"; }; in builtins.deepSeq (f 1) null
