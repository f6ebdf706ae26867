[ http://a.b/c?d=e&f#x
  x:x a+b.c-d:%/?:@&=+$,-_.!~*'z ]
