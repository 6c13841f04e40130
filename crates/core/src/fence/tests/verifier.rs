//! One verifier by itself.

use std::time::Duration;

use super::*;

const DURATION: Duration = Duration::from_secs(600);

fn at(milliseconds: u64) -> Moment {
    Moment::since_boot(Duration::from_millis(1_000_000 + milliseconds))
}

fn stored(uid: &str, version: u64, holder: &Holder) -> Stored {
    let at = Precondition { uid: uid.into(), version: version.to_string().parse().unwrap() };
    let (name, holder) = (holder.identity.clone(), holder.holder.clone());
    Stored { name, at, holder, duration: DURATION, applied: None, is_going: false }
}

fn version(number: u64) -> RecordVersion {
    number.to_string().parse().unwrap()
}

/// A verifier, and what it has sent.
struct Client {
    verifier: Verifier,
    holder: Holder,
    round: Round,
    lease_version: u64,
}

impl Client {
    fn new(random: u64) -> Self {
        let holder = Holder::new("verifier-0", random, DURATION);
        Self { verifier: Verifier::new(holder.clone()), holder, round: Round::default(), lease_version: 0 }
    }

    /// One that serves since its list showed this version.
    fn serving(records: u64) -> Self {
        let mut client = Self::new(1);
        let request = client.sends(at(0));
        assert!(matches!(request.operation, Operation::Create(_)));
        client.is_stored(request, at(0));
        let Act::List(round) = client.verifier.next(at(0)) else { panic!("the list comes after the Lease") };
        client.round = round;
        client.reaches(records, true, at(0));
        client
    }

    fn sends(&mut self, now: Moment) -> Request {
        match self.verifier.next(now) {
            Act::Send(request) => request,
            other => panic!("{other:?}"),
        }
    }

    fn is_stored(&mut self, request: Request, now: Moment) {
        self.lease_version += 1;
        let stored = stored("a", self.lease_version, &self.holder);
        self.verifier.answered(request, Answer::Stored(stored), now);
    }

    fn reaches(&mut self, records: u64, is_awaited: bool, now: Moment) {
        let progress = Progress { version: version(records), asked: now, is_awaited };
        self.verifier.reached(self.round, progress, now);
    }

    /// What it renews until `end`, with answers at once: when, and as what it has applied.
    fn renewals(&mut self, end: Moment) -> Vec<(Moment, Option<RecordVersion>)> {
        let (mut now, mut renewals) = (at(0), Vec::new());
        while now < end {
            match self.verifier.next(now) {
                Act::Wait(until) => now = until,
                Act::Send(request) => {
                    if let Operation::Renew(_, content) = &request.operation {
                        renewals.push((now, content.applied));
                    }
                    self.is_stored(request, now);
                }
                other => panic!("{other:?}"),
            }
        }
        renewals
    }
}

#[test]
fn it_has_its_lease_before_it_lists_and_serves_until_the_duration_after_the_request() {
    let mut client = Client::new(1);
    let request = client.sends(at(0));
    client.is_stored(request, at(5000));
    assert!(!client.verifier.may_answer(at(5000)), "no list yet");
    assert_eq!(client.verifier.state(at(5000)), State::Joining);
    let Act::List(round) = client.verifier.next(at(5000)) else { panic!("it lists") };
    client.round = round;
    client.reaches(7, true, at(6000));
    assert!(client.verifier.may_answer(at(599_999)));
    assert!(!client.verifier.may_answer(at(600_000)), "from the request on, not from the answer");
    assert_eq!(client.verifier.state(at(600_000)), State::Lapsed);
}

#[test]
fn a_version_is_acknowledged_at_once_and_ten_thousand_in_a_second_take_a_renewal_each_100_ms() {
    let mut client = Client::serving(1);
    assert_eq!(client.renewals(at(200)), [(at(100), Some(version(1)))]);
    for tombstone in 0..10_000 {
        client.reaches(2 + tombstone, true, at(200 + tombstone / 10));
    }
    assert_eq!(client.renewals(at(9000)), [(at(200), Some(version(10_001)))]);
    let mut sent = 0;
    for tombstone in 0..10_000 {
        let now = at(9000 + tombstone / 10);
        client.reaches(20_000 + tombstone, true, now);
        if let Act::Send(request) = client.verifier.next(now) {
            client.is_stored(request, now);
            sent += 1;
        }
    }
    assert_eq!(sent, 10);
}

#[test]
fn what_nobody_waits_for_goes_with_the_next_renewal() {
    let mut client = Client::serving(1);
    client.renewals(at(200));
    client.reaches(2, false, at(300));
    assert_eq!(client.renewals(at(20_200)), [(at(10_100), Some(version(2))), (at(20_100), Some(version(2)))]);
}

#[test]
fn failures_are_retried_with_growing_pauses_and_the_lease_runs_out_meanwhile() {
    let mut client = Client::serving(1);
    let (mut now, mut tries) = (at(0), Vec::new());
    while now < at(100_000) {
        match client.verifier.next(now) {
            Act::Wait(until) => now = until,
            Act::Send(request) => {
                tries.push(now);
                client.verifier.answered(request, Answer::Unknown, now);
            }
            other => panic!("{other:?}"),
        }
    }
    let pauses: Vec<_> = tries.windows(2).map(|pair| pair[1].since(pair[0]).as_millis()).collect();
    assert_eq!(pauses[..8], [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert!(client.verifier.may_answer(at(599_999)) && !client.verifier.may_answer(at(600_000)));
}

#[test]
fn a_renewal_whose_answer_was_lost_is_read_and_made_again() {
    let mut client = Client::serving(1);
    let request = client.sends(at(100));
    client.verifier.answered(request, Answer::Unknown, at(200));
    client.lease_version += 1;
    let request = client.sends(at(300));
    assert_eq!(request.operation, Operation::Read);
    client.verifier.answered(request, Answer::Stored(stored("a", 2, &client.holder)), at(300));
    let Operation::Renew(precondition, _) = client.sends(at(300)).operation else { panic!("it renews") };
    assert_eq!(precondition.version.to_string(), "2");
    assert!(!client.verifier.may_answer(at(600_000)), "the lost answer does not count");
}

#[test]
fn who_lost_its_lease_or_sees_versions_go_backwards_joins_anew_at_once() {
    type Loss = fn(&mut Client);
    let losses: [(&str, Loss); 5] = [
        ("evicted", |client| {
            let request = client.sends(at(100));
            client.verifier.answered(request, Answer::Absent, at(100));
        }),
        ("another Lease", |client| {
            let request = client.sends(at(100));
            client.verifier.answered(request, Answer::Conflict, at(100));
            let request = client.sends(at(200));
            client.verifier.answered(
                request,
                Answer::Stored(stored("b", 9, &Holder::new("verifier-0", 2, DURATION))),
                at(200),
            );
        }),
        ("an older Lease", |client| {
            let request = client.sends(at(100));
            client.verifier.answered(request, Answer::Stored(stored("a", 0, &client.holder)), at(100));
        }),
        ("an older list", |client| client.reaches(4, true, at(100))),
        ("an older newest version", |client| client.verifier.saw_newest(client.round, version(4), at(100))),
    ];
    for (name, lose) in losses {
        let mut client = Client::serving(5);
        assert!(client.verifier.may_answer(at(99)));
        lose(&mut client);
        assert!(!client.verifier.may_answer(at(200)), "{name}");
        client.reaches(6, true, at(300));
        assert!(!client.verifier.may_answer(at(300)), "{name}: of an older round");
    }
}

#[test]
fn an_earlier_start_is_cleared_at_once_and_a_later_one_never() {
    let mut client = Client::new(2);
    let request = client.sends(at(0));
    client.verifier.answered(request, Answer::Conflict, at(0));
    let request = client.sends(at(100));
    assert_eq!(request.operation, Operation::Read);
    let earlier = stored("old", 9, &Holder::new("verifier-0", 1, DURATION));
    client.verifier.answered(request, Answer::Stored(earlier.clone()), at(100));
    let request = client.sends(at(100));
    assert_eq!(request.operation, Operation::Delete(earlier.at));
    client.verifier.answered(request, Answer::Absent, at(100));
    assert!(matches!(client.sends(at(100)).operation, Operation::Create(_)));

    let mut client = Client::serving(1);
    let request = client.sends(at(100));
    client.verifier.answered(request, Answer::Conflict, at(100));
    let request = client.sends(at(200));
    client.verifier.answered(
        request,
        Answer::Stored(stored("new", 9, &Holder::new("verifier-0", 2, DURATION))),
        at(200),
    );
    assert_eq!(client.verifier.next(at(300)), Act::Wait(at(10_200)));
    assert_eq!(client.sends(at(10_200)).operation, Operation::Read);
}

#[test]
fn it_does_not_renew_while_its_records_are_old() {
    let mut client = Client::serving(1);
    client.renewals(at(119_000));
    assert!(matches!(client.verifier.next(at(121_000)), Act::Wait(_)));
    client.reaches(1, false, at(122_000));
    assert!(matches!(client.sends(at(122_000)).operation, Operation::Renew(..)));
}

/// The Lease alone would be enough for ten minutes more: but a key may have been narrowed, and nobody waits for that.
#[test]
fn records_that_are_as_old_as_the_duration_let_nobody_in() {
    let mut client = Client::serving(1);
    client.renewals(at(119_000));
    client.reaches(1, false, at(100_000));
    client.renewals(at(219_000));
    assert!(client.verifier.may_answer(at(699_999)) && !client.verifier.may_answer(at(700_000)));
    let event = Progress { version: version(2), asked: Moment::default(), is_awaited: true };
    client.verifier.reached(client.round, event, at(219_000));
    assert!(!client.verifier.may_answer(at(700_000)), "an event proves nothing");
}

#[test]
fn the_records_are_as_old_as_the_request_for_their_list_and_not_as_its_last_page() {
    let mut client = Client::new(1);
    let request = client.sends(at(0));
    client.is_stored(request, at(0));
    let Act::List(round) = client.verifier.next(at(0)) else { panic!("it lists") };
    client.round = round;
    client.verifier.listed_page(round, at(100_000));
    let request = client.sends(at(100_000));
    client.is_stored(request, at(100_000));
    let listed = Progress { version: version(1), asked: at(10_000), is_awaited: true };
    client.verifier.reached(round, listed, at(100_000));
    assert!(client.verifier.may_answer(at(609_999)) && !client.verifier.may_answer(at(610_000)));
}

#[test]
fn a_list_that_makes_progress_may_take_long_and_one_that_does_not_gives_the_lease_up() {
    let mut client = Client::new(1);
    let request = client.sends(at(0));
    client.is_stored(request, at(0));
    let Act::List(round) = client.verifier.next(at(0)) else { panic!("it lists") };
    client.verifier.listed_page(round, at(100_000));
    assert!(matches!(client.sends(at(200_000)).operation, Operation::Renew(..)));
    client.verifier.next(at(220_000));
    assert!(matches!(client.sends(at(221_000)).operation, Operation::Delete(_)));
}

#[test]
fn who_leaves_lets_nobody_in_and_deletes_its_lease() {
    let mut client = Client::serving(1);
    client.verifier.leave();
    assert!(!client.verifier.may_answer(at(1)));
    assert_eq!(client.verifier.state(at(1)), State::Leaving);
    let request = client.sends(at(1));
    assert!(matches!(request.operation, Operation::Delete(_)));
    client.verifier.answered(request, Answer::Absent, at(2));
    assert_eq!(client.verifier.next(at(2)), Act::Exit);
}
