# The name of a formal argument is known after its default value.
let f = { second ? { first = 1; } }: { second = throw "second"; first = throw "first"; }; in builtins.deepSeq (f { }) null
