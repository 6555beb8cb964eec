//! version, options, completion.

use crate::command::{Command, ERROR, Failure, fail, usages};
use crate::flags::{Args, GLOBAL};
use crate::output::say;

pub const VERSION: Command = Command {
    group: 4,
    run: Some(|args| Box::pin(version(args))),
    ..Command::new("version", "", "Prints the version of etcdctl")
};

pub const OPTIONS: Command = Command {
    group: 4,
    run: Some(|args| Box::pin(options(args))),
    ..Command::new("options", "", "Show the global command-line flags")
};

pub const COMPLETION: Command = Command {
    long: "To load completions:

Bash:

  $ source <(etcdctl completion bash)

Zsh:

  $ source <(etcdctl completion zsh)

fish:

  $ etcdctl completion fish | source

PowerShell:

  PS> etcdctl completion powershell | Out-String | Invoke-Expression
",
    group: 4,
    run: Some(|args| Box::pin(completion(args))),
    ..Command::new("completion", "[bash|zsh|fish|powershell]", "Generate completion script")
};

/// The version of etcd whose etcdctl this is.
const ETCD: &str = "3.7.1";

async fn version(_: Args) -> Result<(), Failure> {
    say(format!("etcdctl version: {ETCD}\nAPI version: 3.7"))
}

async fn options(_: Args) -> Result<(), Failure> {
    let flags = usages(GLOBAL.iter().collect(), "");
    say(format!("The following options can be passed to any command:\n\n{flags}"))
}

async fn completion(args: Args) -> Result<(), Failure> {
    let script = match args.words.as_slice() {
        [shell] => match shell.as_str() {
            "bash" => BASH,
            "zsh" => ZSH,
            "fish" => FISH,
            "powershell" => POWERSHELL,
            other => return fail(ERROR, format!("invalid argument {other:?} for \"etcdctl completion\"")),
        },
        words => return fail(ERROR, format!("accepts 1 arg(s), received {}", words.len())),
    };
    say(script.replace("WORDS", &words()))
}

/// Every path of words and the words and flags that may follow, a line each: `path|next next …`.
fn words() -> String {
    let mut paths: Vec<&str> = crate::COMMANDS.0.iter().map(|command| command.path).collect();
    paths.insert(0, "");
    let mut lines = Vec::new();
    for path in paths {
        let mut next: Vec<String> = crate::COMMANDS
            .0
            .iter()
            .filter_map(|command| match path {
                "" => Some(command.path).filter(|word| !word.contains(' ')),
                path => command.path.strip_prefix(path)?.strip_prefix(' '),
            })
            .map(str::to_owned)
            .collect();
        let command = crate::COMMANDS.0.iter().find(|command| command.path == path).copied();
        if next.is_empty() || command.is_some_and(|command| command.run.is_some()) {
            next.extend(crate::COMMANDS.flags_of(command).iter().map(|flag| format!("--{}", flag.name)));
        }
        lines.push(format!("{path}|{}", next.join(" ")));
    }
    lines.join("\n")
}

const BASH: &str = r#"# bash completion for etcdctl
__etcdctl_words='WORDS'
__etcdctl() {
  local path="" word
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in
      -*) ;;
      *) grep -q "^${path:+$path }$word|" <<<"$__etcdctl_words" && path="${path:+$path }$word" ;;
    esac
  done
  local next; next=$(grep "^$path|" <<<"$__etcdctl_words" | head -n1)
  COMPREPLY=($(compgen -W "${next#*|}" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F __etcdctl etcdctl"#;

const ZSH: &str = r#"#compdef etcdctl
__etcdctl_words='WORDS'
_etcdctl() {
  local path="" word next
  for word in "${(@)words[2,CURRENT-1]}"; do
    case "$word" in
      -*) ;;
      *) grep -q "^${path:+$path }$word|" <<<"$__etcdctl_words" && path="${path:+$path }$word" ;;
    esac
  done
  next=$(grep "^$path|" <<<"$__etcdctl_words" | head -n1)
  compadd -- ${=next#*|}
}
compdef _etcdctl etcdctl"#;

const FISH: &str = r#"# fish completion for etcdctl
set -g __etcdctl_words 'WORDS'
function __etcdctl_next
  set -l path ""
  for word in (commandline -opc)[2..-1]
    string match -q -- '-*' $word; and continue
    set -l longer (string trim "$path $word")
    string match -rq -- "(?m)^$longer\|" "$__etcdctl_words"; and set path $longer
  end
  string split \n -- "$__etcdctl_words" | string match -r -- "^$path\|(.*)" | tail -n1 | string split " "
end
complete -c etcdctl -f -a '(__etcdctl_next)'"#;

const POWERSHELL: &str = r#"# powershell completion for etcdctl
$__etcdctl_words = @'
WORDS
'@ -split "`n"
Register-ArgumentCompleter -Native -CommandName etcdctl -ScriptBlock {
  param($word, $ast)
  $path = ''
  foreach ($element in $ast.CommandElements | Select-Object -Skip 1) {
    $longer = "$path $element".Trim()
    if ($__etcdctl_words | Where-Object { $_.StartsWith("$longer|") }) { $path = $longer }
  }
  $line = $__etcdctl_words | Where-Object { $_.StartsWith("$path|") } | Select-Object -First 1
  ($line -split '\|', 2)[1] -split ' ' | Where-Object { $_ -like "$word*" }
}"#;
