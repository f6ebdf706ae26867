a'b: a-b: _: a'b + a-b + _
