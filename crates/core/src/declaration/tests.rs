use serde_json::json;

use super::reader::LONGEST_TEXT;
use super::*;
use crate::secret_template::{SecretType, Text};
use crate::testing::KEY;

fn created() -> Timestamp {
    "2026-11-01T00:00:00Z".parse().unwrap()
}

#[test]
fn an_empty_spec_is_a_key_for_anybody_that_never_expires() {
    assert_eq!(
        read(&json!({}), "ci", created()),
        Ok(Declaration {
            owner: None,
            scopes: vec![],
            allowed_ips: None,
            suspended: false,
            expires_at: None,
            rotation: Rotation { every: None, overlap: SignedDuration::from_hours(24), hold_while_in_use: false },
            delivery: Delivery::Secret {
                name: "ci".into(),
                key: "api-key".into(),
                template: SecretTemplate::default(),
            },
        })
    );
}

#[test]
fn expiry_counts_from_creation_and_is_cut_to_whole_seconds() {
    let expires = |spec| read(&spec, "ci", created()).unwrap().expires_at.map(|at| at.to_string());
    assert_eq!(expires(json!({"expiresIn": "1d12h"})).as_deref(), Some("2026-11-02T12:00:00Z"));
    assert_eq!(expires(json!({"expiresIn": "Never"})), None);
    assert_eq!(expires(json!({"expiresAt": "2026-12-01T01:00:00.9+01:00"})).as_deref(), Some("2026-12-01T00:00:00Z"));
}

#[test]
fn overlap_is_a_day_or_the_shorter_period() {
    let hours = SignedDuration::from_hours;
    for (rotation, every, overlap) in [
        (json!({"every": "30d"}), Some(hours(30 * 24)), hours(24)),
        (json!({"every": "1h"}), Some(hours(1)), hours(1)),
        (json!({"overlap": "0s"}), None, SignedDuration::ZERO),
        (json!({"every": "2h", "overlap": "1h"}), Some(hours(2)), hours(1)),
    ] {
        let declared = read(&json!({ "rotation": rotation }), "ci", created()).unwrap();
        assert_eq!(declared.rotation, Rotation { every, overlap, hold_while_in_use: false });
    }
}

#[test]
fn every_problem_is_said_with_its_path() {
    let said = |spec: Value| {
        read(&spec, "ci", created()).unwrap_err().iter().map(|problem| problem.path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(said(json!("text")), ["spec"]);
    assert_eq!(said(Value::Null), ["spec"]);
    for (spec, path) in [
        (json!({"displayName": "a\tb"}), "spec.displayName"),
        (json!({"displayName": 7}), "spec.displayName"),
        (json!({"description": "a\rb"}), "spec.description"),
        (json!({"owner": "a b"}), "spec.owner"),
        (json!({"scopes": ["ok", "not ok"]}), "spec.scopes[1]"),
        (json!({"scopes": "all"}), "spec.scopes"),
        (json!({"scopes": ["ok", 7]}), "spec.scopes[1]"),
        (json!({"allowedIPs": ["10.0.0.1", 7]}), "spec.allowedIPs[1]"),
        (json!({"allowedIPs": {"a": "b"}}), "spec.allowedIPs"),
        (json!({"secret": "x"}), "spec.secret"),
        (json!({"secret": []}), "spec.secret"),
        (json!({"rotation": 7}), "spec.rotation"),
        (json!({"scopes": ["a", "b", "a"]}), "spec.scopes[2]"),
        (json!({"scopes": (0..33).map(|n| n.to_string()).collect::<Vec<_>>()}), "spec.scopes"),
        (json!({"allowedIPs": ["10.0.0.0/8", "10.0.0.1/8"]}), "spec.allowedIPs[1]"),
        (json!({"allowedIPs": []}), "spec.allowedIPs"),
        (json!({"allowedIPs": "10.0.0.1"}), "spec.allowedIPs"),
        (json!({"allowedIPs": ["10.0.0.1", "10.0.0.1/32"]}), "spec.allowedIPs[1]"),
        (json!({"suspended": "yes"}), "spec.suspended"),
        (json!({"expiresIn": "30s"}), "spec.expiresIn"),
        (json!({"expiresIn": "soon"}), "spec.expiresIn"),
        (json!({"expiresAt": "soon"}), "spec.expiresAt"),
        (json!({"expiresIn": "1d", "expiresAt": "2027-01-01T00:00:00Z"}), "spec"),
        (json!({"rotation": {"every": "1s"}}), "spec.rotation.every"),
        (json!({"rotation": {"holdWhileInUse": "true"}}), "spec.rotation.holdWhileInUse"),
        (json!({"rotation": {"every": "1h", "overlap": "2h"}}), "spec.rotation.overlap"),
        (json!({"secret": {"name": "a/b"}}), "spec.secret.name"),
        (json!({"secret": {"name": "Ci"}}), "spec.secret.name"),
        (json!({"secret": {"name": "a..b"}}), "spec.secret.name"),
        (json!({"secret": {"name": "-a"}}), "spec.secret.name"),
        (json!({"secret": {"name": "a".repeat(254)}}), "spec.secret.name"),
        (json!({"secret": {"key": ""}}), "spec.secret.key"),
        (json!({"secret": {"key": "."}}), "spec.secret.key"),
        (json!({"secret": {"key": "..a"}}), "spec.secret.key"),
        (json!({"keyHash": "sha256:00"}), "spec.keyHash"),
        (json!({"keyHash": format!("sha256:{}", "7".repeat(64)), "secret": {}}), "spec"),
        (json!({"keyHash": format!("sha256:{}", "7".repeat(64)), "rotation": {}}), "spec"),
        (json!({"keyFrom": "vault"}), "spec.keyFrom"),
        (json!({"keyFrom": {}}), "spec.keyFrom.secretRef"),
        (json!({"keyFrom": {"secretRef": "vault"}}), "spec.keyFrom.secretRef"),
        (json!({"keyFrom": {"secretRef": {"name": "vault"}}}), "spec.keyFrom.secretRef.key"),
        (json!({"keyFrom": {"secretRef": {"key": "token"}}}), "spec.keyFrom.secretRef.name"),
        (json!({"keyFrom": {"secretRef": {"name": "Vault", "key": "token"}}}), "spec.keyFrom.secretRef.name"),
        (json!({"keyFrom": {"secretRef": {"name": "vault", "key": "a b"}}}), "spec.keyFrom.secretRef.key"),
        (from_vault(json!({"keyHash": format!("sha256:{}", "1".repeat(64))})), "spec"),
        (from_vault(json!({"secret": {}})), "spec"),
        (from_vault(json!({"rotation": {"every": "30d"}})), "spec.rotation.every"),
    ] {
        assert_eq!(said(spec.clone()), [path], "{spec}");
    }
    assert_eq!(said(json!({"owner": "a b", "expiresIn": "x"})), ["spec.owner", "spec.expiresIn"]);
}

/// This spec with a source for its key.
fn from_vault(mut spec: Value) -> Value {
    spec["keyFrom"] = json!({"secretRef": {"name": "vault", "key": "token"}});
    spec
}

#[test]
fn a_source_is_named_by_its_secret_and_its_entry() {
    let read = |spec| read(&from_vault(spec), "ci", created()).unwrap();
    let overlap = read(json!({"rotation": {"overlap": "1h", "holdWhileInUse": true}}));
    assert_eq!(overlap.delivery, Delivery::Source { name: "vault".into(), key: "token".into() });
    assert_eq!((overlap.rotation.every, overlap.rotation.overlap), (None, SignedDuration::from_hours(1)));
    assert_eq!(read(json!({"keyHash": null, "secret": null})).delivery, overlap.delivery, "null is absent");
}

#[test]
fn a_template_is_read_with_its_types_texts_labels_and_annotations() {
    let read_template = |secret: Value| match read(&json!({ "secret": secret }), "ci", created()) {
        Ok(Declaration { delivery: Delivery::Secret { template, .. }, .. }) => template,
        other => panic!("{other:?}"),
    };
    let labels = json!({"app.kubernetes.io/part-of": "shop", "team": "", "keywright.example.org/a": "b"});
    let annotations = json!({"reloader.stakater.com/match": "true", "example.org/price": "5 $, $$"});
    let data: serde_json::Map<_, _> =
        (0..14).map(|index| (format!("entry-{index}"), "ä".repeat(LONGEST_TEXT).into())).collect();
    let mut template =
        json!({"type": "Opaque", "metadata": {"labels": labels, "annotations": annotations}, "data": data});
    template["data"]["..data".trim_start_matches('.')] = json!("$(KEY)");
    template["data"]["a".repeat(253)] = json!("");
    let read = read_template(json!({ "template": template }));
    assert_eq!(json!(read.labels), labels);
    assert_eq!(json!(read.annotations), annotations, "no variable, and so a $ is a $");
    assert_eq!((read.data.len(), &read.data["data"]), (16, &Text::parse("$(KEY)").unwrap()));

    for (key, data) in [("password", json!({})), ("api-key", json!({"username": "ci"})), ("username", json!({}))] {
        let secret = json!({"key": key, "template": {"type": "kubernetes.io/basic-auth", "data": data}});
        assert_eq!(read_template(secret).secret_type, SecretType::BasicAuth);
    }
    for nothing in [Value::Null, json!({}), json!({"metadata": {}, "data": {}}), json!({"type": null, "data": null})] {
        assert_eq!(read_template(json!({ "template": nothing })), SecretTemplate::default());
    }
}

/// The one problem of this spec.
fn problem(spec: &Value) -> String {
    let problems = read(spec, "ci", created()).unwrap_err();
    assert_eq!(problems.len(), 1, "{spec}: {problems:?}");
    problems[0].to_string()
}

/// Each with a name, so that the webhook's tests on a real API server can try the same.
#[test]
fn a_problem_names_the_rule_what_was_written_and_what_was_meant() {
    let mut rows = 0;
    for row in include_str!("../../../../tests/cases/slips.tsv").lines().filter(|line| !line.starts_with("# ")) {
        let [spec, said] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("not two columns: {row}") };
        assert_eq!(problem(&serde_json::from_str(spec).unwrap()), said, "{row}");
        rows += 1;
    }
    assert!(rows > 60, "{rows}");
}

#[test]
fn what_may_be_a_key_is_never_repeated() {
    let leaked = "this looks like a key, not its digest; treat it as leaked";
    for key in [KEY, &KEY.to_uppercase(), &KEY[..40], "keyw", "KEYW2_x", &format!(" {KEY}"), &format!("sha256:{KEY}")] {
        assert_eq!(problem(&json!({ "keyHash": key })), format!("spec.keyHash: {leaked}"));
    }
    for other in ["hunter2", "", "sha256:00", &"a".repeat(64), &format!("SHA256:{}", "A".repeat(64))] {
        let said = problem(&json!({ "keyHash": other }));
        assert!(said.starts_with("spec.keyHash: expected sha256: followed by 64 lower-case"), "{said}");
        assert!(other.is_empty() || other == "sha256:00" || !said.contains(other), "{said}");
    }
    for (field, spec) in [
        ("displayName", json!({ "displayName": KEY })),
        ("displayName", json!({ "displayName": format!("the key of CI, {KEY}") })),
        ("description", json!({ "description": format!("curl -H 'X-API-Key: {KEY}'") })),
        ("owner", json!({ "owner": KEY })),
        ("owner", json!({ "owner": KEY.to_lowercase() })),
        ("scopes[0]", json!({ "scopes": [KEY] })),
        ("secret.key", json!({ "secret": {"key": KEY} })),
        ("secret.template.type", json!({ "secret": {"template": {"type": KEY}} })),
        (
            "secret.template.data[\"a\"]",
            json!({ "secret": {"template": {"data": {"a": format!("API_KEY={KEY} $(")}}} }),
        ),
        (
            "secret.template.data[\"(not repeated here)\"]",
            json!({ "secret": {"template": {"data": {KEY: "$(NAME)"}}} }),
        ),
        (
            "secret.template.metadata.labels[\"a\"]",
            json!({ "secret": {"template": {"metadata": {"labels": {"a": KEY}}}} }),
        ),
        (
            "secret.template.metadata.annotations[\"a\"]",
            json!({ "secret": {"template": {"metadata": {"annotations": {"a": KEY}}}} }),
        ),
    ] {
        let said = "this looks like a key, and no field may hold one; treat it as leaked";
        assert_eq!(problem(&spec), format!("spec.{field}: {said}"));
    }
    for spec in [
        json!({ "owner": format!("{} ", &KEY[..14]) }),
        json!({ "expiresIn": KEY }),
        json!({ "expiresAt": KEY }),
        json!({ "allowedIPs": [KEY] }),
        json!({ "allowedIPs": KEY }),
        json!({ "scopes": KEY }),
        json!({ "secret": KEY }),
        json!({ "secret": KEY.to_lowercase() }),
        json!({ "rotation": KEY }),
        json!({ "rotation": {"every": KEY} }),
        json!({ "secret": {"name": KEY} }),
        json!({ "suspended": KEY }),
    ] {
        let said = problem(&spec).to_lowercase();
        assert!(!said.contains("keyw") && !said.contains("evulq"), "{said}");
    }
    let prefix = json!({ "description": format!("takes the place of {}", &KEY[..14]), "owner": "keywright-team" });
    read(&prefix, "ci", created()).unwrap();
    let ours = problem(&json!({ "owner": "Keywright Team" }));
    assert!(ours.ends_with("not \"Keywright Team\""), "{ours}");
}

#[test]
fn the_end_of_all_times_is_taken() {
    let at = |text: &str| read(&json!({ "expiresAt": text }), "ci", created()).unwrap().expires_at;
    for text in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999999-23:59", "9999-12-30T22:00:00Z"] {
        assert_eq!(at(text), Timestamp::from_second(Timestamp::MAX.as_second()).ok(), "{text}");
    }
}
