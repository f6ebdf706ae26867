[ (toString { __toString = self: 1; }) (toString { __toString = self: [ 1 2 ]; }) ]
