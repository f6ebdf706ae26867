({ }: 1) { null = 1; zebra = 2; type = 3; antelope = 4; }
