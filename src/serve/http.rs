//! The accept loop. hyper serves each connection. This module adds what `axum::serve` lacks: a limit on connections,
//! and a limit on the time that a client may take for its headers.
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

/// The time that a client may take to send the head of a request. It is also how long an idle connection is kept,
/// which is longer than proxies keep theirs, so that none of them sends a request into a connection that is being
/// closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// The most connections at one time. Others wait in the system's queue.
const MOST_CONNECTIONS: usize = 4096;
/// The most bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;

/// Accepts connections until `stop`, then closes the idle ones, and waits for the busy ones until `closed` is over.
pub(super) async fn accept(listener: TcpListener, app: Router, stop: oneshot::Receiver<()>, closed: Duration) {
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async { (connections.clone().acquire_owned().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            _ = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                // The error may be that too many files are open. The loop must not spin until some are closed.
                log::warn!("a connection cannot be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Nagle's algorithm would delay the small pieces of a stream.
        stream.set_nodelay(true).ok();
        let service = TowerToHyperService::new(app.clone());
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // An error of a connection concerns only its client, and the client has noticed it already.
            connection.await.ok();
            drop(permit);
        });
    }
    drop(listener);
    tokio::time::timeout(closed, graceful.shutdown()).await.ok();
}
