//! RangeStream: a range read once from one snapshot, piece by piece, as fast as the client takes it.
//!
//! The reader is a thread that waits for the client, so there is a bound on them; memory is a few pieces a stream.

use std::ops::ControlFlow;
use std::sync::Arc;

use keelson_store_core::{Error, KeyValue, RangeRequest, check, range_stream};
use keelson_store_proto::etcdserverpb as pb;
use tokio::sync::mpsc;
use tonic::Status;

use crate::convert::{self, status};
use crate::handle::{Handle, Member};

/// Streams read at a time; more wait for their turn.
pub(crate) const MOST: usize = 64;

/// Pieces that wait for the client.
const QUEUE: usize = 2;

type Pieces = mpsc::Sender<Result<pb::RangeStreamResponse, Status>>;

fn message(response: pb::RangeResponse) -> pb::RangeStreamResponse {
    pb::RangeStreamResponse { range_response: Some(response) }
}

/// Sends all pieces but the last, which it answers; `None` when nobody takes them any more.
fn read(
    replica: &Member,
    request: &RangeRequest,
    size: usize,
    pieces: &Pieces,
) -> Result<Option<keelson_store_core::RangeResponse>, Error> {
    let backend = replica.shared.backend.clone();
    let now = replica.shared.read(|state, _| (state.revision(), state.compact_revision(), backend.view()));
    let (revision, compacted, view) = now.ok_or(Error::TimeoutWaitAppliedIndex)?;
    let mut emit = |kvs: Vec<KeyValue>| {
        let kvs = kvs.into_iter().map(convert::key_value).collect();
        let piece = message(pb::RangeResponse { kvs, ..pb::RangeResponse::default() });
        match pieces.blocking_send(Ok(piece)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    range_stream::range_stream(revision, compacted, &view, request, size, &mut emit)
}

impl Handle {
    /// Opens a stream of pieces of at most about the request size limit; header, more and count come with the last.
    pub(crate) async fn range_stream(
        &self,
        r: pb::RangeRequest,
    ) -> Result<mpsc::Receiver<Result<pb::RangeStreamResponse, Status>>, Status> {
        let serializable = r.serializable;
        let request = convert::range(r);
        check::range(&request).map_err(status)?;
        range_stream::check(&request).map_err(status)?;
        let turn = Arc::clone(&self.inner.streams).acquire_owned();
        let turn = tokio::time::timeout(self.config().request_timeout(), turn).await;
        let Ok(Ok(turn)) = turn else { return Err(status(Error::TooManyRequests)) };
        self.prepare_read(serializable).await?;
        // Judged, and an installation waited out, here, so that the thread below need not.
        self.allowed(|state, who, _| state.auth().check_range(who, &request), |_, _| ()).await?;
        let (pieces, answers) = mpsc::channel(QUEUE);
        let (replica, headers) = (self.replica().clone(), self.headers());
        let size = self.config().max_request_bytes;
        tokio::task::spawn_blocking(move || {
            let last = match read(&replica, &request, size, &pieces) {
                Ok(Some(last)) => Ok(message(headers.range(last))),
                Ok(None) => return,
                Err(error) => Err(status(error)),
            };
            drop(turn);
            // The client may be gone.
            let _ = pieces.blocking_send(last);
        });
        Ok(answers)
    }
}
