//! The visible list of commands: name, usage and flags. A new command is a file, a line here and one in `dispatch`.

use crate::args::{Flag, GLOBAL, optional, switch, value};

/// A command.
pub struct Command {
    pub name: &'static str,
    aliases: &'static [&'static str],
    about: &'static str,
    usage: &'static str,
    pub flags: &'static [Flag],
}

const OUTPUT: Flag = value("output", Some('o'), "json|yaml|name|wide|jsonpath=…|custom-columns=…");
const SELECTOR: Flag = value("selector", Some('l'), "label selector");
const FIELDS: Flag = value("field-selector", None, "field selector");
const ALL_NAMESPACES: Flag = switch("all-namespaces", Some('A'), "in all namespaces");
const FILENAME: Flag = value("filename", Some('f'), "file, folder or - (standard input)");
const RECURSIVE: Flag = switch("recursive", Some('R'), "folders with all below");
const DRY_RUN: Flag = optional("dry-run", "client", "none|client|server");
const CONTAINER: Flag = value("container", Some('c'), "container");
const MANAGED: Flag = switch("show-managed-fields", None, "keep managedFields in the output");
const ALL: Flag = switch("all", None, "all objects of the kind");
const MANAGER: Flag = value("field-manager", None, "name of the writer");

/// All of them.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "get",
        aliases: &[],
        about: "Show objects",
        usage: "get KIND[,KIND] [NAME…] | KIND/NAME… | -f FILE",
        flags: &[
            OUTPUT,
            SELECTOR,
            FIELDS,
            ALL_NAMESPACES,
            FILENAME,
            RECURSIVE,
            MANAGED,
            switch("watch", Some('w'), "then follow changes"),
            switch("watch-only", None, "follow changes only"),
            switch("no-headers", None, "no header line"),
            switch("show-labels", None, "a column of labels"),
            value("label-columns", Some('L'), "labels as columns"),
            switch("show-kind", None, "names with their kind"),
            switch("ignore-not-found", None, "absent is no error"),
            value("sort-by", None, "JSONPath to sort by"),
            value("chunk-size", None, "objects a request (default 500, 0 = all)"),
            value("subresource", None, "status or scale"),
            value("raw", None, "GET this path and print the body"),
        ],
    },
    Command {
        name: "describe",
        aliases: &[],
        about: "Show objects with their events",
        usage: "describe KIND [NAME…] | KIND/NAME…",
        flags: &[
            SELECTOR,
            ALL_NAMESPACES,
            FILENAME,
            RECURSIVE,
            optional("show-events", "true", "with events (default)"),
        ],
    },
    Command {
        name: "apply",
        aliases: &[],
        about: "Make objects as the files say",
        usage: "apply -f FILE",
        flags: &[
            OUTPUT,
            FILENAME,
            RECURSIVE,
            DRY_RUN,
            MANAGED,
            MANAGER,
            switch("server-side", None, "the server merges"),
            switch("force-conflicts", None, "with --server-side: take over fields of others"),
            optional("validate", "strict", "strict|warn|ignore"),
        ],
    },
    Command {
        name: "create",
        aliases: &[],
        about: "Create objects",
        usage: "create -f FILE | namespace|serviceaccount|configmap|secret generic|deployment|token NAME",
        flags: &[
            OUTPUT,
            FILENAME,
            RECURSIVE,
            DRY_RUN,
            MANAGED,
            MANAGER,
            optional("validate", "strict", "strict|warn|ignore"),
            switch("save-config", None, "keep the applied configuration in an annotation"),
            value("from-literal", None, "KEY=VALUE"),
            value("from-file", None, "[KEY=]PATH"),
            value("type", None, "type of a secret"),
            value("image", None, "image of a deployment"),
            value("replicas", Some('r'), "replicas of a deployment"),
            value("port", None, "container port of a deployment"),
            value("duration", None, "lifetime of a token"),
            value("audience", None, "audience of a token"),
        ],
    },
    Command {
        name: "delete",
        aliases: &[],
        about: "Delete objects",
        usage: "delete KIND NAME… | KIND/NAME… | -f FILE | KIND -l SELECTOR | KIND --all",
        flags: &[
            OUTPUT,
            SELECTOR,
            FIELDS,
            ALL_NAMESPACES,
            FILENAME,
            RECURSIVE,
            ALL,
            DRY_RUN,
            value("grace-period", None, "seconds; -1 = the object's own"),
            switch("force", None, "with a grace period of 0: at once, without waiting for the node"),
            switch("now", None, "grace period 1"),
            switch("ignore-not-found", None, "absent is no error"),
            optional("cascade", "background", "background|foreground|orphan"),
            optional("wait", "true", "until the objects are gone (default)"),
            value("timeout", None, "how long to wait (default: as long as it takes)"),
        ],
    },
    Command {
        name: "logs",
        aliases: &["log"],
        about: "Print a container's output",
        usage: "logs POD | KIND/NAME | -l SELECTOR",
        flags: &[
            CONTAINER,
            SELECTOR,
            switch("follow", Some('f'), "keep printing"),
            switch("previous", Some('p'), "of the previous run"),
            switch("timestamps", None, "with times"),
            switch("all-containers", None, "of all containers"),
            switch("prefix", None, "with pod and container before each line"),
            switch("ignore-errors", None, "go on after an error"),
            value("tail", None, "only the last lines"),
            value("since", None, "newer than this duration"),
            value("since-time", None, "newer than this time (RFC 3339)"),
            value("limit-bytes", None, "at most so many bytes"),
            value("max-log-requests", None, "accepted, has no effect"),
        ],
    },
    Command {
        name: "exec",
        aliases: &[],
        about: "Run a command in a container",
        usage: "exec POD [-c CONTAINER] [-i] [-t] -- COMMAND…",
        flags: &[
            CONTAINER,
            switch("stdin", Some('i'), "pass standard input"),
            switch("tty", Some('t'), "with a terminal"),
            switch("quiet", Some('q'), "only the command's output"),
            value("pod-running-timeout", None, "accepted, has no effect"),
        ],
    },
    Command {
        name: "scale",
        aliases: &[],
        about: "Set the number of replicas",
        usage: "scale KIND/NAME… --replicas N",
        flags: &[
            OUTPUT,
            SELECTOR,
            ALL,
            FILENAME,
            RECURSIVE,
            DRY_RUN,
            value("replicas", None, "how many"),
            value("current-replicas", None, "only if there are this many now"),
            value("timeout", None, "accepted, has no effect"),
        ],
    },
    Command {
        name: "rollout",
        aliases: &[],
        about: "Follow, restart or undo a rollout",
        usage: "rollout status|restart|undo|history|pause|resume KIND/NAME",
        flags: &[
            OUTPUT,
            SELECTOR,
            DRY_RUN,
            value("to-revision", None, "undo: this revision (default the one before)"),
            value("revision", None, "history: details of this revision"),
            optional("watch", "true", "status: until it is done (default)"),
            value("timeout", None, "status: how long to wait"),
        ],
    },
    Command {
        name: "top",
        aliases: &[],
        about: "Show cpu and memory in use",
        usage: "top node|pod [NAME]",
        flags: &[
            SELECTOR,
            ALL_NAMESPACES,
            switch("no-headers", None, "no header line"),
            switch("containers", None, "pods: each container"),
            value("sort-by", None, "cpu or memory"),
        ],
    },
    Command {
        name: "why",
        aliases: &[],
        about: "Explain why a pod is pending, restarting, not ready or terminating",
        usage: "why pod NAME",
        flags: &[OUTPUT],
    },
    Command {
        name: "wait",
        aliases: &[],
        about: "Wait until objects are as wanted, or gone",
        usage: "wait KIND/NAME… --for=condition=Ready|delete|jsonpath='{PATH}'=VALUE",
        flags: &[
            SELECTOR,
            ALL,
            FILENAME,
            RECURSIVE,
            value("for", None, "delete, create, condition=NAME[=VALUE] or jsonpath='{PATH}'=VALUE"),
            value("timeout", None, "how long (default 30s)"),
        ],
    },
    Command {
        name: "label",
        aliases: &[],
        about: "Set labels",
        usage: "label KIND NAME KEY=VALUE… KEY-…",
        flags: &[OUTPUT, SELECTOR, ALL, DRY_RUN, switch("overwrite", None, "change what is set")],
    },
    Command {
        name: "annotate",
        aliases: &[],
        about: "Set annotations",
        usage: "annotate KIND NAME KEY=VALUE… KEY-…",
        flags: &[OUTPUT, SELECTOR, ALL, DRY_RUN, switch("overwrite", None, "change what is set")],
    },
    Command {
        name: "patch",
        aliases: &[],
        about: "Change fields",
        usage: "patch KIND NAME -p PATCH [--type strategic|merge|json]",
        flags: &[
            OUTPUT,
            DRY_RUN,
            MANAGED,
            value("patch", Some('p'), "the patch, JSON or YAML"),
            value("patch-file", None, "a file with the patch"),
            value("type", None, "strategic (default), merge or json"),
            value("subresource", None, "status or scale"),
        ],
    },
    Command {
        name: "cordon",
        aliases: &[],
        about: "Keep new pods off nodes",
        usage: "cordon NODE…",
        flags: &[SELECTOR, DRY_RUN],
    },
    Command {
        name: "uncordon",
        aliases: &[],
        about: "Let new pods onto nodes",
        usage: "uncordon NODE…",
        flags: &[SELECTOR, DRY_RUN],
    },
    Command {
        name: "api-resources",
        aliases: &[],
        about: "List the kinds the server knows",
        usage: "api-resources",
        flags: &[
            value("output", Some('o'), "name|wide"),
            value("api-group", None, "only this group"),
            optional("namespaced", "true", "only namespaced (or, =false, only others)"),
            switch("no-headers", None, "no header line"),
        ],
    },
    Command {
        name: "version",
        aliases: &[],
        about: "Show client and server versions",
        usage: "version [--client]",
        flags: &[switch("client", None, "only the client's"), OUTPUT],
    },
];

/// The command of a name.
pub fn find(word: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == word || command.aliases.contains(&word))
}

/// The list.
pub fn help() -> String {
    let mut text =
        String::from("kubectl's verbs, built in. Usage: keelson kubectl COMMAND [flags]\n\nCommands:\n");
    for command in COMMANDS {
        text.push_str(&format!("  {:<14} {}\n", command.name, command.about));
    }
    text.push_str("\nkeelson kubectl COMMAND --help shows a command's flags.");
    text
}

impl Command {
    /// Usage and flags.
    pub fn help(&self) -> String {
        let mut text = format!("{}\n\nUsage: keelson kubectl {}\n\nFlags:\n", self.about, self.usage);
        for flag in self.flags.iter().chain(GLOBAL) {
            let short = flag.short.map_or("    ".into(), |short| format!("-{short}, "));
            text.push_str(&format!("  {short}--{:<26} {}\n", flag.long, flag.help));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_command_is_dispatched_and_no_flag_is_listed_twice() {
        let dispatch = include_str!("lib.rs");
        for command in COMMANDS {
            assert!(dispatch.contains(&format!("\"{}\" => ", command.name)), "{}", command.name);
            let mut seen = BTreeSet::new();
            let mut letters = BTreeSet::new();
            for flag in command.flags.iter().chain(GLOBAL) {
                assert!(seen.insert(flag.long), "{} --{}", command.name, flag.long);
                assert!(
                    flag.short.is_none_or(|short| letters.insert(short)),
                    "{} -{:?}",
                    command.name,
                    flag.short
                );
            }
        }
    }
}
