use proptest::prelude::*;

use keywright_core::authority::LIFETIME;

use super::*;

type Data = BTreeMap<String, ByteString>;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn now() -> Timestamp {
    "2026-11-23T12:00:00.5Z".parse().unwrap()
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn authority() -> Authority {
    Authority::establish(key(), LIFETIME, now()).unwrap()
}

fn with(mut data: Data, name: &str, value: impl Into<Vec<u8>>) -> Data {
    data.insert(name.to_owned(), ByteString(value.into()));
    data
}

fn flaw(data: &Data) -> Flaw {
    Authority::read(data, now()).expect_err("it is of no use")
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_is_written_is_read_back() {
    let old = authority();
    let authority = authority().trusting([old.certificate().clone(), old.certificate().clone()]);
    assert_eq!(authority.bundle(), [authority.certificate().clone(), old.certificate().clone()], "newest first, once");
    let data = authority.data();
    let read = Authority::read(&data, now()).unwrap();
    assert_eq!(read.data(), data);
    assert_eq!(read.bundle(), authority.bundle());
    assert_eq!(data[BUNDLE].0, authority.encoded_bundle());
    assert_eq!((read.not_before, read.not_after), (authority.not_before, authority.not_after));
    let text = String::from_utf8(data[KEY].0.clone()).unwrap();
    assert!(text.starts_with("-----BEGIN PRIVATE KEY-----\n") && !text.contains('\r'), "PKCS#8");
}

#[test]
fn every_damage_is_named() {
    let (good, other) = (authority(), authority());
    let (data, others) = (good.data(), other.data());
    let leaf = good.issue(key(), &names(&["a.svc"]), DAY, now()).unwrap();
    let signed = encode(&[leaf.certificate]);
    let signed_key = pem::encode(&Pem::new("PRIVATE KEY", leaf.key.secret_der()));
    let expired = Authority::establish(key(), DAY, now() - DAY - DAY).unwrap();
    let early = Authority::establish(key(), DAY, now() + DAY).unwrap();
    let twice = [&data[CERTIFICATE].0[..], &others[CERTIFICATE].0].concat();
    let rubbish = pem::encode(&Pem::new("CERTIFICATE", [0x30, 3, 2, 1, 1]));
    let mut trailing = good.certificate().to_vec();
    trailing.push(0);
    let trailing = pem::encode(&Pem::new("CERTIFICATE", trailing));
    let mut without_bundle = data.clone();
    without_bundle.remove(BUNDLE);
    let cases = [
        ("nothing", Data::new(), Flaw::Missing(CERTIFICATE)),
        ("an empty certificate", with(data.clone(), CERTIFICATE, ""), Flaw::Missing(CERTIFICATE)),
        ("an empty key", with(data.clone(), KEY, ""), Flaw::Missing(KEY)),
        ("no bundle", without_bundle, Flaw::Missing(BUNDLE)),
        ("no PEM", with(data.clone(), CERTIFICATE, "certificate"), Flaw::NotPem(CERTIFICATE)),
        ("a key as the certificate", with(data.clone(), CERTIFICATE, data[KEY].0.clone()), Flaw::NotPem(CERTIFICATE)),
        ("cut off", with(data.clone(), CERTIFICATE, &data[CERTIFICATE].0[..200]), Flaw::NotPem(CERTIFICATE)),
        ("two certificates", with(data.clone(), CERTIFICATE, twice), Flaw::NotOne(2)),
        ("no X.509", with(data.clone(), CERTIFICATE, rubbish.clone()), Flaw::Unreadable(CERTIFICATE, 0)),
        ("more than X.509", with(data.clone(), CERTIFICATE, trailing), Flaw::Unreadable(CERTIFICATE, 0)),
        ("a server's", with(with(data.clone(), CERTIFICATE, signed), KEY, signed_key), Flaw::NotAuthority),
        ("a key that is none", with(data.clone(), KEY, "secret"), Flaw::NotKey),
        ("a key that is cut off", with(data.clone(), KEY, &data[KEY].0[..100]), Flaw::NotKey),
        ("a certificate as the key", with(data.clone(), KEY, data[CERTIFICATE].0.clone()), Flaw::NotKey),
        ("another key", with(data.clone(), KEY, others[KEY].0.clone()), Flaw::OtherKey),
        ("another certificate", with(data.clone(), CERTIFICATE, others[CERTIFICATE].0.clone()), Flaw::OtherKey),
        ("expired", expired.data(), Flaw::Expired(expired.not_after)),
        ("early", early.data(), Flaw::NotYetValid(early.not_before)),
        ("another bundle", with(data.clone(), BUNDLE, others[BUNDLE].0.clone()), Flaw::NotInBundle),
        ("no PEM in the bundle", with(data.clone(), BUNDLE, "x"), Flaw::NotPem(BUNDLE)),
        (
            "a bundle with rubbish",
            with(data.clone(), BUNDLE, [&data[BUNDLE].0[..], rubbish.as_bytes()].concat()),
            Flaw::Unreadable(BUNDLE, 1),
        ),
    ];
    for (name, data, expected) in cases {
        assert_eq!(flaw(&data), expected, "{name}");
    }
    assert!(Authority::read(&data, now()).is_ok(), "and without damage");
}

#[test]
fn no_text_about_a_damage_holds_the_key() {
    let data = authority().data();
    let key = String::from_utf8(data[KEY].0.clone()).unwrap();
    let secret: String = key.lines().nth(1).unwrap().to_owned();
    let authority = Authority::read(&data, now()).unwrap();
    let leaf = authority.issue(self::key(), &names(&["a.svc"]), DAY, now()).unwrap();
    let damaged = with(data, KEY, key.replace("PRIVATE", "SECRET"));
    let flaw = flaw(&damaged);
    for text in [format!("{flaw} {flaw:?}"), format!("{authority:?} {leaf:?}")] {
        assert!(!text.contains(&secret[..16]), "{text}");
        assert!(!text.contains("PRIVATE KEY-"), "{text}");
    }
    let octets = leaf.key.secret_der().iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    assert!(!format!("{leaf:?}").contains(&octets));
}

/// The very moments, as Go and webpki see them: a certificate is good up to and including its last second. Here the last
/// second does not count, so that nothing is offered that may be refused on its way.
#[test]
fn an_authority_ends_at_its_last_second() {
    let authority = Authority::establish(key(), SignedDuration::from_secs(10), now()).unwrap();
    let (data, end) = (authority.data(), "2026-11-23T12:00:11Z".parse::<Timestamp>().unwrap());
    assert_eq!(authority.not_after(), end, "rounded up");
    let nanosecond = SignedDuration::from_nanos(1);
    assert!(Authority::read(&data, end - nanosecond).is_ok());
    assert_eq!(Authority::read(&data, end).unwrap_err(), Flaw::Expired(end));
}

#[test]
fn what_is_to_be_done_depends_on_age_order_and_means() {
    let young = authority();
    let full = Mandate { publishes: true, rotates: false };
    let rotating = Mandate { publishes: true, rotates: true };
    let secret_only = Mandate { publishes: false, rotates: false };
    let due = young.renewal_at();
    let before = due - SignedDuration::from_nanos(1);
    for (mandate, now, expected) in [
        (full, now(), Upkeep::Keep),
        (full, before, Upkeep::Keep),
        (full, due, Upkeep::Roll),
        (rotating, now(), Upkeep::Roll),
        (secret_only, due, Upkeep::Keep),
    ] {
        assert_eq!(young.judge(mandate, now), expected, "{mandate:?} at {now}");
    }
    let life = young.not_after().duration_since(young.not_before).as_secs();
    assert_eq!(due.duration_since(young.not_before).as_secs(), life / 3 * 2);

    let short = Authority::establish(key(), DAY, now()).unwrap();
    let both = young.trusting([short.certificate().clone()]);
    assert_eq!(both.judge(full, now()), Upkeep::Keep);
    let later = now() + DAY + DAY;
    assert_eq!(both.judge(full, later), Upkeep::Prune);
    assert_eq!(both.judge(secret_only, later), Upkeep::Prune);
    let pruned = both.pruned(later);
    assert_eq!(pruned.bundle(), [pruned.certificate().clone()]);
    assert_eq!(pruned.judge(full, later), Upkeep::Keep);
}

#[test]
fn what_is_signed_is_accepted_for_its_names_and_its_time_only() {
    let (authority, other) = (authority(), authority());
    let served = names(&["keywright-webhook.keywright-system.svc", "127.0.0.1", "::1"]);
    let leaf = authority.issue(key(), &served, DAY, now()).unwrap();
    let check =
        |bundle: &[CertificateDer<'static>], name: &str, now| verify(&leaf.certificate, bundle, &names(&[name]), now);
    for name in &served {
        assert_eq!(check(authority.bundle(), name, now()), Ok(()), "{name}");
    }
    let rolled = other.bundle().iter().chain(authority.bundle()).cloned().collect::<Vec<_>>();
    assert_eq!(check(&rolled, "127.0.0.1", now()), Ok(()), "in a bundle with another");
    for (name, bundle, at, said) in [
        ("keywright-webhook.other.svc", authority.bundle(), now(), "NotValidForName"),
        ("127.0.0.2", authority.bundle(), now(), "NotValidForName"),
        ("127.0.0.1", other.bundle(), now(), "BadSignature"),
        ("127.0.0.1", &[], now(), "because no CA certificate in the bundle is valid"),
        ("127.0.0.1", authority.bundle(), now() + DAY + DAY, "Expired"),
        ("127.0.0.1", authority.bundle(), now() - DAY, "NotValidYet"),
        ("not a name", authority.bundle(), now(), "not a server's name"),
    ] {
        let problem = check(bundle, name, at).expect_err(name);
        let alternative = if said == "NotValidForName" { "not valid for name" } else { "" };
        let is_said =
            [said, alternative].iter().any(|said| !said.is_empty() && squeezed(&problem).contains(&squeezed(said)));
        assert!(is_said, "{name}: {problem}");
    }
    assert_eq!(leaf.renewal_at, now() + (leaf.not_after.duration_since(now()) / 3) * 2);
    assert!(authority.issue(key(), &names(&["ü"]), DAY, now()).is_err());
}

fn squeezed(text: &str) -> String {
    text.replace(' ', "").to_lowercase()
}

#[test]
fn nothing_that_is_signed_outlives_its_authority() {
    let authority = Authority::establish(key(), DAY, now()).unwrap();
    let leaf = authority.issue(key(), &names(&["a.svc"]), LIFETIME, now()).unwrap();
    assert_eq!(leaf.not_after, authority.not_after());
    assert!(leaf.renewal_at < leaf.not_after);
    let end = authority.not_after() + SignedDuration::from_secs(1);
    let forged = Authority { not_after: end + DAY, ..authority };
    let leaf = forged.issue(key(), &names(&["a.svc"]), LIFETIME, now()).unwrap();
    assert!(verify(&leaf.certificate, forged.bundle(), &names(&["a.svc"]), end).is_err(), "as Go sees it");
}

/// What Go demands of both (crypto/x509), and RFC 5280.
#[test]
fn the_certificates_say_what_they_are_for() {
    let authority = authority();
    let leaf = authority.issue(key(), &names(&["a.svc", "10.0.0.1"]), DAY, now()).unwrap();
    let parsed = parse(authority.certificate()).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0), "no authorities below it");
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && !usage.digital_signature(), "it serves nobody");
    let parsed = parse(&leaf.certificate).unwrap();
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any);
    assert!(parsed.key_usage().unwrap().unwrap().value.digital_signature());
    let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 2);
    let again = authority.issue(key(), &self::names(&["a.svc"]), DAY, now()).unwrap();
    assert_ne!(parse(&again.certificate).unwrap().raw_serial(), parsed.raw_serial());
}

#[test]
fn only_valid_authorities_are_salvaged() {
    let (first, second) = (authority(), authority());
    let expired = Authority::establish(key(), DAY, now() - DAY - DAY).unwrap();
    let leaf = first.issue(key(), &names(&["a.svc"]), DAY, now()).unwrap();
    let text = [
        "# by hand\n".into(),
        encode(&[leaf.certificate, expired.certificate().clone()]),
        first.data()[KEY].0.clone(),
        pem::encode(&Pem::new("CERTIFICATE", [1, 2, 3])).into_bytes(),
        encode(&[first.certificate().clone(), second.certificate().clone()]),
    ]
    .concat();
    assert_eq!(salvage(&text, 2, now()), [first.certificate().clone(), second.certificate().clone()]);
    assert_eq!(salvage(&text, 1, now()), [first.certificate().clone()]);
    assert!(salvage(b"rubbish", 2, now()).is_empty());
}

/// Between the steps of a takeover, replicas find an authority that signs and is trusted.
#[test]
fn a_staged_secret_still_signs_with_the_old_authority() {
    let old = authority();
    let successor = authority().trusting([old.certificate().clone()]);
    let staged = staged(&old.data(), &successor);
    let read = Authority::read(&staged, now()).unwrap();
    assert_eq!(read.certificate(), old.certificate());
    assert_eq!(read.bundle(), successor.bundle());
    assert_eq!(read.judge(Mandate { publishes: true, rotates: false }, now()), Upkeep::Keep, "after a crash, it stays");
    let empty = super::staged(&Data::new(), &successor);
    assert_eq!(flaw(&empty), Flaw::Missing(CERTIFICATE));
    assert!(empty.contains_key(KEY), "the type demands both");
}

proptest! {
    #[test]
    fn any_data_gets_an_answer(certificate: Vec<u8>, key: Vec<u8>, bundle in ".*") {
        let data = with(with(with(Data::new(), CERTIFICATE, certificate), KEY, key), BUNDLE, bundle.clone());
        prop_assert!(Authority::read(&data, now()).is_err());
        salvage(bundle.as_bytes(), 2, now());
    }

    #[test]
    fn no_changed_octet_makes_it_panic(index in 0usize..2000, octet: u8) {
        let authority = Authority::establish(KeyPair::generate().unwrap(), DAY, now()).unwrap();
        for name in [CERTIFICATE, KEY, BUNDLE] {
            let mut data = authority.data();
            let value = &mut data.get_mut(name).unwrap().0;
            let index = index % value.len();
            value[index] = octet;
            let _ = Authority::read(&data, now()).map(|read| read.issue(KeyPair::generate().unwrap(), &names(&["a.svc"]), DAY, now()));
        }
    }
}
