let or = 1; in [ { or = 2; a.or = 3; }.or { inherit ({ or = 1; }) or; }.or or 2 ({ } ? or) ]
