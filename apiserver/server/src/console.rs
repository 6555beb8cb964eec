//! The console's static files, built into the binary. They hold no secret: what they show is asked for with the
//! visitor's own token.

use http::header::{HeaderValue, LOCATION};
use http::{Method, Request};

use crate::handler::not_found;
use crate::respond::{self, Response};

const FILES: [(&str, &str, &[u8]); 5] = [
    ("index.html", "text/html; charset=utf-8", include_bytes!("../../console/index.html")),
    ("console.css", "text/css; charset=utf-8", include_bytes!("../../console/console.css")),
    ("console.js", "text/javascript; charset=utf-8", include_bytes!("../../console/console.js")),
    ("api.js", "text/javascript; charset=utf-8", include_bytes!("../../console/api.js")),
    ("views.js", "text/javascript; charset=utf-8", include_bytes!("../../console/views.js")),
];

/// Answers a request for the console; nothing when it is for something else.
pub fn serve<B>(request: &Request<B>) -> Option<Response> {
    let path = request.uri().path();
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    let accept = request.headers().get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if get && ((path == "/" && accept.starts_with("text/html")) || path == "/console") {
        let mut response = respond::text(302, "");
        response.headers_mut().insert(LOCATION, HeaderValue::from_static("/console/"));
        return Some(response);
    }
    let name = path.strip_prefix("/console/")?;
    let name = if name.is_empty() { "index.html" } else { name };
    let file = FILES.iter().find(|(known, _, _)| *known == name).filter(|_| get);
    let Some((_, content_type, bytes)) = file else { return Some(not_found()) };
    let mut response = respond::answer(200, content_type, respond::full(*bytes));
    let headers = response.headers_mut();
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    headers
        .insert("content-security-policy", HeaderValue::from_static("default-src 'self'; style-src 'self'"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str, accept: &str) -> Option<u16> {
        let request = Request::get(path).header("accept", accept).body(()).expect("request");
        serve(&request).map(|r| r.status().as_u16())
    }

    #[test]
    fn files_are_served_and_browsers_led_there() {
        assert_eq!(get("/console/", "*/*"), Some(200));
        assert_eq!(get("/console/console.js", "*/*"), Some(200));
        assert_eq!(get("/console/../secret", "*/*"), Some(404));
        assert_eq!(get("/", "text/html,*/*"), Some(302));
        assert_eq!(get("/", "application/json"), None);
        assert_eq!(get("/api", "text/html"), None);
    }
}
