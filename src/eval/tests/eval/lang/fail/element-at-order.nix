# The index is evaluated first.
builtins.elemAt (throw "the list") (throw "the index")
