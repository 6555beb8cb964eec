//! Fail points over HTTP, in gofail's protocol, where `GOFAIL_HTTP` says: `GET /` lists `name=terms`, `GET /name` tells
//! one, `PUT /name` arms it and `DELETE /name` disarms it (204). `GOFAIL_FAILPOINTS=name=terms;…` arms before the start.
//!
//! Only builds with debug assertions have them. A panic ends the process at once there, as a panic ends a Go program.

#[cfg(not(debug_assertions))]
pub async fn begin() -> anyhow::Result<()> {
    if std::env::var_os("GOFAIL_HTTP").or_else(|| std::env::var_os("GOFAIL_FAILPOINTS")).is_some() {
        tracing::warn!("this build has no fail points: GOFAIL_HTTP and GOFAIL_FAILPOINTS have no effect");
    }
    Ok(())
}

#[cfg(debug_assertions)]
pub use enabled::begin;

#[cfg(debug_assertions)]
mod enabled {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use anyhow::Context;
    use bytes::Bytes;
    use http::{Method, Request, Response, StatusCode};
    use http_body_util::{BodyExt, Full, Limited};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use keelson_store_fail::{POINTS, arm, disarm};
    use tokio::net::TcpListener;

    /// Longest terms taken, bytes.
    const LONGEST: usize = 4096;

    /// What is armed, by name, as it was written.
    type Armed = Mutex<BTreeMap<String, String>>;

    /// Arms what the environment says and serves the rest.
    ///
    /// # Errors
    /// Terms that are none; an address that cannot be listened on.
    pub async fn begin() -> anyhow::Result<()> {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let (address, points) = (variable("GOFAIL_HTTP"), variable("GOFAIL_FAILPOINTS"));
        if address.is_none() && points.is_none() {
            return Ok(());
        }
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            told(panic);
            std::process::abort();
        }));
        let armed = Arc::new(Armed::default());
        for point in points.iter().flat_map(|points| points.split(';')) {
            let (name, terms) = point.split_once('=').with_context(|| format!("bad failpoint {point:?}"))?;
            set(&armed, name, terms).map_err(anyhow::Error::msg)?;
        }
        let Some(address) = address else { return Ok(()) };
        let listener =
            TcpListener::bind(&address).await.with_context(|| format!("failpoints at {address}"))?;
        tokio::spawn(serve(listener, armed));
        Ok(())
    }

    fn set(armed: &Armed, name: &str, terms: &str) -> Result<(), String> {
        arm(name, terms)?;
        let mut armed = armed.lock().expect("no panic while locked");
        armed.insert(name.to_owned(), terms.to_owned());
        Ok(())
    }

    async fn serve(listener: TcpListener, armed: Arc<Armed>) {
        while let Ok((stream, _)) = listener.accept().await {
            let armed = armed.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let armed = armed.clone();
                    async move { Ok::<_, Infallible>(answer(request, &armed).await) }
                });
                // A client that goes away is no concern of ours.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    async fn answer(request: Request<Incoming>, armed: &Armed) -> Response<Full<Bytes>> {
        let name = request.uri().path().trim_start_matches('/').to_owned();
        let terms =
            |name: &str| armed.lock().expect("no panic while locked").get(name).cloned().unwrap_or_default();
        match *request.method() {
            Method::GET if name.is_empty() => {
                let mut lines: Vec<String> =
                    POINTS.iter().map(|(_, name)| format!("{name}={}\n", terms(name))).collect();
                lines.sort();
                with(StatusCode::OK, lines.concat())
            }
            Method::GET if known(&name) => with(StatusCode::OK, format!("{}\n", terms(&name))),
            Method::GET => {
                with(StatusCode::NOT_FOUND, "failed to GET: failpoint: failpoint does not exist\n".to_owned())
            }
            Method::PUT => {
                let body = Limited::new(request.into_body(), LONGEST).collect().await;
                let Ok(body) = body.map(http_body_util::Collected::to_bytes) else {
                    return with(StatusCode::BAD_REQUEST, "failed ReadAll in PUT\n".to_owned());
                };
                match set(armed, &name, &String::from_utf8_lossy(&body)) {
                    Ok(()) => with(StatusCode::NO_CONTENT, String::new()),
                    Err(_) => with(StatusCode::BAD_REQUEST, format!("failed to set failpoint {name}\n")),
                }
            }
            Method::DELETE => {
                let was = armed.lock().expect("no panic while locked").remove(&name);
                if was.is_none() {
                    let why = if known(&name) { "is disabled" } else { "does not exist" };
                    let text = format!("failed to delete failpoint failpoint: failpoint {why}\n");
                    return with(StatusCode::BAD_REQUEST, text);
                }
                disarm(&name);
                with(StatusCode::NO_CONTENT, String::new())
            }
            _ => with(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed\n".to_owned()),
        }
    }

    fn known(name: &str) -> bool {
        POINTS.iter().any(|(_, known)| *known == name)
    }

    fn with(status: StatusCode, text: String) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    }
}
