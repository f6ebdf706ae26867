let a = 1; inherit ({ x = 1; }) x; ${"b"} = 2; "c d" = 3; in a + x
