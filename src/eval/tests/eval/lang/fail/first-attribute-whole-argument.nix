# So is that of the whole argument.
let f = { ... }@second: { first = throw "first"; second = throw "second"; }; in builtins.deepSeq (f { }) null
