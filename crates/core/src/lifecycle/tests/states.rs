//! What each state shows to a user: every row of the tables in `docs/states.md` is tried.

use super::rotation::{Circumstances, Kind, Place};
use super::source::{Holds, in_state};
use super::*;

const TABLES: &str = include_str!("../../../../../docs/states.md");

/// The rows of the table whose first column has this title, without their frames.
fn rows(first_column: &str) -> Vec<Vec<&'static str>> {
    let table = TABLES.lines().skip_while(|line| !line.starts_with(&format!("| {first_column} |")));
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    let rows: Vec<Vec<_>> = table.skip(2).take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(rows.len() >= 4, "{first_column}: {rows:?}");
    rows
}

fn circumstances(of_apikey: &str) -> Circumstances {
    let is = |word: &str| of_apikey == word;
    let known = ["", "suspended", "expired", "being deleted", "rotation asked for", "rotation due"];
    assert!(known.contains(&of_apikey), "{of_apikey}");
    Circumstances {
        finalizer: true,
        deleting: is("being deleted"),
        suspended: is("suspended"),
        expired: is("expired"),
        asked: is("rotation asked for"),
        scheduled: is("rotation due"),
    }
}

fn kinds(records: &str) -> Vec<Kind> {
    let kind = |word: &str| match word {
        "valid" => Kind::Delivered,
        "retiring" => Kind::Retiring,
        "ended" => Kind::Over,
        "not in the Secret yet" => Kind::Undelivered,
        "revoked" => Kind::Revoked,
        other => panic!("no kind of record: {other}"),
    };
    records.split(", ").filter(|word| *word != "none").map(kind).collect()
}

/// The controller's next write in the table's words.
fn first_write(world: &World) -> &'static str {
    match world.clone().plan() {
        Plan::Write(Write::CreateRecord(_)) => "creates a record",
        Plan::Write(Write::CreateSecret(_) | Write::ReplaceSecret(_)) => "writes the Secret",
        Plan::Write(Write::UpdateSecret(_)) => "updates the Secret",
        Plan::Write(Write::UpdateRecord(update)) if update.spec.revoked.is_some() => "revokes a record",
        Plan::Write(Write::UpdateRecord(_)) => "updates a record",
        Plan::Write(Write::RemoveRecord(_)) => "removes its record",
        Plan::Write(Write::RemoveFinalizer(_)) => "removes the finalizer",
        Plan::Write(Write::AddFinalizer(_)) => "adds the finalizer",
        Plan::Write(Write::UpdateStatus(_)) | Plan::Rest(_) | Plan::AskVerifiers(_) => "nothing",
        Plan::Done => "nothing",
    }
}

/// What it all comes to.
fn shows(world: &mut World) -> String {
    world.wait(DELIVERY_GRACE);
    match world.run(None) {
        Rest::Done => "it is gone".to_owned(),
        _ => format!("`{}`", world.reason()),
    }
}

#[test]
fn each_state_of_a_generated_key_shows_what_the_documentation_says() {
    let mut wrong = Vec::new();
    for row in rows("Secret") {
        let [secret, records, of_apikey, write, expected] = row[..] else { panic!("five columns: {row:?}") };
        let place = match secret {
            "missing" => Place::Missing,
            "holds the newest key" => Place::HoldsTheNewest,
            "holds an older key" => Place::HoldsAnOlder,
            "holds something else" => Place::Changed,
            "immutable, holds the newest key" => Place::Immutable,
            "somebody else's" => Place::Foreign,
            other => panic!("no state of a Secret: {other}"),
        };
        let mut world = World::in_state(&kinds(records), place, circumstances(of_apikey));
        let seen = (first_write(&world), shows(&mut world));
        if (seen.0, &*seen.1) != (write, expected) {
            wrong.push(format!("{row:?}: {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_state_of_a_source_shows_what_the_documentation_says() {
    let mut wrong = Vec::new();
    for row in rows("Source") {
        let [source, records, of_apikey, write, expected] = row[..] else { panic!("five columns: {row:?}") };
        let holds = match source {
            "missing, or not labelled" => Holds::Nothing,
            "holds no fit key" => Holds::Unfit,
            "holds the first key" => Holds::First,
            "holds the second key" => Holds::Second,
            "holds a new key" => Holds::Another,
            "holds another ApiKey's key" => Holds::Taken,
            "holds a revoked key" => Holds::Revoked,
            other => panic!("no state of a source: {other}"),
        };
        let mut world = in_state(&kinds(records), holds, circumstances(of_apikey));
        let seen = (first_write(&world), shows(&mut world));
        if (seen.0, &*seen.1) != (write, expected) {
            wrong.push(format!("{row:?}: {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_state_of_a_submitted_digest_shows_what_the_documentation_says() {
    let mut wrong = Vec::new();
    for row in rows("Digest") {
        let [digest, of_apikey, write, expected] = row[..] else { panic!("four columns: {row:?}") };
        let suspended = circumstances(of_apikey).suspended;
        let spec = json!({"keyHash": Digest::of(b"made elsewhere").to_string(), "suspended": suspended});
        let mut world = World { finalizer: true, ..World::new(spec) };
        let rival = |is_revoked| Claim {
            created: world.created - SignedDuration::from_hours(1),
            uid: "another".into(),
            serial: 1,
            is_revoked,
        };
        match digest {
            "free" => {}
            "its own" => assert_eq!(world.run(None), Rest::Settled),
            "another ApiKey's" => world.rival = Some(rival(false)),
            "revoked" => world.rival = Some(rival(true)),
            other => panic!("no state of a digest: {other}"),
        }
        world.deleting = of_apikey == "being deleted";
        let seen = (first_write(&world), shows(&mut world));
        if (seen.0, &*seen.1) != (write, expected) {
            wrong.push(format!("{row:?}: {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
