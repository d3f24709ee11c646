//! Statuses, accounts and notifications as Mastodon serialises them. Pure.

use serde_json::{Value, json};

use super::cast::{PEOPLE, Person, Post, With};
use super::random::Random;
use crate::core::hashtag::normalise;
use crate::core::stream::Id;
use crate::demo::directory::account_id;

/// Where the demo's local accounts are at home.
const HOME: &str = "tidegate.example";

/// A status that was published, with what is needed to publish more about it.
#[derive(Clone)]
pub struct Status {
    pub id: String,
    /// Index into [`PEOPLE`].
    pub author: usize,
    pub local: bool,
    pub media: bool,
    /// In normal form, as they stand in channels' names.
    pub tags: Vec<String>,
    /// As anybody gets it.
    pub json: Value,
}

impl Status {
    pub fn new(author: usize, post: &Post, now_ms: u64, sequence: u16, random: &mut Random) -> Status {
        let person = &PEOPLE[author % PEOPLE.len()];
        let id = snowflake(now_ms, sequence);
        let tags: Vec<&str> = words(post.text).filter_map(tag).collect();
        let uri = format!("https://{}/users/{}/statuses/{id}", home(person), person.name);
        let created_at = timestamp(now_ms);
        let tag_list: Vec<Value> = tags
            .iter()
            .map(|tag| json!({"name": normalise(tag).as_str(), "url": format!("https://{HOME}/tags/{tag}")}))
            .collect();
        let media = pictures(post, &id, random);
        let json = json!({
            "id": id,
            "created_at": created_at,
            "in_reply_to_id": null,
            "in_reply_to_account_id": null,
            "sensitive": !post.warning.is_empty(),
            "spoiler_text": post.warning,
            "visibility": "public",
            "language": post.language,
            "uri": uri,
            "url": format!("https://{}/@{}/{id}", home(person), person.name),
            "replies_count": random.below(3),
            "reblogs_count": random.below(5),
            "favourites_count": random.below(9),
            "quotes_count": 0,
            "edited_at": null,
            "content": html(post.text, home(person)),
            "reblog": null,
            "application": if person.domain.is_empty() { json!({"name": "Web", "website": null}) } else { Value::Null },
            "account": account(author),
            "media_attachments": media,
            "mentions": [],
            "tags": tag_list,
            "emojis": emojis(person),
            "tagged_collections": [],
            "quote": null,
            "card": card(post, random),
            "poll": poll(post, &id, now_ms, random),
            "quote_approval": {"automatic": ["public"], "manual": [], "current_user": "automatic"},
        });
        Status {
            id,
            author,
            local: person.domain.is_empty(),
            media: matches!(post.with, With::Pictures(..)),
            tags: tags.iter().map(|tag| normalise(tag).as_str().to_owned()).collect(),
            json,
        }
    }

    /// The same after its author changed it.
    pub fn edited(&self, now_ms: u64) -> Status {
        let mut edited = self.clone();
        let content = self.json["content"].as_str().unwrap_or_default();
        edited.json["content"] = format!("{content}<p>(Edited: one letter found its place.)</p>").into();
        edited.json["edited_at"] = timestamp(now_ms).into();
        edited
    }

    /// As it goes to an account's home timeline: with what that account did with it.
    pub fn for_viewer(&self) -> Value {
        let mut json = self.json.clone();
        for name in ["favourited", "reblogged", "muted", "bookmarked"] {
            json[name] = false.into();
        }
        json["filtered"] = json!([]);
        json
    }
}

/// A notification from somebody, about a status if there is one.
pub fn notification(kind: &str, from: usize, status: Option<&Status>, now_ms: u64) -> Value {
    let mut json = json!({
        "id": (now_ms % 1_000_000_000).to_string(),
        "type": kind,
        "created_at": timestamp(now_ms),
        "group_key": format!("ungrouped-{}", now_ms % 1_000_000_000),
        "account": account(from),
    });
    if let Some(status) = status {
        json["status"] = status.for_viewer();
    }
    json
}

/// Mastodon's id of a status that was created then.
fn snowflake(ms: u64, sequence: u16) -> String {
    ((ms << 16) | u64::from(sequence)).to_string()
}

/// The account with that index in [`PEOPLE`].
pub fn id_of(person: usize) -> Id {
    account_id(person as Id + 1)
}

fn home(person: &Person) -> &'static str {
    if person.domain.is_empty() { HOME } else { person.domain }
}

fn account(index: usize) -> Value {
    let person = &PEOPLE[index % PEOPLE.len()];
    let id = id_of(index).to_string();
    let (home, name) = (home(person), person.name);
    let acct = if person.domain.is_empty() { name.to_owned() } else { format!("{name}@{home}") };
    let folder = format!("{}/{}/{}/{}", &id[..3], &id[3..6], &id[6..9], &id[9..]);
    let cache = if person.domain.is_empty() { "" } else { "cache/" };
    let avatar =
        format!("https://files.{HOME}/{cache}accounts/avatars/{folder}/original/3f9a1c{index:02x}b7d2e8.png");
    let header = format!(
        "https://files.{HOME}/{cache}accounts/headers/{folder}/original/91c0de{index:02x}44aa07.jpeg"
    );
    let link = format!(
        "<a href=\"https://{home}/about\" target=\"_blank\" rel=\"nofollow noopener me\" translate=\"no\"><span class=\"invisible\">https://</span><span class=\"\">{home}/about</span><span class=\"invisible\"></span></a>"
    );
    json!({
        "id": id,
        "username": name,
        "acct": acct,
        "display_name": person.display,
        "locked": false,
        "bot": name == "lighthouse",
        "discoverable": true,
        "indexable": true,
        "group": false,
        "created_at": "2022-11-07T00:00:00.000Z",
        "note": format!("<p>{}</p>", escape(person.note)),
        "url": format!("https://{home}/@{name}"),
        "uri": format!("https://{home}/users/{name}"),
        "avatar": avatar,
        "avatar_static": avatar,
        "avatar_description": "",
        "header": header,
        "header_static": header,
        "header_description": "",
        "followers_count": 40 + 37 * index,
        "following_count": 60 + 11 * index,
        "statuses_count": 300 + 211 * index,
        "last_status_at": "2026-08-01",
        "hide_collections": false,
        "show_media": true,
        "show_media_replies": true,
        "show_featured": true,
        "noindex": false,
        "emojis": emojis(person),
        "roles": [],
        "fields": [
            {"name": "Web", "value": link, "verified_at": "2023-04-02T09:12:44.105+00:00"},
            {"name": "Language", "value": person.language, "verified_at": null},
            {"name": "Sea", "value": "any", "verified_at": null},
        ],
    })
}

fn emojis(person: &Person) -> Value {
    if !person.display.contains(":bot:") {
        return json!([]);
    }
    let url = format!("https://files.{HOME}/custom_emojis/images/000/000/007/original/bot.png");
    json!([{"shortcode": "bot", "url": url, "static_url": url, "visible_in_picker": true}])
}

fn pictures(post: &Post, status: &str, random: &mut Random) -> Value {
    let With::Pictures(number, description) = post.with else { return json!([]) };
    let picture = |index: u8| {
        let url = format!(
            "https://files.{HOME}/media_attachments/files/{status}/{index}/original/{:016x}.jpg",
            random.next()
        );
        json!({
            "id": format!("{status}{index}"),
            "type": "image",
            "url": url,
            "preview_url": url.replace("/original/", "/small/"),
            "remote_url": null,
            "preview_remote_url": null,
            "text_url": null,
            "meta": {
                "focus": {"x": 0.0, "y": 0.0},
                "original": {"width": 1600, "height": 1200, "size": "1600x1200", "aspect": 1.333_333_333_333_333_3},
                "small": {"width": 554, "height": 416, "size": "554x416", "aspect": 1.331_730_769_230_769_2},
            },
            "description": description,
            "blurhash": "UeF~gd%2M{ay~qkCWBj[Rjt7ayj[RjofWBay",
        })
    };
    (0..number).map(picture).collect()
}

fn card(post: &Post, random: &mut Random) -> Value {
    let With::Card(title, description) = post.with else { return Value::Null };
    json!({
        "url": format!("https://magazine.example/articles/{:08x}", random.next() >> 32),
        "title": title,
        "description": description,
        "language": post.language,
        "type": "link",
        "author_name": "",
        "author_url": "",
        "provider_name": "The Coastal Magazine",
        "provider_url": "https://magazine.example/",
        "html": "",
        "width": 1200,
        "height": 630,
        "image": format!("https://files.{HOME}/cache/preview_cards/images/000/{:016x}.jpg", random.next()),
        "image_description": "",
        "embed_url": "",
        "blurhash": "UCBDj[t7xuRj%Mayayof~qofRjWBt7ayofj[",
        "published_at": null,
        "authors": [],
    })
}

fn poll(post: &Post, status: &str, now_ms: u64, random: &mut Random) -> Value {
    let With::Poll(options) = post.with else { return Value::Null };
    let options: Vec<Value> =
        options.iter().map(|title| json!({"title": title, "votes_count": random.below(20)})).collect();
    let votes: u64 = options.iter().filter_map(|option| option["votes_count"].as_u64()).sum();
    json!({
        "id": status,
        "expires_at": timestamp(now_ms + 86_400_000),
        "expired": false,
        "multiple": false,
        "votes_count": votes,
        "voters_count": votes,
        "options": options,
        "emojis": [],
    })
}

/// Text as Mastodon's content: paragraphs, links for tags, everything else escaped.
fn html(text: &str, home: &str) -> String {
    let mut out = String::new();
    for paragraph in text.split("\n\n") {
        out += "<p>";
        for (index, word) in paragraph.split(' ').enumerate() {
            if index > 0 {
                out.push(' ');
            }
            match tag(word) {
                Some(tag) => {
                    out += &format!(
                        "<a href=\"https://{home}/tags/{tag}\" class=\"mention hashtag\" rel=\"tag\">#<span>{tag}</span></a>"
                    );
                }
                None => out += &escape(word),
            }
        }
        out += "</p>";
    }
    out
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\n'])
}

fn tag(word: &str) -> Option<&str> {
    word.strip_prefix('#').filter(|tag| !tag.is_empty())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Milliseconds since 1970 as Rails prints a time.
fn timestamp(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Civil date from days, counted in eras of 400 years that begin in March (Hinnant's algorithm).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second, ms) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::publisher::cast::POSTS;

    #[test]
    fn times_are_dates() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_785_529_845_123, "2026-07-31T20:30:45.123Z"),
            (1_798_761_599_999, "2026-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(timestamp(ms), text);
        }
    }

    #[test]
    fn every_post_by_everyone_has_the_size_of_a_real_status_and_escapes_its_text() {
        let mut random = Random::new(1);
        for author in 0..PEOPLE.len() {
            for post in POSTS {
                let status = Status::new(author, post, 1_785_529_845_123, 7, &mut random);
                let bytes = json!({"event": "update", "payload": status.json}).to_string().len();
                assert!((2048..8192).contains(&bytes), "{bytes}: {}", post.text);
                let content = status.json["content"].as_str().unwrap();
                assert_eq!(content.matches("<p>").count(), post.text.split("\n\n").count());
                assert!(!content.contains("<3"));
                assert_eq!(status.tags.len(), status.json["tags"].as_array().unwrap().len());
            }
        }
    }
}
