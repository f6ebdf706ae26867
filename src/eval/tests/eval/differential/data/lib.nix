# What generated programs use of nixpkgs' library, in few lines.
let
  inherit (builtins)
    all attrNames concatLists concatStringsSep elem elemAt filter foldl' functionArgs genList head intersectAttrs isAttrs
    isFunction isString length listToAttrs mapAttrs replaceStrings split stringLength substring tail zipAttrsWith;
in
rec {
  id = x: x;
  const = x: _: x;
  flip = f: a: b: f b a;
  mod = a: b: a - b * (a / b);
  toInt = text: builtins.fromJSON text;

  optional = condition: x: if condition then [ x ] else [ ];
  optionals = condition: list: if condition then list else [ ];
  optionalString = condition: text: if condition then text else "";
  optionalAttrs = condition: set: if condition then set else { };

  last = list: elemAt list (length list - 1);
  take = n: list: genList (elemAt list) (if n < length list then n else length list);
  inherit tail;
  reverseList = list: let l = length list; in genList (n: elemAt list (l - n - 1)) l;
  foldr = f: start: list: let go = n: if n == length list then start else f (elemAt list n) (go (n + 1)); in go 0;
  unique = foldl' (done: x: if elem x done then done else done ++ [ x ]) [ ];
  zipListsWith = f: a: b:
    genList (n: f (elemAt a n) (elemAt b n)) (if length a < length b then length a else length b);

  concatStrings = concatStringsSep "";
  concatMapStringsSep = separator: f: list: concatStringsSep separator (map f list);
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  hasSuffix = suffix: text:
    let n = stringLength text - stringLength suffix; in n >= 0 && substring n (-1) text == suffix;
  removePrefix = prefix: text:
    if hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
  splitString = separator: text:
    filter isString (split (replaceStrings [ "." "+" "*" ] [ "\\." "\\+" "\\*" ] separator) (toString text));
  versionOlder = a: b: builtins.compareVersions b a == 1;
  versionAtLeast = a: b: !versionOlder a b;

  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
  filterAttrs = keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
  genAttrs = names: f: listToAttrs (map (name: { inherit name; value = f name; }) names);
  foldlAttrs = f: start: set: foldl' (done: name: f done name set.${name}) start (attrNames set);
  attrByPath = path: default: set:
    if path == [ ] then set
    else if isAttrs set && set ? ${head path} then attrByPath (tail path) default set.${head path}
    else default;
  recursiveUpdate = left: right:
    zipAttrsWith (name: values:
      if length values == 1 || !(isAttrs (head values) && isAttrs (elemAt values 1)) then last values
      else recursiveUpdate (head values) (elemAt values 1)) [ left right ];

  fix = f: let x = f x; in x;
  extends = overlay: f: final: let prev = f final; in prev // overlay final prev;
  composeExtensions = f: g: final: prev: let done = f final prev; in done // g final (prev // done);
  composeManyExtensions = foldr composeExtensions (final: prev: { });
  makeExtensible = f: fix f // { extend = overlay: makeExtensible (extends overlay f); };

  setFunctionArgs = f: args: { __functor = self: f; __functionArgs = args; };
  argumentsOf = f: if f ? __functor then f.__functionArgs or (argumentsOf (f.__functor f)) else functionArgs f;
  makeOverridable = f: args:
    let result = f args; in
    if isAttrs result then result // { override = more: makeOverridable f (args // more); } else result;
  callPackageWith = scope: f: args:
    makeOverridable (if isFunction f then f else import f) (intersectAttrs (argumentsOf f) scope // args);

  # Modules are sets of lists, or functions of the whole configuration that give one.
  evalModules = modules:
    let
      config = zipAttrsWith (name: concatLists)
        (map (module: if isFunction module then module { inherit config; } else module) modules);
    in
    assert all (module: isFunction module || isAttrs module) modules;
    config;
}
