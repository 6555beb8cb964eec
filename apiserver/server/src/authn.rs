//! Who asks: client certificate, then bearer token, then nobody; and whom they ask to be taken for.

use std::collections::BTreeMap;

use http::HeaderMap;
use keelson_api::Status;
use keelson_apiserver_core::{Attributes, UserInfo, authz};
use percent_encoding::percent_decode_str;

use crate::server::Server;
use crate::tokens::Verified;

const AUTHENTICATED: &str = "system:authenticated";

/// The user of a request without credentials.
pub fn anonymous() -> UserInfo {
    let groups = vec!["system:unauthenticated".to_owned()];
    UserInfo { name: "system:anonymous".to_owned(), groups, ..UserInfo::default() }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// A token in `Sec-WebSocket-Protocol`, as browsers can only send it there.
fn websocket_token(headers: &HeaderMap) -> Option<String> {
    use base64::Engine as _;
    const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
    let value = headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = value.split(',').find_map(|p| p.trim().strip_prefix(PREFIX))?;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(token).ok()
}

/// Checks a bearer token of any kind. Empty `audiences` mean this server.
///
/// # Errors
/// Why it is refused, in words.
pub fn token(server: &Server, token: &str, audiences: &[String]) -> Result<Verified, String> {
    let known = server.config.static_tokens.iter().find(|(known, _)| same(known, token));
    if let Some((_, user)) = known {
        return Ok(Verified { user: user.clone(), audiences: server.tokens.audiences.clone() });
    }
    let now = jiff::Timestamp::now().as_second();
    server.tokens.verify(token, audiences, now, &server.view)
}

/// Compares in a time that does not tell where the difference is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// The user of a request.
///
/// # Errors
/// 401 for credentials that are not good.
pub fn authenticate(
    server: &Server,
    certificate: Option<&UserInfo>,
    headers: &HeaderMap,
) -> Result<UserInfo, Status> {
    let mut user = if let Some(user) = certificate {
        user.clone()
    } else if let Some(given) = bearer(headers).map(str::to_owned).or_else(|| websocket_token(headers)) {
        token(server, &given, &[])
            .map_err(|why| {
                tracing::debug!(why, "token refused");
                Status::unauthorized()
            })?
            .user
    } else {
        return Ok(anonymous());
    };
    if !user.in_group(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    Ok(user)
}

/// Replaces the user by the one of the `Impersonate-…` headers, if there are any and the user may do that.
///
/// # Errors
/// 403 when not, 400 or 500 when groups come without a user.
///
/// A right to impersonate may be limited: to a way of doing so (`impersonate:user-info` on the user), together with what is
/// then done (`impersonate-on:user-info:list` on the resource). The older right is asked for last, and its lack is reported
/// as the lack of the newer one.
pub fn impersonate(
    server: &Server,
    user: UserInfo,
    headers: &HeaderMap,
    request: impl FnOnce(UserInfo) -> Attributes,
) -> Result<UserInfo, Status> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let (name, groups, uid) = (all("impersonate-user"), all("impersonate-group"), all("impersonate-uid"));
    let extra = impersonated_extra(headers);
    let Some(name) = name.into_iter().next().filter(|n| !n.is_empty()) else {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(user);
        }
        let list: Vec<String> = groups.iter().map(|g| format!("{g:?}")).collect();
        let list = if list.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", list.join(", ")) };
        return Err(Status::bad_request(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:[]string{list}, Extra:map[string][]string(nil)}} without \
             impersonating a user name",
            uid.first().map_or("", String::as_str)
        )));
    };
    let mut asked = vec![];
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => {
            asked.push(("", "serviceaccounts", "", namespace.to_owned(), account.to_owned()))
        }
        None => asked.push(("", "users", "", String::new(), name.clone())),
    }
    asked.extend(groups.iter().map(|g| ("", "groups", "", String::new(), g.clone())));
    asked.extend(uid.iter().map(|u| ("authentication.k8s.io", "uids", "", String::new(), u.clone())));
    for (key, values) in &extra {
        asked.extend(
            values
                .iter()
                .map(|v| ("authentication.k8s.io", "userextras", key.as_str(), String::new(), v.clone())),
        );
    }
    let denied = |verb: &str, limited: bool| {
        asked.iter().find_map(|(group, resource, subresource, namespace, name)| {
            let attributes = Attributes {
                user: user.clone(),
                verb: verb.to_owned(),
                group: if limited { "authentication.k8s.io" } else { *group }.to_owned(),
                resource: (*resource).to_owned(),
                subresource: (*subresource).to_owned(),
                namespace: namespace.clone(),
                name: name.clone(),
                is_resource: true,
                ..Attributes::default()
            };
            refusal(server, &attributes)
        })
    };
    if denied("impersonate", false).is_some() {
        let mode = if account.is_some() { "serviceaccount" } else { "user-info" };
        let mut action = request(user.clone());
        action.verb = format!("impersonate-on:{mode}:{}", action.verb);
        let refused = refusal(server, &action).or_else(|| denied(&format!("impersonate:{mode}"), true));
        if let Some(status) = refused {
            return Err(status);
        }
    }
    Ok(taken_for(name, uid, groups, extra))
}

/// The 403, if what is asked for is not allowed.
fn refusal(server: &Server, attributes: &Attributes) -> Option<Status> {
    match authz::authorize(attributes, &server.view) {
        authz::Decision::Deny { reason } => Some(forbidden(attributes, &reason)),
        authz::Decision::Allow { .. } => None,
    }
}

fn impersonated_extra(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix("impersonate-extra-"), value.to_str()) {
            let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
            extra.entry(key).or_default().push(value.to_owned());
        }
    }
    extra
}

fn taken_for(
    name: String,
    uid: Vec<String>,
    mut groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
) -> UserInfo {
    if let Some((namespace, _)) =
        name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
        && groups.is_empty()
    {
        groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let implied = if name == "system:anonymous" { "system:unauthenticated" } else { AUTHENTICATED };
    if !groups.iter().any(|g| g == implied) {
        groups.push(implied.to_owned());
    }
    UserInfo { name, uid: uid.into_iter().next().unwrap_or_default(), groups, extra }
}

/// The 403 of a denied request.
pub fn forbidden(attributes: &Attributes, reason: &str) -> Status {
    let mut sentence = attributes.sentence();
    if !reason.is_empty() {
        sentence = format!("{sentence}: {reason}");
    }
    if !attributes.is_resource {
        return Status::forbidden_path(&sentence);
    }
    let mut status = Status::forbidden_path(&sentence);
    let resource = if attributes.group.is_empty() {
        attributes.resource.clone()
    } else {
        format!("{}.{}", attributes.resource, attributes.group)
    };
    let object = if attributes.name.is_empty() { String::new() } else { format!(" \"{}\"", attributes.name) };
    status.message = format!("{resource}{object} is forbidden: {sentence}");
    status.name = attributes.name.clone();
    status.group = attributes.group.clone();
    status.kind = attributes.resource.clone();
    status
}
