f: x: f x
