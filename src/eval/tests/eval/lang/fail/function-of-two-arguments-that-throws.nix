let
  check = name: value: if value < 0 then throw "${name} is negative" else value;
  checked = check "depth";
in
{ a = check "height" 1; b = checked (1 - 2); }.b
