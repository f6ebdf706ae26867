with builtins; [
  (compareVersions "1.0" "2.3") (compareVersions "2.1" "2.3") (compareVersions "2.3pre1" "2.3") (compareVersions "2.3" "2.3pre1") (compareVersions "2.3.1" "2.3a") (compareVersions "2.3pre3" "2.3pre12") (compareVersions "2.3a" "2.3c") (compareVersions "2.3pre1" "2.3c")
  (compareVersions "1" "1.0") (compareVersions "" "a") (compareVersions "1.0-1" "1.0.1") (compareVersions "a" "1") (compareVersions "007" "7")
  (splitVersion "1.2.3pre4-5a") (splitVersion "") (splitVersion "a..b--1") (parseDrvName "nix-0.12pre12876") (parseDrvName "foo") (parseDrvName "a-b-1") (parseDrvName "a-1b-2") (parseDrvName "-1") (parseDrvName "x-") 
]
