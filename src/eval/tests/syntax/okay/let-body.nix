[ (let { body = x; x = 1; }) (let { body = { }; }).a let { body = 1; } ]
