let if' = 1; let-x = 2; in_ = 3; rec1 = 4; ors = 5; in if' + let-x + in_ + rec1 + ors
