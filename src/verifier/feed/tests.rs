use std::cell::{Cell, RefCell};
use std::sync::Mutex;

use keywright_core::fence::Holder;
use keywright_core::key::Digest;
use keywright_core::testing::record_name;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde_json::json;

use super::*;
use crate::testing::script::{LIST, Reply, Script, event, is_for, list, page, record};
use crate::verifier::lease::LeaseKeeper;
use crate::verifier::membership::Unready;

const QUICK: Timings = Timings {
    page: Duration::from_secs(2),
    watch: Duration::from_secs(2),
    catch_up: Duration::from_secs(1),
    reach: Duration::from_secs(3),
    renewal: Duration::from_secs(300),
    first_retry: Duration::from_millis(2),
    longest_retry: Duration::from_millis(20),
    shortest_watch: Duration::from_millis(5),
};

fn spec(number: u8) -> Value {
    let api_key = json!({ "namespace": "a", "name": format!("key-{number}"), "uid": "c" });
    json!({ "digest": Digest::of(&[number]).to_string(), "apiKey": api_key })
}

fn bookmark(version: &str) -> Value {
    event("BOOKMARK", json!({ "kind": "K", "apiVersion": "v1", "metadata": { "resourceVersion": version } }))
}

fn gone() -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version" })
}

/// For ever the same: nothing new, on a watch that stays open.
fn quiet(target: &str) -> Reply {
    if target.contains("watch=true") { Reply::Silence(vec![]) } else { list("900", "", &[]) }
}

/// The names of the keys with numbers 0 to 9 that are good.
fn good(feed: &Feed) -> Result<Vec<String>, Unready> {
    feed.membership.readiness(clock::moment())?;
    let keyring = feed.keyring();
    let entries =
        (0..10).filter_map(|number| keyring.get(&Digest::of(&[number])).ok().map(|entry| entry.name().to_owned()));
    Ok(entries.collect())
}

/// Follows the script until `condition` holds.
async fn follow_until(script: &Script, feed: &Feed, condition: impl Fn(&Feed) -> bool) {
    follow_until_at(script, feed, QUICK, condition).await;
}

async fn follow_until_at(script: &Script, feed: &Feed, timings: Timings, condition: impl Fn(&Feed) -> bool) {
    let wait = async {
        while !condition(feed) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let keeper = LeaseKeeper::new(Arc::clone(&feed.membership), script.client(), "keywright-system");
    tokio::select! {
        never = feed.follow_at(script.client(), "keywright-system", timings) => match never {},
        () = keeper.run() => panic!("it has not been told to leave"),
        waited = timeout(Duration::from_secs(20), wait) => {
            waited.unwrap_or_else(|_| panic!("{:?} after {:?}", good(feed), script.targets()));
        }
    }
}

fn feed() -> Feed {
    feed_within(Duration::from_secs(600))
}

/// Of a verifier that has not joined yet.
fn feed_within(lease_duration: Duration) -> Feed {
    let membership = Membership::new(Holder::new("verifier-0", rand::random(), lease_duration));
    Feed::new(Arc::new(membership), clock::moment())
}

fn names(feed: &Feed, expected: &[&str]) -> bool {
    good(feed).is_ok_and(|names| names == expected)
}

#[tokio::test]
async fn records_are_listed_by_pages_and_then_watched() {
    let broken = json!({ "digest": Digest::of(&[2]).to_string(), "apiKey": 7 });
    let script = Script::start(
        vec![
            (LIST, list("100", "next", &[record(1, "7", &spec(1)), record(2, "8", &broken)])),
            ("continue=next&", list("100", "", &[record(3, "9", &spec(3))])),
            (
                "resourceVersion=100&",
                Reply::Events(vec![
                    event("ADDED", record(4, "101", &spec(4))),
                    event("MODIFIED", record(1, "102", &spec(5))),
                    event("DELETED", record(3, "103", &spec(3))),
                    event(
                        "BOOKMARK",
                        json!({ "kind": "K", "apiVersion": "v1", "metadata": { "resourceVersion": "200" } }),
                    ),
                ]),
            ),
            ("limit=1&", list("200", "", &[])),
            ("resourceVersion=200&", Reply::Silence(vec![event("MODIFIED", record(2, "201", &spec(2)))])),
        ],
        quiet,
    );
    let feed = feed();
    follow_until(&script, &feed, |feed| names(feed, &["key-2", "key-4", "key-5"])).await;
    assert_eq!(feed.records(), 3);
    for target in script.targets() {
        assert!(target.starts_with("/apis/keywright.dev/v1alpha1/namespaces/keywright-system/apikeyrecords?"));
        let is_watch = target.contains("watch=true");
        assert_eq!(target.contains("resourceVersion="), is_watch, "a list asks for the newest data: {target}");
        assert!(!is_watch || target.contains("timeoutSeconds=2&allowWatchBookmarks=true"), "{target}");
        assert!(!target.contains("sendInitialEvents"), "{target}");
    }
}

/// A thread may have looked a key up just before it was revoked, and not have answered yet.
#[tokio::test]
async fn a_version_is_acknowledged_once_nobody_decides_from_an_older_keyring() {
    let script = Script::start(
        vec![
            (LIST, list("100", "", &[record(1, "7", &spec(1))])),
            ("watch=true", Reply::Held(vec![event("ADDED", record(2, "101", &spec(2)))])),
        ],
        quiet,
    );
    let feed = feed();
    let (deciding, swapped) = (RefCell::new(None), Cell::new(None));
    let applied = |version| script.applied().is_some_and(|applied| applied == version);
    follow_until(&script, &feed, |feed| {
        if deciding.borrow().is_none() && swapped.get().is_none() && applied("100") {
            deciding.replace(Some(feed.keyring()));
            script.release();
        }
        if deciding.borrow().is_some() && feed.records() == 2 && swapped.get().is_none() {
            swapped.set(Some(Instant::now()));
        }
        // Three times as long as an acknowledgement waits for others.
        if swapped.get().is_some_and(|at| at.elapsed() > Duration::from_millis(300)) {
            deciding.replace(None);
        }
        assert!(deciding.borrow().is_none() || !applied("101"), "a decision from the older keyring is under way");
        applied("101")
    })
    .await;
    assert!(swapped.get().is_some());
}

#[tokio::test]
async fn last_uses_are_counted_as_the_watch_tells_them_and_outlive_a_list() {
    let used = |number: u8, version, last_used_at: &str| {
        let mut record = record(number.into(), version, &spec(number));
        record["status"] = json!({ "lastUsedAt": last_used_at });
        record
    };
    let script = Script::start(
        vec![
            (LIST, list("100", "", &[record(1, "7", &spec(1)), used(2, "8", "1970-01-01T00:01:40Z")])),
            (
                "watch=true",
                Reply::Events(vec![
                    event("MODIFIED", used(1, "101", "1970-01-01T00:02:00Z")),
                    event("MODIFIED", used(2, "102", "1970-01-01T00:01:40Z")),
                    event("MODIFIED", used(2, "103", "1970-01-01T00:01:30Z")),
                    event("MODIFIED", used(2, "104", "now")),
                    event("MODIFIED", used(2, "105", "1970-01-01T00:03:00.5Z")),
                    event("ERROR", gone()),
                ]),
            ),
            (LIST, list("200", "", &[used(3, "150", "1970-01-01T00:04:00Z"), used(2, "151", "?")])),
        ],
        quiet,
    );
    let feed = feed();
    follow_until(&script, &feed, |feed| names(feed, &["key-2", "key-3"])).await;
    let usage = |number: u8| {
        let (name, spec) = (record_name(number.into()), spec(number));
        let slot = feed.newest().slot_of(&StoredRecord::read(&name, None, &spec).unwrap());
        slot.map(|slot| feed.marks().usage(slot).written)
    };
    assert_eq!([usage(1), usage(2), usage(3)], [None, Some(180), Some(240)]);
    assert_eq!(*feed.seen_writes().borrow(), SeenWrites { writes: 2, lists: 2 });
}

#[tokio::test]
async fn nothing_is_known_before_the_last_page() {
    let script = Script::start(
        vec![
            (LIST, list("100", "next", &[record(1, "7", &spec(1))])),
            ("continue=next&", Reply::Answer(410, gone())),
            (LIST, list("300", "next", &[record(2, "7", &spec(2))])),
            ("continue=next&", Reply::Answer(500, json!({}))),
            (LIST, Reply::NoAnswer),
            (LIST, Reply::Answer(200, json!("?"))),
            (LIST, list("", "", &[record(3, "7", &spec(3))])),
        ],
        |_| Reply::NoAnswer,
    );
    let feed = feed();
    follow_until(&script, &feed, |_| script.targets().len() > 7).await;
    assert_eq!(good(&feed), Err(Unready::Syncing));
}

/// Whatever a watch after a list does: nothing is decided before it has told of what was written during the list.
#[tokio::test]
async fn what_was_written_while_it_listed_is_known_before_anything_is_decided() {
    let deleted = || event("DELETED", record(1, "103", &spec(1)));
    let again = |watch| vec![("limit=1&", list("106", "", &[])), ("watch=true", watch)];
    let silence = || Reply::Silence(vec![]);
    let late = |event| Reply::Late(Duration::from_millis(1100), event);
    let cases = [
        ("a later change", Reply::Silence(vec![deleted(), event("ADDED", record(3, "105", &spec(3)))]), vec![]),
        ("a bookmark", Reply::Silence(vec![deleted(), bookmark("105")]), vec![]),
        ("it ends early", Reply::Events(vec![]), again(Reply::Silence(vec![deleted(), bookmark("105")]))),
        (
            "a bookmark too old",
            Reply::Silence(vec![bookmark("102")]),
            again(Reply::Silence(vec![deleted(), bookmark("106")])),
        ),
        ("it hangs", silence(), again(Reply::Silence(vec![deleted(), bookmark("106")]))),
        ("no answer", Reply::NoAnswer, again(Reply::Silence(vec![deleted(), bookmark("106")]))),
        (
            "no bookmark, and all are listed anew",
            late(event("ADDED", record(4, "101", &spec(4)))),
            again(late(deleted()))
                .into_iter()
                .chain(again(silence()))
                .chain([(LIST, list("107", "", &[record(2, "8", &spec(2))])), ("watch=true", silence())])
                .collect(),
        ),
    ];
    let checks = cases.map(async |(case, watch, more)| {
        let mut replies = vec![
            (LIST, list("100", "", &[record(1, "7", &spec(1)), record(2, "8", &spec(2))])),
            ("limit=1&", list("105", "", &[])),
            ("timeoutSeconds=1&", watch),
        ];
        replies.extend(more);
        let (script, feed) = (Script::start(replies, |_| Reply::NoAnswer), feed());
        follow_until(&script, &feed, |feed| {
            let good = good(feed).unwrap_or_default();
            assert!(!good.contains(&"key-1".to_owned()), "{case}");
            good.contains(&"key-2".to_owned())
        })
        .await;
        script.targets();
    });
    futures::future::join_all(checks).await;
}

/// The API server lets nobody change a digest. If it ever does, the old key must not stay good, nor must a record that
/// can no longer be found by its digest.
#[tokio::test]
async fn a_record_whose_digest_has_changed_is_found_all_the_same() {
    let without = json!({ "digest": "?", "apiKey": { "namespace": "a", "name": "b", "uid": "c" } });
    let script = Script::start(
        vec![
            (LIST, list("100", "", &[1, 2, 3, 4].map(|number: u8| record(number.into(), "7", &spec(number))))),
            (
                "resourceVersion=100&",
                Reply::Silence(vec![
                    event("MODIFIED", record(1, "101", &spec(5))),
                    event("MODIFIED", record(2, "102", &without)),
                    event("DELETED", record(3, "103", &without)),
                    event("DELETED", record(2, "104", &without)),
                    event("MODIFIED", record(9, "105", &spec(9))),
                ]),
            ),
        ],
        quiet,
    );
    let feed = feed();
    follow_until(&script, &feed, |feed| names(feed, &["key-4", "key-5", "key-9"])).await;
    assert_eq!((feed.records(), script.targets().len()), (3, 2), "without a new list");
}

/// However a watch breaks off: the records are in step again afterwards, read anew only where that is needed.
#[tokio::test]
async fn a_watch_that_breaks_off_is_taken_up_again() {
    let added = || event("ADDED", record(2, "101", &spec(2)));
    let unknown = event("UNKNOWN", json!({}));
    let server_error = json!({ "kind": "Status", "status": "Failure", "code": 500, "message": "?" });
    let cases = [
        ("ended", Reply::Events(vec![added()]), "resourceVersion=101&"),
        ("cut off", Reply::Cut(vec![added()]), "resourceVersion=101&"),
        ("half-open", Reply::Silence(vec![added()]), "resourceVersion=101&"),
        ("no answer", Reply::NoAnswer, "resourceVersion=100&"),
        ("ended at once", Reply::Events(vec![]), "resourceVersion=100&"),
        (
            "an error in the stream",
            Reply::Events(vec![added(), event("ERROR", server_error.clone())]),
            "resourceVersion=101&",
        ),
        ("an error instead", Reply::Answer(500, server_error), "resourceVersion=100&"),
        ("forbidden", Reply::Answer(403, json!({ "kind": "Status", "code": 403 })), "resourceVersion=100&"),
        ("gone in the stream", Reply::Events(vec![added(), event("ERROR", gone())]), "list"),
        ("gone instead", Reply::Answer(410, gone()), "list"),
        ("gone without a body", Reply::Answer(410, json!("?")), "list"),
        ("not to be read", Reply::Events(vec![added(), unknown]), "list"),
    ];
    let checks = cases.map(async |(case, watch, expected)| {
        let mut replies = vec![(LIST, list("100", "", &[record(1, "7", &spec(1))])), ("resourceVersion=100&", watch)];
        if expected == "list" {
            replies.push((LIST, list("150", "", &[record(3, "150", &spec(3))])));
        } else {
            replies.push(("limit=1&", list("150", "", &[])));
            replies.push((
                expected,
                Reply::Silence(vec![
                    event("DELETED", record(1, "149", &spec(1))),
                    event("DELETED", record(2, "150", &spec(2))),
                    event("ADDED", record(3, "151", &spec(3))),
                ]),
            ));
        }
        let (script, feed) = (Script::start(replies, quiet), feed());
        follow_until(&script, &feed, |feed| names(feed, &["key-3"])).await;
        assert!(script.targets().len() >= 3, "{case}");
    });
    futures::future::join_all(checks).await;
}

/// With a new Lease first: the controller may have seen the old one, in what was lost.
#[tokio::test]
async fn after_a_server_went_back_in_time_the_verifier_joins_and_lists_anew() {
    let anew = |target: &str| match target.contains("watch=true") {
        true => Reply::Silence(vec![]),
        false => list("2", "", &[record(2, "2", &spec(2))]),
    };
    for after in ["999", "99", "2"] {
        let script = Script::start(
            vec![
                (LIST, list("1000", "", &[record(1, "7", &spec(1))])),
                ("watch=true", Reply::Events(vec![])),
                ("limit=1&", list(after, "", &[])),
            ],
            anew,
        );
        let feed = feed();
        follow_until(&script, &feed, |feed| names(feed, &["key-2"])).await;
        assert_eq!(script.lease_creations(), 2, "{after}");
    }
}

/// However contact is made again: what was let in before is never let in for a moment on the way back.
#[tokio::test]
async fn after_too_long_a_silence_nothing_is_decided_until_what_was_written_is_known() {
    let lease_duration = Duration::from_secs(2);
    let silence = |count| (0..count).map(|_| ("", Reply::NoAnswer));
    let late = Duration::from_millis(2200);
    let cases = [
        ("no answer", silence(8).collect::<Vec<_>>()),
        ("an answer that is as old as the lease when it comes", vec![("", Reply::Late(late, page("100", "", &[])))]),
        (
            "an event after such an answer",
            vec![
                ("", Reply::Late(late, page("100", "", &[]))),
                ("", Reply::Silence(vec![event("ADDED", record(3, "150", &spec(3)))])),
            ],
        ),
    ];
    let anew = |target: &str| match target.contains("watch=true") {
        true => Reply::Silence(vec![]),
        false => list("200", "", &[record(2, "150", &spec(2))]),
    };
    let checks = cases.map(async |(case, between)| {
        let mut replies =
            vec![(LIST, list("100", "", &[record(1, "7", &spec(1))])), ("watch=true", Reply::Silence(vec![]))];
        let page = if between.len() > 2 { Duration::from_millis(250) } else { Duration::from_secs(3) };
        replies.extend(between);
        let (script, feed) = (Script::start(replies, anew), feed_within(lease_duration));
        let was_stale = Cell::new(false);
        let is_back = |feed: &Feed| match good(feed) {
            Ok(names) if was_stale.get() => {
                assert_eq!(names, ["key-2"], "{case}");
                true
            }
            answer => {
                was_stale.set(matches!(answer, Err(Unready::Lapsed(_))));
                false
            }
        };
        follow_until_at(&script, &feed, Timings { page, ..Timings::within(lease_duration) }, is_back).await;
    });
    futures::future::join_all(checks).await;
}

/// A watch cache that stands still: lists are consistent, and tell of versions that no watch ever comes to, whatever else
/// it brings. A key that was revoked there is let in for the lease and no longer, even where no list can be had.
#[tokio::test]
async fn a_watch_that_does_not_advance_is_not_trusted() {
    type Watch = (&'static str, fn(&str) -> Reply);
    let watches: [Watch; 4] = [
        ("it ends with an old bookmark", |target| stuck(target, Reply::Events(vec![bookmark("105")]))),
        ("it is open, and silent", |target| stuck(target, Reply::Silence(vec![bookmark("105")]))),
        ("it tells of old events without end", |target| {
            stuck(target, Reply::Trickle(event("MODIFIED", record(1, "105", &spec(1)))))
        }),
        ("it is not even opened", |target| stuck(target, Reply::NoAnswer)),
    ];
    fn stuck(target: &str, watch: Reply) -> Reply {
        match target {
            target if target.contains("watch=true") => watch,
            target if is_for(target, "limit=1&") => list("9000", "", &[]),
            _ => Reply::Answer(500, json!({})),
        }
    }
    let checks = watches.map(async |(case, last)| {
        let lease_duration = Duration::from_secs(2);
        let replies = vec![(LIST, list("100", "", &[record(1, "7", &spec(1))])), ("watch=true", Reply::Events(vec![]))];
        let (script, feed) = (Script::start(replies, last), feed_within(lease_duration));
        let started = Instant::now();
        let was_good = Cell::new(false);
        follow_until_at(&script, &feed, Timings::within(lease_duration), |feed| match good(feed) {
            Ok(names) => {
                was_good.set(names == ["key-1"]);
                false
            }
            Err(unready) => was_good.get() && matches!(unready, Unready::Lapsed(_)),
        })
        .await;
        println!("{case}: stale after {:?}", started.elapsed());
    });
    futures::future::join_all(checks).await;
}

/// The same where a list can be had: that tells of the revocation, long before the lease is over.
#[tokio::test]
async fn what_a_watch_does_not_bring_a_list_brings() {
    let timings = Timings { reach: Duration::from_millis(200), ..QUICK };
    let replies = vec![(LIST, list("100", "", &[record(1, "7", &spec(1)), record(2, "8", &spec(2))]))];
    let script = Script::start(replies, |target| match target.contains("watch=true") {
        true => Reply::Events(vec![bookmark("105")]),
        false => list("9000", "", &[record(2, "8", &spec(2))]),
    });
    let feed = feed();
    follow_until_at(&script, &feed, timings, |feed| names(feed, &["key-2"])).await;
    let (age, limit) = (feed.age(clock::moment()), Duration::from_secs(60));
    assert!(age < limit, "known as of {age:?} ago");
}

/// A watch that is served from an old cache may tell of a record that is gone by now, or was revoked.
#[tokio::test]
async fn what_is_past_is_not_told_again() {
    let all = || list("9000", "", &[record(2, "8", &spec(2))]);
    let past = Reply::Events(vec![bookmark("105"), event("ADDED", record(1, "106", &spec(1)))]);
    let replies = vec![(LIST, all()), ("resourceVersion=9000&", past), (LIST, all())];
    let (script, feed) = (Script::start(replies, quiet), feed());
    follow_until(&script, &feed, |feed| {
        assert!(!good(feed).unwrap_or_default().contains(&"key-1".to_owned()));
        script.targets().len() > 3
    })
    .await;
}

/// What is known is as old as the question that it answers, and not as the answer, or any event.
#[tokio::test]
async fn a_goal_counts_from_when_it_was_asked_for() {
    let late = Duration::from_millis(700);
    let replies = vec![
        (LIST, list("100", "", &[])),
        ("limit=1&", list("100", "", &[])),
        ("watch=true", Reply::Events(vec![event("ADDED", record(1, "101", &spec(1)))])),
        ("limit=1&", Reply::Late(late, page("102", "", &[]))),
        ("watch=true", Reply::Silence(vec![event("ADDED", record(2, "102", &spec(2)))])),
    ];
    let (script, feed) = (Script::start(replies, quiet), feed());
    let mut oldest = Duration::ZERO;
    let ages = Mutex::new(Vec::new());
    follow_until(&script, &feed, |feed| {
        ages.lock().unwrap().push(feed.age(clock::moment()));
        names(feed, &["key-1", "key-2"])
    })
    .await;
    for age in ages.into_inner().unwrap() {
        oldest = oldest.max(age);
    }
    assert!(feed.age(clock::moment()) >= late && oldest >= late, "{oldest:?}");
}

#[test]
fn a_lease_of_any_length_is_renewed_in_time() {
    for seconds in [1, 2, 3, 5, 10, 15, 20, 60, 600, 86_400] {
        let lease_duration = Duration::from_secs(seconds);
        let timings = Timings::within(lease_duration);
        let oldest = longest(timings.catch_up) + longest(timings.watch) + timings.reach;
        assert!(oldest <= lease_duration.mul_f64(0.75), "{oldest:?} of {lease_duration:?}");
        let requests = 3.0 / (timings.catch_up + timings.watch).as_secs_f64();
        assert!(seconds < 600 || requests < 0.3, "{requests} a second at {lease_duration:?}");
    }
}

/// The next page may be of other records than the last one, so a size that was right before may be far too large.
#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_again_in_smaller_ones() {
    let mut large = spec(2);
    large["rotateRequest"] = json!("x".repeat(crate::pages::MAX_PAGE_BYTES));
    let script = Script::start(
        vec![
            ("limit=50&", list("100", "next", &[record(1, "7", &spec(1))])),
            ("limit=200&continue=next&", list("100", "more", &[record(2, "8", &large), record(3, "9", &spec(3))])),
            ("limit=25&continue=next&", list("100", "", &[record(3, "9", &spec(3))])),
        ],
        quiet,
    );
    let feed = feed();
    let timings = Timings { page: Duration::from_secs(20), ..QUICK };
    follow_until_at(&script, &feed, timings, |feed| names(feed, &["key-1", "key-3"])).await;
    assert_eq!(script.targets().iter().filter(|target| is_for(target, LIST)).count(), 3);
}

/// A feed that cannot have its first list is not ready, and its errors are counted by kind, and told.
#[tokio::test]
async fn errors_of_lists_and_watches_are_counted_by_kind() {
    let status = |code: u16| Reply::Answer(code, json!({ "kind": "Status", "status": "Failure", "code": code }));
    let first = || (LIST, list("100", "", &[]));
    let cases = [
        ("unauthorized", vec![(LIST, status(401))]),
        ("forbidden", vec![(LIST, status(403))]),
        ("not_found", vec![(LIST, Reply::Answer(404, json!("404 page not found")))]),
        ("refused", vec![(LIST, status(500))]),
        ("other", vec![(LIST, Reply::Answer(200, json!("?")))]),
        ("forbidden", vec![first(), ("watch=true", status(403))]),
        ("expired", vec![first(), ("watch=true", Reply::Events(vec![event("ERROR", gone())]))]),
    ];
    let checks = cases.map(async |(kind, replies)| {
        let is_first = replies.len() == 1;
        let script = Script::start(replies, |_| Reply::NoAnswer);
        assert_eq!(kinds_after(&script, script.client()).await, [kind], "{is_first}");
    });
    futures::future::join_all(checks).await;
    let script = Script::start(vec![], quiet);
    let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
    assert_eq!(kinds_after(&script, Client::try_from(config).unwrap()).await, ["unreachable"]);
}

/// The kinds of errors that are counted, once there are any.
async fn kinds_after(script: &Script, client: Client) -> Vec<String> {
    let mut registry = Registry::default();
    let feed = feed().with_errors(WatchErrors::new(&mut registry));
    let kinds = || {
        let mut metrics = String::new();
        text::encode(&mut metrics, &registry).unwrap();
        let counters = metrics.lines().filter_map(|line| line.strip_prefix("watch_errors_total{kind=\""));
        let counted =
            counters.filter(|counter| !counter.ends_with(" 0")).filter_map(|counter| counter.split('"').next());
        counted.map(str::to_owned).collect::<Vec<_>>()
    };
    let wait = async {
        while kinds().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let keeper = LeaseKeeper::new(Arc::clone(&feed.membership), script.client(), "keywright-system");
    tokio::select! {
        never = feed.follow_at(client, "keywright-system", QUICK) => match never {},
        () = keeper.run() => panic!("it has not been told to leave"),
        waited = timeout(Duration::from_secs(20), wait) => waited.unwrap_or_else(|_| panic!("{:?}", script.targets())),
    }
    kinds()
}

#[tokio::test]
async fn a_server_that_fails_is_asked_at_growing_intervals() {
    let script = Script::start(vec![], |_| Reply::Answer(500, json!({})));
    let timings = Timings { first_retry: Duration::from_millis(20), longest_retry: Duration::from_secs(5), ..QUICK };
    let started = Instant::now();
    follow_until_at(&script, &feed(), timings, |_| script.targets().len() > 6).await;
    // 20, 40, 80, 160, 320 and 640 ms, each cut by half at most.
    assert!(started.elapsed() >= Duration::from_millis(630), "{:?}", started.elapsed());
}
