//! Messages as Rails publishes them.

use serde_json::{Value, json};

/// A message on a channel: an event with a payload.
pub fn message(event: &str, payload: &Value) -> String {
    format!("{{\"event\":{},\"payload\":{payload}}}", json!(event))
}

/// A message whose payload is text (an id).
pub fn text_message(event: &str, payload: &str) -> String {
    message(event, &json!(payload))
}

/// A status by an account of this instance.
pub fn status(id: u64, author: u64) -> Value {
    status_by(id, author, "alice", "alice")
}

/// A status with the author's user name and full name (`name@domain` for other instances).
pub fn status_by(id: u64, author: u64, username: &str, acct: &str) -> Value {
    json!({
        "id": id.to_string(),
        "created_at": "2026-08-01T10:20:30.456Z",
        "in_reply_to_id": null,
        "in_reply_to_account_id": null,
        "sensitive": false,
        "spoiler_text": "",
        "visibility": "public",
        "language": "en",
        "uri": format!("https://social.example/users/{username}/statuses/{id}"),
        "url": format!("https://social.example/@{username}/{id}"),
        "replies_count": 0,
        "reblogs_count": 0,
        "favourites_count": 0,
        "edited_at": null,
        "content": "<p>Ebb &amp; flow — “the tide” 🌊 at <a href=\"https://example.com/a?b=c&amp;d\">noon</a></p>",
        "reblog": null,
        "account": {
            "id": author.to_string(),
            "username": username,
            "acct": acct,
            "display_name": "Alice \\ \"Waterline\"",
            "locked": false,
            "bot": false,
            "created_at": "2019-01-01T00:00:00.000Z",
            "note": "<p>Tides.</p>",
            "url": format!("https://social.example/@{username}"),
            "followers_count": 1234,
            "emojis": [],
            "fields": [],
        },
        "media_attachments": [],
        "mentions": [],
        "tags": [],
        "emojis": [],
        "card": null,
        "poll": null,
    })
}

/// A JSON object's text with `"filtered":[…]` added at its end, as the streaming server adds it.
pub fn with_filtered(payload: &Value, filtered: &str) -> String {
    let text = payload.to_string();
    format!("{},\"filtered\":{filtered}}}", &text[..text.len() - 1])
}
