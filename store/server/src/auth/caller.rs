//! In whose name a handle speaks, and what the state lets them do.
//!
//! Judged twice: a write when it is applied, by the same rules on every member; everything else here, at one point of
//! the log together with what it reads.

use std::sync::Arc;
use std::time::Duration;

use keelson_store_core::{Command, Error, Identity, Response, State, auth::ROOT};
use tonic::Status;

use super::tokens::{Claim, Simple, Tokens};
use crate::convert::status;
use crate::handle::Handle;
use crate::rocks::Rocks;

/// How long a token given a moment ago on another member may take to be known here.
const TOKEN: Duration = Duration::from_secs(2);
/// How often a request is judged again whose identity was established just before users or roles changed.
const AGAIN: usize = 8;

/// Who speaks through a handle.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// This process: what is embedded with us, and our own chores. It may do everything.
    Process,
    /// A client on a connection, with what it shows.
    Client(Option<Arc<Credential>>),
}

/// What a client shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    /// As it was given, without `Bearer `.
    Token(String),
    /// The common name of a verified certificate.
    Certificate(Arc<str>),
}

/// The common name of a client's verified certificate; put beside each request of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientName(pub Arc<str>);

impl Handle {
    /// The same member, spoken to by a client.
    pub(crate) fn in_the_name_of(&self, credential: Option<Credential>) -> Handle {
        Handle { inner: self.inner.clone(), caller: Caller::Client(credential.map(Arc::new)) }
    }

    /// Whether users are asked who they are.
    pub(crate) fn guarded(&self) -> bool {
        self.inner.facts.auth()
    }

    /// Who asks, as of now; nobody while auth is off.
    ///
    /// # Errors
    /// A token that is none.
    pub(crate) async fn who(&self) -> Result<Identity, Status> {
        if !self.guarded() {
            return Ok(Identity::default());
        }
        let claim = match &self.caller {
            Caller::Process => Claim { user: ROOT.to_owned(), revision: None },
            Caller::Client(None) => return Ok(Identity::default()),
            Caller::Client(Some(credential)) => match &**credential {
                Credential::Certificate(name) => Claim { user: name.to_string(), revision: None },
                Credential::Token(token) => {
                    let claim = self.claim(token).await;
                    claim.ok_or_else(|| status(Error::InvalidAuthToken))?
                }
            },
        };
        let revision = match claim.revision {
            Some(revision) => revision,
            None => self.at_once(|state, _| state.auth().revision()).await?,
        };
        Ok(Identity { user: claim.user, revision })
    }

    async fn claim(&self, token: &str) -> Option<Claim> {
        match &*self.inner.tokens {
            Tokens::Jwt(jwt) => jwt.check(token),
            Tokens::Simple(simple) => {
                let (secret, index) = Simple::split(token)?;
                if let Some(user) = simple.look_up(secret) {
                    return Some(Claim { user, revision: None });
                }
                // Given on another member: it may not have been applied here.
                let applied = self.inner.replica.shared.wait_applied(index);
                tokio::time::timeout(TOKEN, applied).await.ok()?.ok()?;
                simple.look_up(secret).map(|user| Claim { user, revision: None })
            }
        }
    }

    /// Reads at one point of the log what the rules let the caller read.
    ///
    /// # Errors
    /// The caller may not; a token that is none.
    pub(crate) async fn allowed<T>(
        &self,
        rule: impl Fn(&State, &Identity, &Rocks) -> Result<(), Error>,
        read: impl Fn(&State, &Rocks) -> T,
    ) -> Result<T, Status> {
        for _ in 0..AGAIN {
            let who = self.who().await?;
            let judged = |state: &State, rocks: &Rocks| rule(state, &who, rocks).map(|()| read(state, rocks));
            match self.at_once(judged).await? {
                Err(Error::AuthOldRevision) if self.follows_changes() => {}
                answer => return answer.map_err(status),
            }
        }
        Err(status(Error::AuthOldRevision))
    }

    /// # Errors
    /// Nobody, or a token that is none.
    pub(crate) async fn allowed_any(&self) -> Result<(), Status> {
        self.allowed(|state, who, _| state.auth().check_user(who), |_, _| ()).await
    }

    /// # Errors
    /// Not root.
    pub(crate) async fn allowed_admin(&self) -> Result<(), Status> {
        self.allowed(|state, who, _| state.auth().check_admin(who), |_, _| ()).await
    }

    /// An identity that is established anew for each request, so that one from just before a change may be again.
    fn follows_changes(&self) -> bool {
        match &self.caller {
            Caller::Client(Some(credential)) => {
                !matches!((&**credential, &*self.inner.tokens), (Credential::Token(_), Tokens::Jwt(_)))
            }
            Caller::Client(None) => false,
            Caller::Process => true,
        }
    }

    /// A command in the caller's name.
    ///
    /// # Errors
    /// The command's own refusal; the caller may not.
    pub(crate) async fn propose_as_caller(&self, command: Command) -> Result<Response, Status> {
        if !self.guarded() {
            return self.propose(command).await;
        }
        for _ in 0..AGAIN {
            let who = self.who().await?;
            if who.user.is_empty() {
                // Unless auth was turned off meanwhile, nobody may write.
                self.allowed_any().await?;
                return self.propose(command).await;
            }
            let named = Command::As { who, command: Box::new(command.clone()) };
            match self.inner.replica.propose(named).await {
                Err(Error::AuthOldRevision) if self.follows_changes() => {}
                answer => return answer.map(|(_, response)| response).map_err(status),
            }
        }
        Err(status(Error::AuthOldRevision))
    }
}
