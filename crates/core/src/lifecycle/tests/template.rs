//! `spec.secret.template`: what is in the Secret beside the key.

use super::*;
use crate::api::{MANAGED_BY, TEMPLATE_ANNOTATION};

fn with_template(template: Value) -> Value {
    json!({"secret": {"template": template}})
}

fn env() -> Value {
    json!({
        "metadata": {"labels": {"team": "a"}, "annotations": {"reloader.stakater.com/match": "true"}},
        "data": {".env": "API_KEY=$(KEY)\n", "who": "$(NAMESPACE)/$(NAME) $(PREFIX) $(EXPIRES_AT)"},
    })
}

impl World {
    fn entry(&self, name: &str) -> Option<&str> {
        self.data.get(name).map(|octets| std::str::from_utf8(&octets.0).unwrap())
    }

    fn metadata(&self) -> &ObjectMeta {
        let SecretState::Ours { metadata, .. } = &self.secret else { panic!("not ours: {:?}", self.secret) };
        metadata
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.metadata().labels.as_ref()?.get(name).map(String::as_str)
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata().annotations.as_ref()?.get(name).map(String::as_str)
    }

    fn make_immutable(&mut self) {
        let SecretState::Ours { is_immutable, .. } = &mut self.secret else { panic!("not ours: {:?}", self.secret) };
        *is_immutable = true;
    }

    fn said_of_ready(&self) -> &str {
        &self.status.conditions.iter().find(|condition| condition.type_ == ConditionType::Ready).unwrap().message
    }

    /// Runs, and answers how many writes that took.
    fn writes_of_a_run(&mut self) -> usize {
        let before = self.writes;
        self.run(None);
        self.check_rest(Rest::Settled);
        self.writes - before
    }
}

#[test]
fn all_entries_come_with_the_key_in_one_write() {
    let mut world = issued(with_template(env()));
    assert_eq!(world.writes, 3, "as many as without a template");
    for number in 1..=2 {
        let key = key_number(number);
        assert_eq!(world.entry("api-key"), Some(&*key));
        assert_eq!(world.entry(".env"), Some(&*format!("API_KEY={key}\n")));
        assert_eq!(world.entry("who"), Some(&*format!("team-a/ci {} Never", &key[..14])));
        assert_eq!((world.label("team"), world.label(MANAGED_BY.0)), (Some("a"), Some(MANAGED_BY.1)));
        assert_eq!(world.annotation("reloader.stakater.com/match"), Some("true"));
        if number == 1 {
            world.ask_for_rotation();
            assert_eq!(world.writes_of_a_run(), 3, "the record, the Secret, the older record");
        }
    }
}

#[test]
fn a_change_of_the_template_is_one_write_and_no_new_key() {
    let mut world = issued(json!({}));
    for (template, entries) in [
        (env(), vec![".env", "api-key", "who"]),
        (json!({"data": {"b": "$(KEY)"}}), vec!["api-key", "b"]),
        (json!({"metadata": {"labels": {"team": "b"}}}), vec!["api-key"]),
        (json!({"metadata": {"labels": {"team": "c"}, "annotations": {"a": "b"}}}), vec!["api-key"]),
        (json!({"data": {"b": ""}}), vec!["api-key", "b"]),
        (Value::Null, vec!["api-key"]),
    ] {
        world.edit("secret", json!({ "template": template }));
        assert_eq!(world.writes_of_a_run(), 1, "{template}");
        assert_eq!((world.status.serial, world.minted, world.entry("api-key")), (Some(1), 1, Some(&*key_number(1))));
        assert_eq!(world.data.keys().collect::<Vec<_>>(), entries, "{template}");
        assert_eq!(world.label("team"), template["metadata"]["labels"]["team"].as_str(), "{template}");
        assert_eq!(world.annotation("a"), template["metadata"]["annotations"]["a"].as_str(), "{template}");
    }
    assert_eq!(world.annotation(TEMPLATE_ANNOTATION), None, "nothing is left of it");
}

#[test]
fn a_template_that_says_nothing_new_is_no_write() {
    let mut world = issued(json!({}));
    for template in [json!({}), json!({"type": "Opaque"}), json!({"data": {}, "metadata": {"labels": {}}})] {
        world.edit("secret", json!({ "template": template }));
        assert_eq!(world.writes_of_a_run(), 0, "{template}");
    }
}

#[test]
fn what_others_added_stays_and_what_they_changed_is_put_right() {
    let mut world = issued(with_template(env()));
    world.edit_secret(|metadata, _| {
        metadata
            .labels
            .as_mut()
            .unwrap()
            .extend([("theirs", "1"), ("team", "theirs")].map(|(n, v)| (n.into(), v.into())));
        metadata.annotations.as_mut().unwrap().insert("example.org/theirs".into(), "2".into());
    });
    assert_eq!(world.writes_of_a_run(), 1);
    assert_eq!((world.label("team"), world.label("theirs")), (Some("a"), Some("1")));
    world.edit("secret", Value::Null);
    assert_eq!(world.writes_of_a_run(), 1);
    assert_eq!((world.label("team"), world.label("theirs")), (None, Some("1")));
    assert_eq!(world.annotation("example.org/theirs"), Some("2"));
    assert_eq!(world.annotation("reloader.stakater.com/match"), None);
    assert_eq!(world.annotation(SERIAL_ANNOTATION), Some("1"));
}

/// Whoever edits the list of what was ours cannot have Keywright take its own notes away.
#[test]
fn a_forged_list_of_names_takes_nothing_of_ours_away() {
    let mut world = issued(with_template(env()));
    let ours = format!(r#"{{"labels":["{}","theirs"],"annotations":["{SERIAL_ANNOTATION}"]}}"#, MANAGED_BY.0);
    for forged in [&*ours, "nonsense", "", "[]", r#"{"labels":[7]}"#] {
        world.edit_secret(|metadata, _| {
            metadata.annotations.as_mut().unwrap().insert(TEMPLATE_ANNOTATION.into(), forged.into());
        });
        assert_eq!(world.writes_of_a_run(), 1, "{forged}");
        assert_eq!((world.label(MANAGED_BY.0), world.annotation(SERIAL_ANNOTATION)), (Some(MANAGED_BY.1), Some("1")));
        assert_eq!(world.label("team"), Some("a"));
    }
}

#[test]
fn entries_that_somebody_changed_added_or_removed_are_restored_without_a_new_key() {
    let edits: [fn(&mut BTreeMap<String, ByteString>); 4] = [
        |data| drop(data.insert(".env".into(), ByteString(b"API_KEY=mine".to_vec()))),
        |data| drop(data.insert(".env".into(), ByteString(vec![0xff]))),
        |data| drop(data.remove("who")),
        |data| drop(data.insert("theirs".into(), ByteString(Vec::new()))),
    ];
    let mut world = issued(with_template(env()));
    let before = world.data.clone();
    for edit in edits {
        world.edit_secret(|_, _| {});
        edit(&mut world.data);
        assert_eq!(world.writes_of_a_run(), 1);
        assert_eq!((&world.data, world.status.serial), (&before, Some(1)));
    }
    world.meddle(Meddling::ChangeSecret);
    world.run(None);
    assert_eq!(world.status.serial, Some(2), "another key is another matter");
}

#[test]
fn nothing_is_written_only_because_the_program_is_newer() {
    let mut world = issued(json!({}));
    world.meddle(Meddling::ChangeEntries);
    assert_eq!(world.writes_of_a_run(), 0, "an entry beside a key without a template stays, as before");
    world.ask_for_rotation();
    world.run(None);
    assert_eq!(world.data.keys().collect::<Vec<_>>(), ["api-key"], "until the next key, as before");
}

#[test]
fn another_expiry_is_another_text_and_no_new_key() {
    let mut world = issued(with_template(env()));
    world.meddle(Meddling::ExpireLate);
    world.run(None);
    world.check_rest(Rest::Settled);
    assert!(world.entry("who").unwrap().ends_with(" 2036-01-01T00:00:00Z"), "{:?}", world.entry("who"));
    assert_eq!((world.status.serial, world.minted), (Some(1), 1));
    assert_eq!(world.annotation(crate::api::EXPIRES_AT_ANNOTATION), Some("2036-01-01T00:00:00Z"));
}

#[test]
fn a_refused_change_is_said_tried_again_every_30_seconds_and_costs_no_key() {
    for spec in [json!({}), with_template(env())] {
        let mut world = issued(spec);
        let before = world.status.clone();
        world.obstacle = Some(Obstacle::Refused("exceeded quota".into()));
        world.edit("secret", json!({"template": {"data": {"b": "$(KEY)"}}}));
        world.edit("allowedIPs", json!(["192.0.2.0/24"]));
        for _ in 0..100 {
            world.run(None);
            world.check_rest(Rest::Settled);
            assert_eq!((world.reason(), world.minted, world.status.serial), (Reason::Active, 1, Some(1)));
            assert_eq!(
                world.said_of_ready(),
                "Secret \"ci\" cannot be written: exceeded quota; what spec.secret.template declares waits; the key is let in"
            );
            let Plan::Rest(finding) = world.plan() else { panic!("tried in a loop") };
            assert_eq!(finding.wake, Some(world.now + SECRET_RETRY));
            world.wait(SECRET_RETRY);
        }
        assert_eq!(world.status.observed_generation, Some(world.generation), "the status is not held up");
        assert!(world.records[&1].spec.allowed_ips.is_some(), "nor is what is enforced");
        let told = announcements(&before, &world.status, None);
        assert_eq!(told.iter().map(|event| event.reason).collect::<Vec<_>>(), ["SecretRefused"]);
        assert!(world.status.conditions[2].message.contains("retries every 30 s"));

        world.obstacle = None;
        assert_eq!(world.writes_of_a_run(), 1);
        assert_eq!((world.entry("b"), world.said_of_ready()), (Some(&*key_number(1)), "the key is let in"));
    }
}

#[test]
fn a_refused_change_holds_up_neither_a_suspension_nor_a_deletion() {
    let mut world = issued(json!({}));
    world.obstacle = Some(Obstacle::Refused("frozen".into()));
    world.edit("secret", json!({ "template": env() }));
    world.meddle(Meddling::Suspend);
    world.run(None);
    assert_eq!(world.reason(), Reason::Suspended);
    assert!(world.records[&1].spec.suspended);
    assert!(world.said_of_ready().ends_with("spec.suspended is true: the key is refused until it is false again"));
    world.meddle(Meddling::Delete);
    assert_eq!(world.run(None), Rest::Done);
}

#[test]
fn an_immutable_secret_says_what_to_do_and_takes_labels() {
    let mut world = issued(json!({}));
    world.make_immutable();
    world.edit("secret", json!({"template": {"metadata": {"labels": {"team": "a"}}}}));
    assert_eq!((world.writes_of_a_run(), world.label("team")), (1, Some("a")));
    world.edit("secret", json!({ "template": env() }));
    assert_eq!(world.writes_of_a_run(), 0, "the API server would refuse it");
    let said = "Secret \"ci\" cannot be written: it is immutable: delete it, and the controller creates a new one; ";
    assert!(world.said_of_ready().starts_with(said), "{}", world.said_of_ready());
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    world.check_rest(Rest::Settled);
    assert_eq!(world.entry(".env"), Some(&*format!("API_KEY={}\n", key_number(2))));
}

/// Somebody's admission policy, say, that puts every Secret back.
#[test]
fn nobody_is_fought_over_an_entry() {
    let mut world = issued(with_template(env()));
    world.meddle(Meddling::ChangeEntries);
    assert_eq!(world.writes_of_a_run(), 1);
    // The write was taken, and the Secret that came of it is not as declared.
    world.data.insert("extra".to_owned(), ByteString(Vec::new()));
    let writes = world.writes;
    for _ in 0..100 {
        world.wait(SECRET_RETRY);
        world.run(None);
    }
    assert_eq!((world.writes, world.minted), (writes, 1));
}

#[test]
fn a_rotation_that_is_due_writes_the_changed_template_too() {
    let mut world = issued(with_template(env()));
    world.edit("secret", json!({"template": {"data": {"b": "$(KEY)"}}}));
    world.ask_for_rotation();
    assert_eq!(world.writes_of_a_run(), 3, "the record, the Secret, the older record");
    assert_eq!(world.entry("b"), Some(&*key_number(2)));
}

#[test]
fn a_secret_of_another_type_is_a_foreign_one() {
    let contents = |spec: Value| {
        let declaration = declaration::read(&spec, "ci", World::new(json!({})).created).unwrap();
        SecretContents::declared(&reference(), &declaration).unwrap()
    };
    let basic = with_template(json!({"type": "kubernetes.io/basic-auth", "data": {"password": "$(KEY)"}}));
    for (spec, other) in [(with_template(env()), "kubernetes.io/basic-auth"), (basic, "Opaque")] {
        let world = issued(spec.clone());
        let stored = |secret_type: &str| Secret {
            metadata: world.metadata().clone(),
            type_: Some(secret_type.into()),
            data: Some(world.data.clone()),
            ..Secret::default()
        };
        let own = if other == "Opaque" { "kubernetes.io/basic-auth" } else { "Opaque" };
        let read = |secret_type: &str| SecretState::read(stored(secret_type), &reference(), &contents(spec.clone()));
        assert_eq!(read(other), SecretState::Foreign);
        assert_eq!(read(own), world.secret);
    }
}

#[test]
fn a_secret_is_read_by_what_is_declared_for_the_key_in_it() {
    let world = issued(with_template(env()));
    let has_declared_entries = |data: &BTreeMap<String, ByteString>| {
        let stored = Secret { metadata: world.metadata().clone(), data: Some(data.clone()), ..Secret::default() };
        match SecretState::read(stored, &reference(), &world.contents()) {
            SecretState::Ours { has_declared_entries, .. } => has_declared_entries,
            other => panic!("{other:?}"),
        }
    };
    assert!(has_declared_entries(&world.data));
    for name in ["api-key", ".env", "who", "another"] {
        let mut changed = world.data.clone();
        changed.insert(name.into(), ByteString(key_number(7).into()));
        assert!(!has_declared_entries(&changed), "{name}");
        changed.remove(name);
        assert_eq!(has_declared_entries(&changed), name == "another", "{name}");
    }
}

#[test]
fn what_is_observed_of_a_secret_holds_no_part_of_its_key() {
    let world = issued(with_template(env()));
    let update = {
        let mut world = world.clone();
        world.edit("secret", json!({"template": {"data": {"b": "$(KEY)"}}}));
        world.plan()
    };
    for shown in [format!("{:?}", world.observed()), format!("{update:?}")] {
        assert!(!shown.contains(&key_number(1)[..15]), "{shown}");
    }
}

#[test]
fn an_update_is_not_made_around_another_key_than_was_observed() {
    let mut world = issued(json!({}));
    world.edit("secret", json!({ "template": env() }));
    let Plan::Write(Write::UpdateSecret(update)) = world.plan() else { panic!("nothing to write") };
    let stored = |key: &str| Secret {
        data: Some([("api-key".to_owned(), ByteString(key.as_bytes().to_vec()))].into()),
        ..Secret::default()
    };
    assert!(update.object(stored(&key_number(1))).is_some());
    assert_eq!(update.object(stored(&key_number(2))), None);
    assert_eq!(update.object(Secret::default()), None);
}

/// A crash after every write on the way from any of these to any other.
#[test]
fn every_change_comes_to_rest_wherever_it_crashes() {
    let others = json!({"metadata": {"labels": {"team": "b"}}, "data": {"who": "$(NAME)"}});
    let templates = [Value::Null, env(), others];
    for before in &templates {
        for after in &templates {
            for (asked, refused, crash) in (0..16).map(|bits: usize| (bits & 1 == 1, bits & 2 == 2, bits / 4)) {
                let mut world = issued(with_template(before.clone()));
                world.edit("secret", json!({ "template": after }));
                world.obstacle = refused.then(|| Obstacle::Refused("frozen".into()));
                if asked {
                    world.ask_for_rotation();
                }
                world.run(Some(crash));
                world.wait(SECRET_RETRY);
                world.run(None);
                world.check_rest(Rest::Settled);
                world.obstacle = None;
                world.wait(SECRET_RETRY + MINT_PERIOD);
                world.run(None);
                world.check_rest(Rest::Settled);
                assert_eq!(world.status.serial > Some(1), asked, "a key is made for who asks, and for nobody else");
                assert_eq!(world.entry("who").is_some(), after["data"].get("who").is_some());
                assert!(!world.said_of_ready().contains("cannot be written"), "{}", world.said_of_ready());
            }
        }
    }
}
