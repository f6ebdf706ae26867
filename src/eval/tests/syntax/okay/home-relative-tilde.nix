x: [ (x ~/a.b) ]
