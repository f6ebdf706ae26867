builtins.length (builtins.sort (a: b: false) [ (throw "evaluated all the same") ])
