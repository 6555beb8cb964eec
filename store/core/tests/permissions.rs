//! Users, roles and permissions: etcd's rules and refusals, judged when a request is applied.

use bytes::Bytes;
use keelson_store_core::{
    Access, AuthChange, Batch, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, Error,
    Identity, MemoryBackend, Permission, PutRequest, RangeRequest, RequestOp, Response, State, TokenChange,
    TxnRequest, apply, invariants,
};

#[derive(Default)]
struct Store {
    state: State,
    backend: MemoryBackend,
    index: u64,
}

impl Store {
    fn run(&mut self, command: Command) -> Result<Response, Error> {
        self.run_with_tokens(command).0
    }

    fn run_with_tokens(&mut self, command: Command) -> (Result<Response, Error>, Vec<TokenChange>) {
        self.index += 1;
        let batch = Batch { commands: vec![command], ..Batch::default() };
        let mut effects = apply(&mut self.state, &self.backend, self.index, &batch);
        self.backend.write(&effects.writes);
        assert!(invariants::violated(&self.state, &self.backend).is_empty());
        (effects.responses.pop().expect("one command, one answer"), effects.tokens)
    }

    fn auth(&mut self, change: AuthChange) -> Result<Response, Error> {
        self.run(Command::Auth(change))
    }

    /// As the user, with a token of just now.
    fn by(&mut self, user: &str, command: Command) -> Result<Response, Error> {
        let who = Identity { user: user.into(), revision: self.state.auth().revision() };
        self.run(Command::As { who, command: Box::new(command) })
    }

    /// Root, and `u` with READWRITE on `[k, l)` and WRITE on `w`, and auth on.
    fn guarded() -> Store {
        let mut store = Store::default();
        for change in [
            add("u"),
            AuthChange::RoleAdd { name: "r".into() },
            grant(Access::ReadWrite, "k", "l"),
            grant(Access::Write, "w", ""),
            AuthChange::UserGrantRole { user: "u".into(), role: "r".into() },
            add("root"),
            AuthChange::UserGrantRole { user: "root".into(), role: "root".into() },
            AuthChange::Enable,
        ] {
            store.auth(change).expect("set up");
        }
        store
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn add(name: &str) -> AuthChange {
    AuthChange::UserAdd { name: name.into(), password_hash: Bytes::new() }
}

fn grant(access: Access, key: &str, end: &str) -> AuthChange {
    let permission = Some(Permission { access, key: bytes(key), range_end: bytes(end) });
    AuthChange::RoleGrantPermission { name: "r".into(), permission }
}

fn put(key: &str) -> PutRequest {
    PutRequest { key: bytes(key), ..PutRequest::default() }
}

#[test]
fn each_change_moves_the_auth_revision_and_a_refusal_does_not() {
    let mut store = Store::default();
    assert_eq!(store.state.auth().revision(), 1);
    assert!(store.auth(add("a")).is_ok());
    assert_eq!(store.auth(add("a")), Err(Error::UserExists));
    assert_eq!(store.auth(add("")), Err(Error::UserEmpty));
    assert_eq!(store.auth(AuthChange::Enable), Err(Error::RootUserNotExist));
    assert_eq!(store.state.auth().revision(), 2);
    assert!(store.auth(add("root")).is_ok());
    assert_eq!(store.auth(AuthChange::Enable), Err(Error::RootRoleNotExist));
    let unknown = AuthChange::UserGrantRole { user: "a".into(), role: "zz".into() };
    assert_eq!(store.auth(unknown), Err(Error::RoleNotFound));
    let revoke = AuthChange::UserRevokeRole { user: "a".into(), role: "zz".into() };
    assert_eq!(store.auth(revoke), Err(Error::RoleNotGranted));
    let nothing = AuthChange::RoleGrantPermission { name: "r".into(), permission: None };
    assert_eq!(store.auth(nothing), Err(Error::PermissionNotGiven));
    assert_eq!(store.state.auth().revision(), 3);
}

#[test]
fn a_role_that_goes_is_taken_from_everyone() {
    let mut store = Store::default();
    for change in [
        add("a"),
        AuthChange::RoleAdd { name: "r".into() },
        AuthChange::UserGrantRole { user: "a".into(), role: "r".into() },
        AuthChange::RoleDelete { name: "r".into() },
    ] {
        store.auth(change).expect("allowed");
    }
    assert!(store.state.auth().user("a").expect("a user").roles.is_empty());
}

#[test]
fn with_auth_on_nobody_is_refused_and_root_stays() {
    let mut store = Store::guarded();
    assert_eq!(store.run(Command::Put(put("k1"))), Err(Error::UserEmpty));
    assert_eq!(store.by("u", Command::Put(put("x"))), Err(Error::PermissionDenied));
    assert_eq!(store.by("ghost", Command::Put(put("k1"))), Err(Error::PermissionDenied));
    assert!(store.by("u", Command::Put(put("k1"))).is_ok());
    assert!(store.by("root", Command::Put(put("x"))).is_ok());
    assert_eq!(store.by("u", Command::Compact { revision: 2 }), Err(Error::PermissionDenied));
    let gone = Command::Auth(AuthChange::UserDelete { name: "root".into() });
    assert_eq!(store.by("root", gone), Err(Error::InvalidAuthManagement));
    let inner = Command::As { who: Identity::default(), command: Box::new(Command::Put(put("x"))) };
    assert_eq!(store.by("root", inner), Err(Error::InvalidAuthManagement));
}

#[test]
fn a_token_from_before_a_change_is_old() {
    let mut store = Store::guarded();
    let who = Identity { user: "u".into(), revision: store.state.auth().revision() };
    store.by("root", Command::Auth(add("b"))).expect("allowed");
    let command = Box::new(Command::Put(put("k1")));
    assert_eq!(store.run(Command::As { who, command }), Err(Error::AuthOldRevision));
}

#[test]
fn previous_values_nested_operations_and_leases_need_their_own_permission() {
    let mut store = Store::guarded();
    assert!(store.by("u", Command::Put(put("w"))).is_ok());
    let prev = PutRequest { prev_kv: true, ..put("w") };
    assert_eq!(store.by("u", Command::Put(prev)), Err(Error::PermissionDenied));
    let delete = DeleteRangeRequest { key: bytes("w"), range_end: Bytes::new(), prev_kv: true };
    assert_eq!(store.by("u", Command::DeleteRange(delete)), Err(Error::PermissionDenied));
    let hidden = TxnRequest { success: vec![RequestOp::Put(put("x"))], ..TxnRequest::default() };
    let nested = TxnRequest { failure: vec![RequestOp::Txn(hidden)], ..TxnRequest::default() };
    assert_eq!(store.by("u", Command::Txn(nested)), Err(Error::PermissionDenied));
    let peek = Compare {
        key: bytes("w"),
        range_end: Bytes::new(),
        result: CompareResult::Equal,
        target: CompareTarget::Version(1),
    };
    let peek = TxnRequest { compare: vec![peek], ..TxnRequest::default() };
    assert_eq!(store.by("u", Command::Txn(peek)), Err(Error::PermissionDenied));
    store.by("u", Command::LeaseGrant { id: 2, ttl: 60 }).expect("any user may");
    store.by("root", Command::Put(PutRequest { lease: 2, ..put("x") })).expect("root may");
    assert_eq!(
        store.by("u", Command::Put(PutRequest { lease: 2, ..put("k3") })),
        Err(Error::PermissionDenied)
    );
    assert_eq!(store.by("u", Command::LeaseRevoke { id: 2 }), Err(Error::PermissionDenied));
    assert!(store.by("root", Command::LeaseRevoke { id: 2 }).is_ok());
}

#[test]
fn neighbouring_ranges_cover_what_spans_them() {
    let mut store = Store::guarded();
    store.by("root", Command::Auth(grant(Access::Read, "l", "n"))).expect("allowed");
    let auth = store.state.auth();
    let who = Identity { user: "u".into(), revision: auth.revision() };
    let range =
        |key: &str, end: &str| RangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() };
    assert_eq!(auth.check_range(&who, &range("k", "n")), Ok(()));
    assert_eq!(auth.check_range(&who, &range("k5", "m")), Ok(()));
    for (key, end) in [("j", "l"), ("k", "n\0"), ("k", "\0"), ("w", "")] {
        assert_eq!(auth.check_range(&who, &range(key, end)), Err(Error::PermissionDenied), "{key:?} {end:?}");
    }
    assert_eq!(auth.check_admin(&who), Err(Error::PermissionDenied));
}

#[test]
fn users_and_roles_survive_a_restart() {
    let store = Store::guarded();
    let loaded = State::load(&store.backend).expect("what was written loads");
    assert_eq!(loaded.auth(), store.state.auth());
    assert!(loaded.auth().enabled());
}

fn give(user: &str, checked: u64) -> Command {
    Command::Auth(AuthChange::GiveToken { user: user.into(), digest: [7; 32], checked })
}

#[test]
fn a_token_is_given_only_under_the_auth_revision_its_password_was_compared_at() {
    let mut store = Store::default();
    assert_eq!(store.run(give("u", 1)), Err(Error::AuthNotEnabled));
    let mut store = Store::guarded();
    let now = store.state.auth().revision();
    assert_eq!(store.run(give("u", now - 1)), Err(Error::AuthOldRevision));
    assert_eq!(store.run(give("ghost", now)), Err(Error::AuthFailed));
    let (answer, tokens) = store.run_with_tokens(give("u", now));
    assert!(answer.is_ok());
    assert_eq!(tokens, [TokenChange::Given { user: "u".into(), digest: [7; 32] }]);
    assert_eq!(store.state.auth().revision(), now, "a token is no change of users or roles");
}

#[test]
fn a_changed_password_a_deleted_user_a_deleted_role_and_disabling_take_tokens_away() {
    let mut store = Store::guarded();
    let lost = |store: &mut Store, change: AuthChange| {
        let who = Identity { user: "root".into(), revision: store.state.auth().revision() };
        let command = Command::As { who, command: Box::new(Command::Auth(change)) };
        let (answer, tokens) = store.run_with_tokens(command);
        answer.expect("allowed");
        tokens
    };
    let by_u = [TokenChange::LostBy { user: "u".into() }];
    let password = AuthChange::UserChangePassword { name: "u".into(), password_hash: bytes("h") };
    assert_eq!(lost(&mut store, password), by_u);
    assert_eq!(lost(&mut store, AuthChange::RoleDelete { name: "r".into() }), by_u);
    assert_eq!(lost(&mut store, AuthChange::UserDelete { name: "u".into() }), by_u);
    assert_eq!(lost(&mut store, AuthChange::Disable), [TokenChange::AllLost]);
}

#[test]
fn users_see_themselves_and_their_roles_and_no_others() {
    let store = Store::guarded();
    let auth = store.state.auth();
    let who = Identity { user: "u".into(), revision: auth.revision() };
    assert_eq!(auth.check_user(&who), Ok(()));
    assert_eq!(auth.check_user(&Identity::default()), Err(Error::UserEmpty));
    assert_eq!(auth.check_user_get(&who, "u"), Ok(()));
    assert_eq!(auth.check_user_get(&who, "root"), Err(Error::PermissionDenied));
    assert_eq!(auth.check_role_get(&who, "r"), Ok(()));
    assert_eq!(auth.check_role_get(&who, "root"), Err(Error::PermissionDenied));
}

#[test]
fn a_downgrade_goes_one_minor_down_and_only_one_at_a_time() {
    use keelson_store_core::check::downgrade_target;
    assert_eq!(downgrade_target("3.6", (3, 7)), Ok("3.6.0".into()));
    assert_eq!(downgrade_target("3.6.4", (3, 7)), Ok("3.6.0".into()));
    for bad in ["", "bad", "3", "3.x", "3.6.x"] {
        assert_eq!(downgrade_target(bad, (3, 7)), Err(Error::WrongDowngradeVersionFormat), "{bad:?}");
    }
    for wrong in ["3.5.0", "3.7.0", "3.8.0", "4.0.0"] {
        assert_eq!(downgrade_target(wrong, (3, 7)), Err(Error::InvalidDowngradeTargetVersion), "{wrong}");
    }
    let mut store = Store::default();
    let begin = || Command::Downgrade { target: Some("3.6.0".into()) };
    assert!(store.run(begin()).is_ok());
    assert_eq!(store.run(begin()), Err(Error::DowngradeInProcess));
    let loaded = State::load(&store.backend).expect("what was written loads");
    assert_eq!(loaded.downgrade(), Some("3.6.0"));
    assert!(store.run(Command::Downgrade { target: None }).is_ok());
    assert!(store.run(begin()).is_ok());
}
