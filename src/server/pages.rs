//! The status room's pages, as the door serves them.

use std::sync::Arc;

use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use crate::door::{PageBody, PageRequest, PageSource, SameOrigin};
use crate::status::{self, Answer, Listener, Status, Visitor};

/// Pages of one listener.
pub(super) fn source(status: Arc<Status>, listener: Listener) -> PageSource {
    Arc::new(move |request: &PageRequest<'_>| {
        let who = Visitor {
            listener,
            peer_is_loopback: request.peer.is_local(),
            has_forwarded_headers: request.forwarded,
        };
        let page = status.find(request.path, request.accept, who)?;
        let status = Arc::clone(&status);
        Some(Box::pin(async move { response(status.answer(page).await) }))
    })
}

fn response(answer: Answer) -> Response<PageBody> {
    let body = match answer.body {
        status::Body::Full(bytes) => PageBody::from(bytes),
        #[cfg(feature = "stub_status")]
        status::Body::Stream(mut live) => PageBody::Live(Box::new(move |context| live.poll_next(context))),
    };
    let mut response = Response::new(body);
    if let Ok(code) = hyper::StatusCode::from_u16(answer.status) {
        *response.status_mut() = code;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    if !answer.cross_origin {
        response.extensions_mut().insert(SameOrigin);
    }
    response
}
