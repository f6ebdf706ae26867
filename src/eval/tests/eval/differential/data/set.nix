{
  a = { b = 1; };
  list = [ 1 2.5 "three" ./a.txt ];
  here = __curPos;
}
