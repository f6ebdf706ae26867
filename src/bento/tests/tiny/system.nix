# A system with nothing in it but what bento looks at. `onTest` are shell lines that run when it is activated, `text` makes
# systems differ, `build` are shell lines that run when it is built.
{ name, text ? "", onTest ? "", onBoot ? "", build ? "" }:
derivation {
  name = "nixos-system-${name}";
  system = builtins.currentSystem or "x86_64-linux";
  builder = "/bin/sh";
  inherit text onTest onBoot build;
  args = [
    "-c"
    ''
      export PATH=/usr/bin:/bin
      set -e
      echo "building $name"
      eval "$build"
      mkdir -p $out/bin
      echo "$text" > $out/text
      cat > $out/bin/switch-to-configuration <<END
      #!/bin/sh
      export PATH=/usr/bin:/bin
      echo "\$1 $out" >> \$TINY_ROOT/activations
      echo "switching (\$1) to $out"
      mkdir -p \$TINY_ROOT/run
      case \$1 in
        test) ln -sfn $out \$TINY_ROOT/run/current-system
      $onTest
        ;;
        boot) echo $out > \$TINY_ROOT/boot
      $onBoot
        ;;
      esac
      exit 0
      END
      chmod +x $out/bin/switch-to-configuration
    ''
  ];
}
