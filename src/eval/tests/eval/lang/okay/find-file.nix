with builtins; let search = [ { prefix = "data"; path = ./data; } { prefix = ""; path = ./data; } ]; in [
  (baseNameOf (findFile search "data/text")) (baseNameOf (findFile search "a.json")) (pathExists (findFile search "data")) (tryEval (findFile [ ] "nope"))
]
