//! What the answers of bento's web pages have in common: that of the hub, and that of a host.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// Tells browsers what an answer may do, which is next to nothing: what the content security `policy` lets it, and whom it
/// names as the `referrer`.
pub(crate) fn confine(response: &mut Response, policy: &'static str, referrer: &'static str) {
    let rules = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, referrer),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in rules {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}

/// A file that is a part of the program.
pub(crate) async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
