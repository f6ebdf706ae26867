# How a function is written shows in XML, also that of `derivation`.
builtins.toXML [ derivation ({ a, b ? 1, ... }@all: a) (x: x) ({ }: 1) map ]
