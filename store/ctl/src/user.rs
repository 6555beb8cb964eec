//! user add, delete, get, list, passwd, grant-role, revoke-role.

use std::io::IsTerminal as _;

use keelson_store_proto::authpb::UserAddOptions;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::auth_client::AuthClient;
use prost::Message as _;

use crate::auth::Done;
use crate::command::{Command, Failure, bad_args};
use crate::flags::{Args, Kind, flag};
use crate::output::{Output, Show, print, say};
use crate::role::Role;
use crate::session::{Session, Settings};
use crate::{ask, json, line};

pub const USER: Command = Command {
    long: "User related commands",
    group: 3,
    ..Command::new(
        "user",
        "<subcommand>",
        "User related commands. Use `etcdctl user --help` to see subcommands",
    )
};

pub const ADD: Command = Command {
    flags: &[
        flag("interactive", Kind::Bool, "true", "Read password from stdin instead of interactive terminal"),
        flag("new-user-password", Kind::Text, "", "Supply password from the command line flag"),
        flag("no-password", Kind::Bool, "", "Create a user without password (CN based auth only)"),
    ],
    run: Some(|args| Box::pin(add(args))),
    ..Command::new("user add", "<user name or user:password> [options]", "Adds a new user")
};

pub const DELETE: Command = Command {
    run: Some(|args| Box::pin(delete(args))),
    ..Command::new("user delete", "<user name>", "Deletes a user")
};

pub const GET: Command = Command {
    flags: &[flag("detail", Kind::Bool, "", "Show permissions of roles granted to the user")],
    run: Some(|args| Box::pin(get(args))),
    ..Command::new("user get", "<user name> [options]", "Gets detailed information of a user")
};

pub const LIST: Command =
    Command { run: Some(|args| Box::pin(list(args))), ..Command::new("user list", "", "Lists all users") };

pub const PASSWD: Command = Command {
    flags: &[flag(
        "interactive",
        Kind::Bool,
        "true",
        "If true, read password from stdin instead of interactive terminal",
    )],
    run: Some(|args| Box::pin(passwd(args))),
    ..Command::new("user passwd", "<user name> [options]", "Changes password of user")
};

pub const GRANT_ROLE: Command = Command {
    run: Some(|args| Box::pin(grant_role(args))),
    ..Command::new("user grant-role", "<user name> <role name>", "Grants a role to a user")
};

pub const REVOKE_ROLE: Command = Command {
    run: Some(|args| Box::pin(revoke_role(args))),
    ..Command::new("user revoke-role", "<user name> <role name>", "Revokes a role from a user")
};

async fn open(args: &mut Args) -> Result<(Session, Output), Failure> {
    let (settings, output) = Settings::new(args).await?;
    Ok((settings.open().await?, output))
}

fn name(args: &Args, needs: &str) -> Result<String, Failure> {
    match args.words.as_slice() {
        [name] => Ok(name.clone()),
        _ => bad_args(needs),
    }
}

fn pair(args: &Args, needs: &str) -> Result<(String, String), Failure> {
    match args.words.as_slice() {
        [user, role] => Ok((user.clone(), role.clone())),
        _ => bad_args(needs),
    }
}

/// One word of standard input.
fn word() -> String {
    let mut line = String::new();
    // No line is an empty password, which the server refuses.
    let _ = std::io::stdin().read_line(&mut line);
    line.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Asked for twice; without a terminal, two lines of standard input.
fn asked(name: &str) -> Result<String, Failure> {
    let ask = |prompt: String| -> Result<String, Failure> {
        if std::io::stdin().is_terminal() {
            return rpassword::prompt_password(&prompt)
                .or_else(|error| bad_args(format!("failed to ask password: {error}")));
        }
        print(prompt.as_bytes())?;
        let mut line = String::new();
        // The end of the input is an empty password.
        let _ = std::io::stdin().read_line(&mut line);
        say("")?;
        Ok(line.trim_end_matches(['\n', '\r']).to_owned())
    };
    let password = ask(format!("Password of {name}: "))?;
    if password.is_empty() {
        return bad_args("empty password");
    }
    if ask(format!("Type password of {name} again for confirmation: "))? != password {
        return bad_args("given passwords are different");
    }
    Ok(password)
}

async fn add(mut args: Args) -> Result<(), Failure> {
    let given = name(&args, "user add command requires user name as its argument")?;
    let mut user = given.clone();
    let no_password = args.on("no-password");
    let password = if no_password {
        String::new()
    } else if !args.text("new-user-password").is_empty() {
        args.text("new-user-password").to_owned()
    } else if let Some((before, after)) = given.split_once(':') {
        before.clone_into(&mut user);
        if user.is_empty() {
            return bad_args("empty user name is not allowed");
        }
        after.to_owned()
    } else if args.on("interactive") {
        asked(&given)?
    } else {
        word()
    };
    let (session, output) = open(&mut args).await?;
    let options = Some(UserAddOptions { no_password });
    let request = pb::AuthUserAddRequest { name: user.clone(), password, options, ..Default::default() };
    let answer = ask!(session, AuthClient.user_add(request)).await?;
    output.show(&Done { said: format!("User {user} created"), header: answer.header })
}

async fn delete(mut args: Args) -> Result<(), Failure> {
    let name = name(&args, "user delete command requires user name as its argument")?;
    let (session, output) = open(&mut args).await?;
    let answer =
        ask!(session, AuthClient.user_delete(pb::AuthUserDeleteRequest { name: name.clone() })).await?;
    output.show(&Done { said: format!("User {name} deleted"), header: answer.header })
}

async fn get(mut args: Args) -> Result<(), Failure> {
    let name = name(&args, "user get command requires user name as its argument")?;
    let (session, output) = open(&mut args).await?;
    let answer = ask!(session, AuthClient.user_get(pb::AuthUserGetRequest { name: name.clone() })).await?;
    if !args.on("detail") {
        return output.show(&User { name, answer });
    }
    say(format!("User: {name}"))?;
    for role in answer.roles {
        say("")?;
        let answer =
            ask!(session, AuthClient.role_get(pb::AuthRoleGetRequest { role: role.clone() })).await?;
        output.show(&Role { name: role, answer })?;
    }
    Ok(())
}

async fn list(mut args: Args) -> Result<(), Failure> {
    if !args.words.is_empty() {
        return bad_args("user list command requires no arguments");
    }
    let (session, output) = open(&mut args).await?;
    let answer = ask!(session, AuthClient.user_list(pb::AuthUserListRequest {})).await?;
    output.show(&answer)
}

async fn passwd(mut args: Args) -> Result<(), Failure> {
    let name = name(&args, "user passwd command requires user name as its argument")?;
    let password = if args.on("interactive") { asked(&name)? } else { word() };
    let (session, output) = open(&mut args).await?;
    let request = pb::AuthUserChangePasswordRequest { name, password, ..Default::default() };
    let answer = ask!(session, AuthClient.user_change_password(request)).await?;
    output.show(&Done { said: "Password updated".to_owned(), header: answer.header })
}

async fn grant_role(mut args: Args) -> Result<(), Failure> {
    let (user, role) = pair(&args, "user grant command requires user name and role name as its argument")?;
    let (session, output) = open(&mut args).await?;
    let said = format!("Role {role} is granted to user {user}");
    let answer = ask!(
        session,
        AuthClient.user_grant_role(pb::AuthUserGrantRoleRequest { user: user.clone(), role: role.clone() })
    )
    .await?;
    output.show(&Done { said, header: answer.header })
}

async fn revoke_role(mut args: Args) -> Result<(), Failure> {
    let (name, role) = pair(&args, "user revoke-role requires user name and role name as its argument")?;
    let (session, output) = open(&mut args).await?;
    let said = format!("Role {role} is revoked from user {name}");
    let request = pb::AuthUserRevokeRoleRequest { name, role };
    let answer = ask!(session, AuthClient.user_revoke_role(request)).await?;
    output.show(&Done { said, header: answer.header })
}

struct User {
    name: String,
    answer: pb::AuthUserGetResponse,
}

impl Show for User {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        let roles: String = self.answer.roles.iter().map(|role| format!(" {role}")).collect();
        line!(out, "User: {}", self.name);
        line!(out, "Roles:{roles}");
    }

    fn json(&self, _: bool) -> Option<String> {
        let head = json::answer(self.answer.header.as_ref());
        Some(head.list("roles", &self.answer.roles, |role| json::text(role)).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

impl Show for pb::AuthUserListResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        self.users.iter().for_each(|user| line!(out, "{user}"));
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(json::answer(self.header.as_ref()).list("users", &self.users, |user| json::text(user)).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}
