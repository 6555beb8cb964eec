//! Every refusal of the store, with etcd's exact text and gRPC code: clients match on both.
//!
//! The shell maps an [`Error`] to a gRPC status with `code()` and `to_string()`, nothing else.

use serde::{Deserialize, Serialize};

/// gRPC status codes the store uses; the number is the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    OutOfRange = 11,
    Unimplemented = 12,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

macro_rules! errors {
    ($($name:ident $code:ident $text:literal,)*) => {
        /// A refusal; `Display` is the exact text etcd's clients match on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
        pub enum Error {
            $(#[error($text)] $name,)*
        }

        impl Error {
            /// All of them, for tests and documentation.
            pub const ALL: &'static [Error] = &[$(Error::$name,)*];

            /// The gRPC code that belongs to the text.
            pub const fn code(self) -> Code {
                match self { $(Error::$name => Code::$code,)* }
            }
        }
    };
}

errors! {
    EmptyKey InvalidArgument "etcdserver: key is not provided",
    KeyNotFound InvalidArgument "etcdserver: key not found",
    ValueProvided InvalidArgument "etcdserver: value is provided",
    LeaseProvided InvalidArgument "etcdserver: lease is provided",
    TooManyOps InvalidArgument "etcdserver: too many operations in txn request",
    DuplicateKey InvalidArgument "etcdserver: duplicate key given in txn request",
    InvalidClientApiVersion InvalidArgument "etcdserver: invalid client api version",
    InvalidSortOption InvalidArgument "etcdserver: invalid sort option",
    InvalidMemberUrls InvalidArgument "etcdserver: given member URLs are invalid",
    RequestTooLarge InvalidArgument "etcdserver: request is too large",
    UserEmpty InvalidArgument "etcdserver: user name is empty",
    RoleEmpty InvalidArgument "etcdserver: role name is empty",
    AuthFailed InvalidArgument "etcdserver: authentication failed, invalid user ID or password",
    PermissionNotGiven InvalidArgument "etcdserver: permission not given",
    InvalidAuthManagement InvalidArgument "etcdserver: invalid auth management",
    AuthOldRevision InvalidArgument "etcdserver: revision of auth store is old",
    WrongDowngradeVersionFormat InvalidArgument "etcdserver: wrong downgrade target version format",
    InvalidDowngradeTargetVersion InvalidArgument "etcdserver: invalid downgrade target version",

    Compacted OutOfRange "etcdserver: mvcc: required revision has been compacted",
    FutureRevision OutOfRange "etcdserver: mvcc: required revision is a future revision",
    LeaseTtlTooLarge OutOfRange "etcdserver: too large lease TTL",

    NoSpace ResourceExhausted "etcdserver: mvcc: database space exceeded",
    TooManyRequests ResourceExhausted "etcdserver: too many requests",

    LeaseNotFound NotFound "etcdserver: requested lease not found",
    MemberNotFound NotFound "etcdserver: member not found",

    LeaseExists FailedPrecondition "etcdserver: lease already exists",
    MemberExists FailedPrecondition "etcdserver: member ID already exist",
    PeerUrlsExist FailedPrecondition "etcdserver: Peer URLs already exists",
    NotEnoughStartedMembers FailedPrecondition "etcdserver: re-configuration failed due to not enough started members",
    NotLearner FailedPrecondition "etcdserver: can only promote a learner member",
    LearnerNotReady FailedPrecondition "etcdserver: can only promote a learner member which is in sync with leader",
    TooManyLearners FailedPrecondition "etcdserver: too many learner members in cluster",
    ClusterIdMismatch FailedPrecondition "etcdserver: cluster ID mismatch",
    RootUserNotExist FailedPrecondition "etcdserver: root user does not exist",
    RootRoleNotExist FailedPrecondition "etcdserver: root user does not have root role",
    UserExists FailedPrecondition "etcdserver: user name already exists",
    UserNotFound FailedPrecondition "etcdserver: user name not found",
    RoleExists FailedPrecondition "etcdserver: role name already exists",
    RoleNotFound FailedPrecondition "etcdserver: role name not found",
    RoleNotGranted FailedPrecondition "etcdserver: role is not granted to the user",
    PermissionNotGranted FailedPrecondition "etcdserver: permission is not granted to the role",
    AuthNotEnabled FailedPrecondition "etcdserver: authentication is not enabled",
    NotLeader FailedPrecondition "etcdserver: not leader",
    NotCapable FailedPrecondition "etcdserver: not capable",
    NotSupportedForLearner FailedPrecondition "etcdserver: rpc not supported for learner",
    BadLeaderTransferee FailedPrecondition "etcdserver: bad leader transferee",
    ClusterVersionUnavailable FailedPrecondition "etcdserver: cluster version not found during downgrade",
    DowngradeInProcess FailedPrecondition "etcdserver: cluster has a downgrade job in progress",
    NoInflightDowngrade FailedPrecondition "etcdserver: no inflight downgrade job",

    PermissionDenied PermissionDenied "etcdserver: permission denied",
    InvalidAuthToken Unauthenticated "etcdserver: invalid auth token",

    NoLeader Unavailable "etcdserver: no leader",
    LeaderChanged Unavailable "etcdserver: leader changed",
    Stopped Unavailable "etcdserver: server stopped",
    Timeout Unavailable "etcdserver: request timed out",
    TimeoutDueToLeaderFail Unavailable "etcdserver: request timed out, possibly due to previous leader failure",
    TimeoutDueToConnectionLost Unavailable "etcdserver: request timed out, possibly due to connection lost",
    TimeoutWaitAppliedIndex Unavailable "etcdserver: request timed out, waiting for the applied index took too long",
    Unhealthy Unavailable "etcdserver: unhealthy cluster",

    RangeStreamSorted Unimplemented "RangeStream does not support custom sort orders",
    RangeStreamFiltered Unimplemented "RangeStream does not support revision filters",

    Corrupt DataLoss "etcdserver: corrupt cluster",
    WatchCanceled Canceled "etcdserver: watch canceled",

    DeadlineExceeded DeadlineExceeded "context deadline exceeded",
    UnknownMethod Unknown "etcdserver: unknown method",
    NoPasswordUser Unknown "auth: authentication failed, password was given for no password user",
}
