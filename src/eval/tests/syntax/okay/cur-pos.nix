{ a = __curPos; __curPos = 1; b = { }.__curPos or 1; c = __curPos: 1; }
