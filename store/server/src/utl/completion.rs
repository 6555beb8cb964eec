//! `completion`: a script for the shell, made from the table of commands.

use super::flags::{Command, Values};
use super::{COMMANDS, Exit, GLOBAL, Outcome};

pub const LONG: &str = "To load completions:\n\n\
    Bash:\n\n  $ source <(etcdutl completion bash)\n\n  # To load completions for each session, execute once:\n  # Linux:\n  \
    $ etcdutl completion bash > /etc/bash_completion.d/etcdutl\n\n\
    Zsh:\n\n  $ etcdutl completion zsh > \"${fpath[1]}/_etcdutl\"\n\n\
    fish:\n\n  $ etcdutl completion fish | source\n\n\
    PowerShell:\n\n  PS> etcdutl completion powershell | Out-String | Invoke-Expression\n";

pub fn run(values: &Values) -> Outcome {
    let script = match values.arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bash"] => bash(),
        ["zsh"] => format!("#compdef etcdutl\nautoload -U +X bashcompinit && bashcompinit\n{}", bash()),
        ["fish"] => fish(),
        ["powershell"] => powershell(),
        [shell] => {
            return Err(Exit::new(1, format!("invalid argument {shell:?} for \"etcdutl completion\"")));
        }
        ref all => return Err(Exit::new(1, format!("accepts 1 arg(s), received {}", all.len()))),
    };
    print!("{script}");
    Ok(())
}

fn flags(command: &Command) -> String {
    let names = command.flags.iter().chain(GLOBAL).map(|flag| format!("--{}", flag.name));
    names.chain(["--help".to_owned()]).collect::<Vec<_>>().join(" ")
}

/// (words so far, what may follow).
fn steps() -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    for command in COMMANDS {
        let mut before = String::new();
        for word in command.path.split(' ') {
            let found = steps.iter_mut().find(|(words, _)| *words == before);
            match found {
                Some((_, next)) if next.split(' ').any(|known| known == word) => {}
                Some((_, next)) => *next = format!("{next} {word}"),
                None => steps.push((before.clone(), word.to_owned())),
            }
            before = if before.is_empty() { word.to_owned() } else { format!("{before} {word}") };
        }
        steps.push((command.path.to_owned(), flags(command)));
    }
    steps
}

fn bash() -> String {
    let cases: String =
        steps().iter().map(|(words, next)| format!("    {words:?}) next=\"{next}\" ;;\n")).collect();
    format!(
        "_etcdutl() {{\n  local word=${{COMP_WORDS[COMP_CWORD]}} words=\"\" next=\"\" at\n  \
         for ((at = 1; at < COMP_CWORD; at++)); do\n    case ${{COMP_WORDS[at]}} in -*) ;; *) words=\"${{words:+$words }}${{COMP_WORDS[at]}}\" ;; esac\n  done\n  \
         case $words in\n{cases}  esac\n  \
         COMPREPLY=($(compgen -W \"$next\" -- \"$word\"))\n  [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- \"$word\"))\n}}\n\
         complete -o filenames -F _etcdutl etcdutl\n"
    )
}

fn fish() -> String {
    let mut script = String::new();
    for command in COMMANDS {
        let (first, second) = command.path.split_once(' ').unwrap_or((command.path, ""));
        let condition = if second.is_empty() {
            "__fish_use_subcommand".to_owned()
        } else {
            format!("__fish_seen_subcommand_from {first}")
        };
        let word = if second.is_empty() { first } else { second };
        script
            .push_str(&format!("complete -c etcdutl -f -n '{condition}' -a {word} -d '{}'\n", command.short));
        for flag in command.flags {
            let value = if flag.name.ends_with("dir") { " -r" } else { "" };
            script.push_str(&format!(
                "complete -c etcdutl -n '__fish_seen_subcommand_from {word}' -l {}{value}\n",
                flag.name
            ));
        }
    }
    script.push_str("complete -c etcdutl -f -n __fish_use_subcommand -a snapshot\n");
    script
}

fn powershell() -> String {
    let cases: String =
        steps().iter().map(|(words, next)| format!("    '{words}' {{ $next = '{next}' }}\n")).collect();
    format!(
        "Register-ArgumentCompleter -Native -CommandName etcdutl -ScriptBlock {{\n  param($word, $ast, $position)\n  \
         $words = ($ast.CommandElements | Select-Object -Skip 1 | Where-Object {{ \"$_\" -notlike '-*' -and \"$_\" -ne $word }}) -join ' '\n  \
         $next = ''\n  switch ($words) {{\n{cases}  }}\n  \
         $next -split ' ' | Where-Object {{ $_ -like \"$word*\" }} | ForEach-Object {{ [System.Management.Automation.CompletionResult]::new($_) }}\n}}\n"
    )
}
