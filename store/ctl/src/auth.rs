//! auth enable, disable, status.

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::auth_client::AuthClient;
use prost::Message as _;

use crate::command::{Command, ERROR, Failure, bad_args, fail};
use crate::flags::Args;
use crate::output::{Show, say};
use crate::session::{Settings, explain};
use crate::{ask, call, json, line};

pub const AUTH: Command = Command {
    long: "Enable or disable authentication",
    group: 3,
    ..Command::new(
        "auth",
        "<enable or disable>",
        "Enable or disable authentication. Use `etcdctl auth --help` to see subcommands",
    )
};

pub const ENABLE: Command = Command {
    run: Some(|args| Box::pin(enable(args))),
    ..Command::new("auth enable", "", "Enables authentication")
};

pub const DISABLE: Command = Command {
    run: Some(|args| Box::pin(disable(args))),
    ..Command::new("auth disable", "", "Disables authentication")
};

pub const STATUS: Command = Command {
    run: Some(|args| Box::pin(status(args))),
    ..Command::new("auth status", "", "Returns authentication status")
};

fn nothing(args: &Args, command: &str) -> Result<(), Failure> {
    if args.words.is_empty() {
        return Ok(());
    }
    bad_args(format!("auth {command} command does not accept any arguments"))
}

async fn enable(mut args: Args) -> Result<(), Failure> {
    nothing(&args, "enable")?;
    let (settings, _) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    loop {
        match call!(session, AuthClient.auth_enable(pb::AuthEnableRequest {})).await {
            Ok(_) => break,
            // Made for the user who has a root user but no root role yet.
            Err(status) if status.message() == "etcdserver: root user does not have root role" => {
                let role = pb::AuthRoleAddRequest { name: "root".to_owned() };
                ask!(session, AuthClient.role_add(role)).await?;
                let grant = pb::AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
                ask!(session, AuthClient.user_grant_role(grant)).await?;
            }
            Err(status) => return fail(ERROR, explain(&status)),
        }
    }
    say("Authentication Enabled")
}

async fn disable(mut args: Args) -> Result<(), Failure> {
    nothing(&args, "disable")?;
    let (settings, _) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    ask!(session, AuthClient.auth_disable(pb::AuthDisableRequest {})).await?;
    say("Authentication Disabled")
}

async fn status(mut args: Args) -> Result<(), Failure> {
    nothing(&args, "status")?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let answer = ask!(session, AuthClient.auth_status(pb::AuthStatusRequest {})).await?;
    output.show(&answer)
}

impl Show for pb::AuthStatusResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "Authentication Status: {}", self.enabled);
        line!(out, "AuthRevision: {}", self.auth_revision);
    }

    fn json(&self, _: bool) -> Option<String> {
        let head = json::answer(self.header.as_ref());
        Some(head.flag("enabled", self.enabled).number("authRevision", self.auth_revision).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

/// An answer that is a header alone, and what to say for it.
pub struct Done {
    pub said: String,
    pub header: Option<pb::ResponseHeader>,
}

impl Show for Done {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "{}", self.said);
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        crate::output::header(out, self.header.as_ref(), hex);
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(json::answer(self.header.as_ref()).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        // Every answer of this kind has its header as field 1.
        Some(pb::AuthEnableResponse { header: self.header }.encode_to_vec())
    }
}
