use super::*;

const NAME: &str = "keywright-webhook.keywright-system.svc";
const DAY: SignedDuration = SignedDuration::from_hours(24);
const POLL: Duration = Duration::from_secs(10);

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

fn authority(from: Timestamp) -> Authority {
    Authority::establish(KeyPair::generate().unwrap(), keywright_core::authority::LIFETIME, from).unwrap()
}

/// What it would read is handed to it here.
fn certificates() -> Arc<AuthorityCertificates> {
    let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
    let source = Source::new(Client::try_from(config).unwrap(), "keywright-system", DAY);
    AuthorityCertificates::new(source, vec![NAME.to_owned(), "127.0.0.1".to_owned()], POLL, &mut Registry::default())
        .unwrap()
}

fn served(certificates: &AuthorityCertificates, now: Timestamp) -> CertificateDer<'static> {
    certificates.served.current(now).unwrap().leaf().unwrap().clone()
}

#[tokio::test]
async fn a_certificate_is_made_once_and_again_after_two_thirds_of_its_life() {
    let (certificates, authority) = (certificates(), authority(now()));
    assert_eq!(
        certificates.readiness(now()).unwrap_err(),
        "there is no certificate: Secret keywright-webhook-ca is not read yet"
    );
    assert_eq!(certificates.renew(&authority, DAY, now()), Standing::Good);
    assert_eq!(certificates.readiness(now()), Ok(()));
    let first = served(&certificates, now());
    let due = now() + DAY * 2 / 3;
    let before = due - SignedDuration::from_secs(1);
    certificates.renew(&authority, DAY, before);
    assert_eq!(served(&certificates, before), first);
    certificates.renew(&authority, DAY, due);
    assert_ne!(served(&certificates, due), first);
}

#[tokio::test]
async fn another_authority_is_followed_at_once_and_a_longer_bundle_costs_nothing() {
    let (certificates, old, staged) = (certificates(), authority(now()), authority(now()));
    certificates.renew(&old, DAY, now());
    let first = served(&certificates, now());
    let data = authority::staged(&old.data(), &staged.trusting([old.certificate().clone()]));
    certificates.renew(&Authority::read(&data, now()).unwrap(), DAY, now());
    assert_eq!(served(&certificates, now()), first, "it is still the old one that signs");
    assert_eq!(certificates.state().bundle.len(), 2);
    let new = authority(now()).trusting([old.certificate().clone()]);
    certificates.renew(&new, DAY, now());
    assert_ne!(served(&certificates, now()), first);
    assert_eq!(certificates.readiness(now()), Ok(()));
}

#[tokio::test]
async fn without_a_source_it_serves_until_the_end_and_then_says_so() {
    let (certificates, authority) = (certificates(), authority(now()));
    certificates.renew(&authority, DAY, now());
    certificates.conclude(Standing::Flawed(Flaw::Absent), now());
    let end = now() + DAY;
    assert_eq!(certificates.readiness(end - SignedDuration::from_secs(1)), Ok(()));
    let problem = certificates.readiness(end).unwrap_err();
    assert!(problem.starts_with("the certificate expired at 2026-11-24T12:00:00Z"), "{problem}");
    assert!(
        problem
            .ends_with("Secret keywright-webhook-ca cannot be used: it does not exist. Run `keywright certificates`")
    );
    assert!(certificates.served.current(end).is_none());
}

#[tokio::test]
async fn a_clock_that_was_set_back_leads_to_a_certificate_of_its_time() {
    let (certificates, authority) = (certificates(), authority(now() - DAY * 30));
    certificates.renew(&authority, DAY, now());
    let earlier = now() - DAY * 3;
    assert!(certificates.readiness(earlier).unwrap_err().contains(NAME));
    certificates.renew(&authority, DAY, earlier);
    assert_eq!(certificates.readiness(earlier), Ok(()));
}

#[tokio::test]
async fn the_next_look_is_in_time_and_never_without_a_pause() {
    let (certificates, authority) = (certificates(), authority(now()));
    let pause = |now| certificates.pause(&certificates.state(), now);
    assert!((POLL.mul_f64(0.8)..=POLL).contains(&pause(now())), "nothing to renew yet");
    certificates.renew(&authority, DAY, now());
    let due = certificates.state().renewal_at.unwrap();
    assert!((POLL.mul_f64(0.8)..=POLL).contains(&pause(now())));
    assert_eq!(pause(due - SignedDuration::from_secs(3)), Duration::from_secs(3));
    assert_eq!(pause(due - SignedDuration::from_nanos(1)), SHORTEST_PAUSE);
    assert!((POLL.mul_f64(0.8)..=POLL).contains(&pause(due)), "it could not be had");
}

#[tokio::test]
async fn an_authority_near_its_end_is_used_and_warned_of() {
    let (certificates, authority) = (certificates(), authority(now()));
    let due = authority.renewal_at();
    assert_eq!(certificates.renew(&authority, DAY, due), Standing::Ageing(authority.not_after()));
    assert_eq!(certificates.readiness(due), Ok(()));
}
