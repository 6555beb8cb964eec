//! role add, delete, get, list, grant-permission, revoke-permission.

use keelson_store_proto::authpb::Permission;
use keelson_store_proto::authpb::permission::Type;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::auth_client::AuthClient;
use prost::Message as _;

use crate::auth::Done;
use crate::command::{Command, Failure, bad_args};
use crate::flags::{Args, Flag, Kind, flag};
use crate::output::{Output, Show, header};
use crate::session::{Session, Settings};
use crate::text::{prefix_end, quote};
use crate::{ask, json, line};

pub const ROLE: Command = Command {
    long: "Role related commands",
    group: 3,
    ..Command::new(
        "role",
        "<subcommand>",
        "Role related commands. Use `etcdctl role --help` to see subcommands",
    )
};

pub const ADD: Command = Command {
    run: Some(|args| Box::pin(add(args))),
    ..Command::new("role add", "<role name>", "Adds a new role")
};

pub const DELETE: Command = Command {
    run: Some(|args| Box::pin(delete(args))),
    ..Command::new("role delete", "<role name>", "Deletes a role")
};

pub const GET: Command = Command {
    run: Some(|args| Box::pin(get(args))),
    ..Command::new("role get", "<role name>", "Gets detailed information of a role")
};

pub const LIST: Command =
    Command { run: Some(|args| Box::pin(list(args))), ..Command::new("role list", "", "Lists all roles") };

const GRANT_FLAGS: &[Flag] = &[
    flag("prefix", Kind::Bool, "", "grant a prefix permission"),
    flag(
        "from-key",
        Kind::Bool,
        "",
        "grant a permission of keys that are greater than or equal to the given key using byte compare",
    ),
];

pub const GRANT: Command = Command {
    flags: GRANT_FLAGS,
    run: Some(|args| Box::pin(grant(args))),
    ..Command::new(
        "role grant-permission",
        "[options] <role name> <permission type> <key> [endkey]",
        "Grants a key to a role",
    )
};

pub const REVOKE: Command = Command {
    flags: &[
        flag("prefix", Kind::Bool, "", "revoke a prefix permission"),
        flag(
            "from-key",
            Kind::Bool,
            "",
            "revoke a permission of keys that are greater than or equal to the given key using byte compare",
        ),
    ],
    run: Some(|args| Box::pin(revoke(args))),
    ..Command::new("role revoke-permission", "<role name> <key> [endkey]", "Revokes a key from a role")
};

async fn open(args: &mut Args) -> Result<(Session, Output), Failure> {
    let (settings, output) = Settings::new(args).await?;
    Ok((settings.open().await?, output))
}

fn name(args: &Args, command: &str) -> Result<String, Failure> {
    match args.words.as_slice() {
        [name] => Ok(name.clone()),
        _ => bad_args(format!("role {command} command requires role name as its argument")),
    }
}

async fn add(mut args: Args) -> Result<(), Failure> {
    let name = name(&args, "add")?;
    let (session, output) = open(&mut args).await?;
    let answer = ask!(session, AuthClient.role_add(pb::AuthRoleAddRequest { name: name.clone() })).await?;
    output.show(&Done { said: format!("Role {name} created"), header: answer.header })
}

async fn delete(mut args: Args) -> Result<(), Failure> {
    let role = name(&args, "delete")?;
    let (session, output) = open(&mut args).await?;
    let answer =
        ask!(session, AuthClient.role_delete(pb::AuthRoleDeleteRequest { role: role.clone() })).await?;
    output.show(&Done { said: format!("Role {role} deleted"), header: answer.header })
}

async fn get(mut args: Args) -> Result<(), Failure> {
    let name = name(&args, "get")?;
    let (session, output) = open(&mut args).await?;
    let answer = ask!(session, AuthClient.role_get(pb::AuthRoleGetRequest { role: name.clone() })).await?;
    output.show(&Role { name, answer })
}

async fn list(mut args: Args) -> Result<(), Failure> {
    if !args.words.is_empty() {
        return bad_args("role list command requires no arguments");
    }
    let (session, output) = open(&mut args).await?;
    let answer = ask!(session, AuthClient.role_list(pb::AuthRoleListRequest {})).await?;
    output.show(&answer)
}

/// Key and end of a permission.
fn range(args: &Args, words: &[String]) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let (prefix, from) = (args.on("prefix"), args.on("from-key"));
    if prefix && from {
        return bad_args("--from-key and --prefix flags are mutually exclusive");
    }
    let key = words[0].clone().into_bytes();
    if key.is_empty() {
        // Nothing sorts before one zero byte, and an end of one zero byte is no end.
        return Ok((vec![0], if prefix || from { vec![0] } else { Vec::new() }));
    }
    match (words.get(1), prefix, from) {
        (Some(_), true, _) => bad_args("unexpected endkey argument with --prefix flag"),
        (Some(_), _, true) => bad_args("unexpected endkey argument with --from-key flag"),
        (Some(end), ..) => Ok((key, end.clone().into_bytes())),
        (None, true, _) => {
            let end = prefix_end(&key);
            Ok((key, end))
        }
        (None, _, true) => Ok((key, vec![0])),
        (None, ..) => Ok((key, Vec::new())),
    }
}

async fn grant(mut args: Args) -> Result<(), Failure> {
    let [name, kind, key @ ..] = args.words.as_slice() else {
        return bad_args(
            "role grant command requires role name, permission type, and key [endkey] as its argument",
        );
    };
    if key.is_empty() {
        return bad_args(
            "role grant command requires role name, permission type, and key [endkey] as its argument",
        );
    }
    let perm_type = match kind.to_uppercase().as_str() {
        "READ" => Type::Read,
        "WRITE" => Type::Write,
        "READWRITE" => Type::Readwrite,
        _ => return bad_args(format!("invalid permission type: {kind}")),
    };
    let (key, range_end) = range(&args, key)?;
    let name = name.clone();
    let (session, output) = open(&mut args).await?;
    let perm = Permission { perm_type: perm_type.into(), key: key.into(), range_end: range_end.into() };
    let said = format!("Role {name} updated");
    let request = pb::AuthRoleGrantPermissionRequest { name, perm: Some(perm) };
    let answer = ask!(session, AuthClient.role_grant_permission(request)).await?;
    output.show(&Done { said, header: answer.header })
}

async fn revoke(mut args: Args) -> Result<(), Failure> {
    let [role, words @ ..] = args.words.as_slice() else {
        return bad_args(
            "role revoke-permission command requires role name and key [endkey] as its argument",
        );
    };
    if words.is_empty() {
        return bad_args(
            "role revoke-permission command requires role name and key [endkey] as its argument",
        );
    }
    let (key, range_end) = range(&args, words)?;
    let (role, shown) = (role.clone(), words[0].clone());
    let said = match String::from_utf8_lossy(&range_end).as_ref() {
        "" => format!("Permission of key {shown} is revoked from role {role}"),
        "\0" => format!("Permission of range [{shown}, <open ended> is revoked from role {role}"),
        end => format!("Permission of range [{shown}, {end}) is revoked from role {role}"),
    };
    let (session, output) = open(&mut args).await?;
    let request = pb::AuthRoleRevokePermissionRequest { role, key: key.into(), range_end: range_end.into() };
    let answer = ask!(session, AuthClient.role_revoke_permission(request)).await?;
    output.show(&Done { said, header: answer.header })
}

/// A role's name and permissions.
pub struct Role {
    pub name: String,
    pub answer: pb::AuthRoleGetResponse,
}

fn permission_line(permission: &Permission) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (key, end) = (text(&permission.key), text(&permission.range_end));
    let range = match end.as_str() {
        "" => return format!("\t{key}"),
        "\0" => format!("\t[{key}, <open ended>"),
        end => format!("\t[{key}, {end})"),
    };
    let prefix = !permission.key.is_empty() && prefix_end(&permission.key) == permission.range_end;
    if prefix { format!("{range} (prefix {key})") } else { range }
}

impl Show for Role {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "Role {}", self.name);
        let everything = self.name == "root" && self.answer.perm.is_empty();
        for (title, kind) in [("Read", Type::Read), ("Write", Type::Write)] {
            line!(out, "KV {title}:");
            if everything {
                line!(out, "\t[, <open ended>");
            }
            let fits = |p: &&Permission| p.perm_type() == kind || p.perm_type() == Type::Readwrite;
            self.answer.perm.iter().filter(fits).for_each(|p| line!(out, "{}", permission_line(p)));
        }
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.answer.header.as_ref(), hex);
        for permission in &self.answer.perm {
            line!(out, "\"PermType\" :  {}", permission.perm_type().as_str_name());
            line!(out, "\"Key\" : {}", quote(&permission.key));
            line!(out, "\"RangeEnd\" : {}", quote(&permission.range_end));
        }
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        let each = |permission: &Permission| {
            json::Object::default()
                .number("permType", permission.perm_type)
                .bytes("key", &permission.key)
                .bytes("range_end", &permission.range_end)
                .end()
        };
        Some(json::answer(self.answer.header.as_ref()).list("perm", &self.answer.perm, each).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

impl Show for pb::AuthRoleListResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        self.roles.iter().for_each(|role| line!(out, "{role}"));
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        let roles: String = self.roles.iter().map(|role| format!(" {}", quote(role.as_bytes()))).collect();
        line!(out, "\"Roles\" :{roles}");
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(json::answer(self.header.as_ref()).list("roles", &self.roles, |role| json::text(role)).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}
