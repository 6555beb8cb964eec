//! Calls and streams at the JSON gateway: plain HTTP/1 and WebSockets.

use std::sync::{Arc, Mutex};

use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::http;

/// One POST; answers status and body: one JSON value, or the list of those on a stream's lines.
pub async fn call(address: &str, path: &str, request: &Value, headers: &[(String, String)]) -> Value {
    let mut headers = headers.to_vec();
    headers.push(("content-type".to_owned(), "application/json".to_owned()));
    let answer = match http::request(address, "POST", path, &headers, request.to_string()).await {
        Ok(answer) => answer,
        Err(error) => return json!({ "fail": error.to_string() }),
    };
    let lines = serde_json::Deserializer::from_slice(&answer.body).into_iter::<Value>();
    let mut values: Vec<Value> = lines.map(|value| value.expect("the gateway answers JSON")).collect();
    let body = if values.len() == 1 { values.remove(0) } else { values.into() };
    json!({ "http": answer.status, "body": body })
}

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A WebSocket, left open.
pub struct Socket {
    requests: SplitSink<Stream, Message>,
    answers: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Socket {
    /// Opens it.
    ///
    /// # Panics
    /// It is refused.
    pub async fn open(address: &str, path: &str) -> Socket {
        let url = format!("ws://{address}{path}");
        let (stream, _) = tokio_tungstenite::connect_async(url).await.expect("a WebSocket");
        let (requests, mut incoming) = stream.split();
        let answers = Arc::new(Mutex::new(Vec::new()));
        let kept = answers.clone();
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                if let Message::Text(text) = message {
                    let value = serde_json::from_str(&text).expect("a message is one JSON value");
                    kept.lock().expect("no panic while locked").push(value);
                }
            }
        });
        Socket { requests, answers, task }
    }

    /// Sends a request; one to a stream that has ended is lost.
    pub async fn send(&mut self, request: &Value) {
        // The stream may have been refused.
        let _ = self.requests.send(Message::text(request.to_string())).await;
    }

    /// What has arrived and was not taken yet.
    pub fn waiting(&self) -> Vec<Value> {
        self.answers.lock().expect("no panic while locked").clone()
    }

    /// Takes it.
    pub fn take(&self) -> Vec<Value> {
        std::mem::take(&mut self.answers.lock().expect("no panic while locked"))
    }

    /// Ends it.
    pub async fn close(&mut self) {
        let _ = self.requests.close().await;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}
