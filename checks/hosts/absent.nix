# An overlay for the trees of corpora.tsv: large generated files are absent from them, so what would read those is replaced.
final: _: {
  shellcheck-minimal = final.hello // { compiler = final.hello // { bootstrapAvailable = true; }; };
  shellcheck = final.hello;
  pandoc = final.hello;
}
