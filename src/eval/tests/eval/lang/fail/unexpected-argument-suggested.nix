({ value ? 1 }: value) { vlaue = 1; }
