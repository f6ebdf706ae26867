with builtins; [
  (partition (x: x > 1) [ 1 2 3 ]) (partition (x: true) [ ]) (groupBy (x: if x > 1 then "big" else "small") [ 1 2 3 0 ]) (groupBy (x: x) [ ])
]
