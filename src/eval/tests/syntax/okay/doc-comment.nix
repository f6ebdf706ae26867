{
  /** a doc comment */
  a = x: x;
  /**/ b = 1;
}
